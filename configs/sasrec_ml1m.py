"""The causal twin on MovieLens-1M: next item at every position with full softmax, as SASRec.

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target, `data=all` takes
the whole of MovieLens-1M, leave-one-out. Variant `survey_code` is the survey's transformer with a
causal mask, user embedding included, so that it transfers like BERT4Rec; `sasrec` is small, tied
and without users, in the shape of Kang & McAuley 2018.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/sasrec_ml1m.py:data=src,size=cpu \\
      --workdir=runs/causal --config.data_dir=DATA

Arguments: data=src|tgt|all, size=full|cpu, variant=survey_code|sasrec.
"""

from configs import bert4rec_ml1m
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", size="full", variant="survey_code")
  config = bert4rec_ml1m.get_config(f"data={arg.data},size={arg.size}")
  config.model.name = "sasrec"
  config.model.variant = arg.variant
  config.objective.name = "causal_next_item"
  return config
