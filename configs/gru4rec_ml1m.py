"""GRU4Rec on MovieLens-1M: a recurrent network that predicts the next item at every position.

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target, `data=all` takes
the whole of MovieLens-1M, leave-one-out. Variant `gru4rec` scores items against the table that it
reads them from, `untied` by a matrix of its own, as Hidasi et al. 2016; full softmax in place of
their pairwise losses (other choices: --config.objective.causal_next_item.criterion=bce).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/gru4rec_ml1m.py:data=tgt --workdir=runs/gru4rec \\
      --config.data_dir=DATA

Arguments: data=src|tgt|all, variant=gru4rec|untied.
"""

from configs import bert4rec_ml1m
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", variant="gru4rec")
  config = bert4rec_ml1m.get_config(f"data={arg.data}")
  config.model.update(name="gru4rec", variant=arg.variant)
  config.objective.name = "causal_next_item"
  config.batch_size = 128
  return config
