"""BERT4Rec on MovieLens-1M, the survey's main experiment: pre-train on a domain, tune on another.

`data=src` pre-trains on the source domain (65 epochs at full size), `data=tgt` tunes on the cold
target (at most 10 interactions a user, 10 epochs), with the survey's sizes: 6 layers, item 128,
user 32, batch 256, Adam 1e-3. `size=cpu` is a smaller model for a laptop: 2 layers, item 64.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/bert4rec_ml1m.py:data=src,size=cpu --workdir=runs/src \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/bert4rec_ml1m.py:data=tgt,size=cpu --workdir=runs/tgt \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/src --config.transfer.mode=embedding

`meta=survey` adds director and three actors to every item (16 wide each, 8 at size cpu), from the
survey authors' anonymous table; `meta=imdb` reads IMDB-5000, `meta=omdb` the OMDb-style table.

Arguments: data=src|tgt|all, size=full|cpu, variant=survey_code|survey_text|bert4rec,
meta=none|survey|imdb|omdb.
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", size="full", variant="survey_code", meta="none")
  config = common.get_config()
  names = {"src": "ml1m_src", "tgt": "ml1m_tgt", "all": "ml1m"}
  config.dataset = errors.choose(names, arg.data, "data")
  config.model.variant = arg.variant
  config.total_epochs = {"src": 65.0, "tgt": 10.0, "all": 65.0}[arg.data]
  config.eval.every_epochs = 1.0 if arg.data == "tgt" else 5.0
  config.objective.name = "next_item" if arg.data == "tgt" else "masked_item"
  if errors.choose({"full": False, "cpu": True}, arg.size, "size"):
    config.model.update(num_layers=2, item_width=64, user_width=32, heads=2, hidden=256)
    config.micro_batch = 128 if arg.data == "tgt" else 32  # what fits a CPU's cache
    if arg.data != "tgt":
      config.micro_lengths = (25, 50, 75)
  config.model.fields = fields(arg.meta, width=8 if arg.size == "cpu" else 16, actors=3)
  return config


def fields(meta, *, width, actors):
  """Returns `config.model.fields` of a movie's first director and first actors.

  Args:
    meta: none, or whose table: survey, imdb, omdb.
    width: of one value's vector.
    actors: how many.
  """
  prefix = errors.choose({"none": None, "survey": "survey_", "imdb": "imdb_", "omdb": ""}, meta,
                         "meta")
  if prefix is None:
    return ()
  return ((f"{prefix}director", width, 1), (f"{prefix}actor", width, actors))


def sweep(add):
  """The survey's grid over batch size, width and learning rate, chosen on validation."""
  for batch_size in (128, 256, 512):
    for width in (64, 128, 256):
      for lr in (1e-3, 1e-4):
        add(**{"batch_size": batch_size, "model.item_width": width, "optim.lr": lr})
