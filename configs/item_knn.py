"""Neighbors on any prepared data set: what a model without training reaches.

ItemKNN: neighbors by cosine between the users of two items; the score of an item is the sum of its
similarities to the items of the history. UserKNN (`of=user`): those by the items of two users; the
score of an item is the sum of the similarities of those who own it. With `history=NAME` neighbors
are found in that data set, and so have users who are new to `dataset`. There is nothing to train:
the run computes the neighbors, evaluates on test and is done (MovieLens-1M: seconds).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/item_knn.py:dataset=ml1m_tgt --workdir=runs/item_knn \\
      --config.data_dir=DATA

Arguments: dataset=NAME, a folder in DATA, of=item|user, history=NAME, likewise, for of=user.
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, dataset="ml1m_tgt", of="item", history="")
  config = common.get_config()
  config.dataset, config.history = arg.dataset, arg.history
  name = errors.choose({"item": "item_knn", "user": "user_knn"}, arg.of, "of")
  if arg.history and arg.of == "item":
    raise errors.UserError("history=NAME is for of=user")
  config.model.update(name=name, variant=name, neighbors=100, shrink=10.0)
  if arg.of == "item":
    config.model.decay = 1.0  # below 1: recent items of the history count more
  config.objective.name = "untrained"
  return config
