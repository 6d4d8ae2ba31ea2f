"""Caser from Amazon Kitchen to Amazon Food; see configs/bert4rec_food_kitchen.py.

    python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/caser_food_kitchen.py:data=src --workdir=runs/kitchen \\
      --config.data_dir=DATA

Arguments: data=src|tgt, size=full|cpu, task=nip|mip, reverse.
"""

from configs import bert4rec_food_kitchen
from configs import caser_ml1m
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", size="full", task="nip", reverse=False)
  errors.choose({"src": 0, "tgt": 0}, arg.data, "data")
  config = caser_ml1m.get_config(f"data={arg.data},size={arg.size},task={arg.task}")
  config.dataset = bert4rec_food_kitchen.DATASETS[arg.data, arg.reverse]
  return config
