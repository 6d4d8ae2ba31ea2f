"""A small BERT4Rec on the generated demo data: seconds a run, for the quick start and for trials.

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target. The numbers say
nothing about real users: the data are generated so that transfer helps (configs/data/demo.py).

    python -m recjax.prepare --config=configs/data/demo.py --data_dir=DATA
    python -m recjax.train --config=configs/bert4rec_demo.py:data=src --workdir=runs/src \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/bert4rec_demo.py:data=tgt --workdir=runs/tgt \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/src --config.transfer.mode=embedding
"""

from configs import common
from recjax import errors, spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src")
  source = errors.choose({"src": True, "tgt": False}, arg.data, "data")
  config = common.get_config()
  config.dataset = f"demo_{arg.data}"
  config.model.update(num_layers=1, item_width=32, user_width=16, heads=2, hidden=128, max_len=50,
                      fields=(("genre", 8, 1), ("creator", 8, 1)))
  config.objective.name = "masked_item" if source else "next_item"
  config.batch_size = 128
  config.micro_batch = 64
  config.total_epochs = 20.0 if source else 12.0
  config.optim.lr = 3e-3
  config.eval.every_epochs = 5.0 if source else 3.0
  return config
