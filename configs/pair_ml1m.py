"""Recommendation functions f(u, v) on MovieLens-1M, leave-one-out: NeuMF and its peers.

Every interaction but the last two of a user trains, against four unseen items each, drawn anew
every epoch (He et al. 2017); the last one tests, ranked among 99 unseen items, HR@10 being
recall@10 of `uniform100_domain`. `full` ranks it among all items, which says more.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/pair_ml1m.py:model=gmf --workdir=runs/gmf \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/pair_ml1m.py:model=mlp --workdir=runs/mlp \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/pair_ml1m.py:model=neumf --workdir=runs/neumf \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/gmf,runs/mlp \\
      --config.transfer.mode=fusion

The last one is NeuMF pre-trained: it starts with logits that are the average of both, and is tuned
with SGD in the paper (--config.optim.name=sgd). Without the transfer it is trained from scratch.
The paper has HR@10 .688 and NDCG@10 .410 with 8 factors, as remembered and not re-read;
the README has what `size=cpu` gives.

`size=full`: batches of 51 interactions, 255 pairs with their negatives, as the paper's of 256, and
20 epochs. `size=cpu`: batches of 512, 20 epochs; after two, GMF stands at popularity.

Arguments: model=neumf|gmf|mlp|fm|dot|bilinear, factors=8, criterion=bce|bpr|softmax|
sampled_softmax, data=all|src|tgt, size=full|cpu. `fm` takes attributes of the movies by
--config.model.fields="(('genre', 8, 6),)", as wide as `factors`.
"""

from configs import common
from recjax import errors
from recjax import spec

MODELS = {"neumf": "neumf", "gmf": "neumf", "mlp": "neumf", "fm": "fm", "dot": "dot",
          "bilinear": "dot"}
DATA = {"all": "ml1m", "src": "ml1m_src", "tgt": "ml1m_tgt"}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, model="neumf", factors=8, criterion="bce", data="all", size="full")
  config = common.get_config()
  config.dataset = errors.choose(DATA, arg.data, "data")
  config.model.update(name=errors.choose(MODELS, arg.model, "model"), variant=arg.model,
                      factors=arg.factors)
  if config.model.name == "neumf":
    config.model.update(num_layers=3, initializer="he")
  config.objective.name = "pair"
  config.objective.pair = dict(  # see recjax/objectives/item_loss.py
    criterion=arg.criterion, num_negatives=4, calibration=0.75, negatives="position", unseen=True,
    proposal="uniform", power=0.75)
  config.batch_size = errors.choose({"full": 51, "cpu": 512}, arg.size, "size")
  config.total_epochs = 20.0
  config.eval.update(metric="uniform100_domain/ndcg@10", num_negatives=99,
                     protocols=("uniform100_domain", "full"), contexts=("train",))
  return config


def sweep(add):
  """Sizes and losses, chosen on validation."""
  for factors in (8, 16, 32, 64):
    for criterion in ("bce", "bpr"):
      add(**{"model.factors": factors, "objective.pair.criterion": criterion})
