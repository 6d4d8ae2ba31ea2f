"""BERT4Rec from Amazon Kitchen to Amazon Food: the ML-1M experiment on a second pair of domains.

`data=src` pre-trains on kitchen_src, `data=tgt` tunes on food_tgt (at most 5 training items a
user); `reverse` swaps the domains. The model is that of configs/bert4rec_ml1m.py with 50 positions;
nothing else changes. All 7,144 users are in both domains. There is no metadata.

    python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/bert4rec_food_kitchen.py:data=src,size=cpu \\
      --workdir=runs/kitchen --config.data_dir=DATA

Arguments: data=src|tgt, size=full|cpu, reverse.
"""

from configs import bert4rec_ml1m
from recjax import errors
from recjax import spec

DATASETS = {("src", False): "kitchen_src", ("tgt", False): "food_tgt",
            ("src", True): "food_src", ("tgt", True): "kitchen_tgt"}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", size="full", reverse=False)
  errors.choose({"src": 0, "tgt": 0}, arg.data, "data")
  config = bert4rec_ml1m.get_config(f"data={arg.data},size={arg.size}")
  config.dataset = DATASETS[arg.data, arg.reverse]
  config.model.max_len = 50
  return config
