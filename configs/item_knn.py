"""ItemKNN on any prepared data set: what a model without training reaches.

Neighbors by cosine between the users of two items; the score of an item is the sum of its
similarities to the items of the history. There is nothing to train: the run computes the
neighbors, evaluates on test and is done (MovieLens-1M: seconds).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/item_knn.py:dataset=ml1m_tgt --workdir=runs/item_knn \\
      --config.data_dir=DATA

Arguments: dataset=NAME, a folder in DATA.
"""

from configs import common
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, dataset="ml1m_tgt")
  config = common.get_config()
  config.dataset = arg.dataset
  config.model.update(
    name="item_knn", variant="item_knn",
    neighbors=100, shrink=10.0,
    decay=1.0)  # below 1: recent items of the history count more
  config.objective.name = "untrained"
  return config
