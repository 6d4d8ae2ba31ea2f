"""BERT4SessRec on MovieLens-1M: clicks on movies that are known by their content alone.

`stage=1` pre-trains on sessions: masked movies are filled in, movies being titles and genres (or
plots, or given vectors), so that nothing of a movie has to be learned from who saw it. `stage=2`
predicts clicks, s = MLP([u; v; u * v]) of the session and the movie: what a user chose next,
against movies that they never did. A tenth of the movies is kept from both stages; `auc` of a test
movie is the share of 100 others that score lower, cold ones compared with cold ones, so that the
slices by train interactions tell how well new movies are told apart.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/bert4sessrec_ml1m.py:stage=1,size=cpu \\
      --workdir=runs/sessions --config.data_dir=DATA
    python -m recjax.train --config=configs/bert4sessrec_ml1m.py:stage=2,size=cpu \\
      --workdir=runs/clicks --config.data_dir=DATA \\
      --config.transfer.checkpoint=runs/sessions --config.transfer.mode=model

Stage 2 trains everything, the encoder at a tenth of the head's rate (1e-4, 1e-3), with `tune=head`
the head alone, and with `tune=alike` everything at the head's rate, as what starts from scratch.
--config.model.read=mask|mean|cls says what the vector of a session is. With
--config.objective.click.of=liked clicks are ratings of 4 and more. The challenge that it is from
(CBVRP) had private features, and its numbers say nothing about these; configs/studies/sessrec.py
measures.

Arguments: stage=1|2, tune=all|head|alike, features=text+genre+given (joined by +),
of=title+plot+genre (likewise), encoder=word_avg|cnn|bigru_attention|transformer_cls, path=FILE of
given vectors, data=all|src|tgt, size=full|cpu.
"""

from configs import common
from configs import content_ml1m
from recjax import errors
from recjax import spec

SHARED = "(embed|encoder)/.*"


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, stage=2, tune="all", features="text+genre", of="title",
                       encoder="word_avg", path="", data="all", size="full")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  stage = errors.choose({1: "sessions", 2: "clicks"}, arg.stage, "stage")
  config = common.get_config()
  config.dataset = errors.choose({"all": "ml1m", "src": "ml1m_src", "tgt": "ml1m_tgt"}, arg.data,
                                 "data")
  config.held_out_items = (0.1, 0)
  config.model.update(name="bert4sessrec", variant="bert4sessrec", max_len=30 if small else 100)
  config.model.read = "mask"
  config.model.features = content_ml1m.features(
    arg.features.split("+"), width=32 if small else 64, of=tuple(arg.of.split("+")),
    encoder=arg.encoder, path=arg.path)
  config.model.aggregate = "replace"
  if stage == "sessions":
    config.objective.name = "masked_item"
    config.objective.masked_item.rate = 0.2
    config.total_epochs = 20.0 if small else 200.0
    config.eval.update(every_epochs=5.0, protocols=("full", "uniform100_domain"),
                       contexts=("train",))
    config.objective.window = "random"
    return config
  config.objective.name = "click"
  config.objective.click = dict(of="clicks", threshold=4.0, num_negatives=4)
  config.optim.rules, config.transfer.freeze = errors.choose({
    "all": (((SHARED, {"lr_scale": 0.1}),), ""), "head": ((), SHARED), "alike": ((), "")},
    arg.tune, "tune")
  config.total_epochs = 20.0 if small else 100.0
  config.eval.update(metric="click/auc", protocols=("click",), contexts=("train",),
                     every_epochs=2.0)
  return config


def sweep(add):
  """The rate of learning, and what the vector of a session is, chosen on validation."""
  for lr in (3e-4, 1e-3, 3e-3):
    for read in ("mask", "mean"):
      add(**{"optim.lr": lr, "model.read": read})
