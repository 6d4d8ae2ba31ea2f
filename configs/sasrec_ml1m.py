"""The causal twin on MovieLens-1M: next item at every position, as SASRec.

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target, `data=all` takes
the whole of MovieLens-1M, leave-one-out. Variant `survey_code` is the survey's transformer with a
causal mask, user embedding included, so that it transfers like BERT4Rec; `sasrec` is small, tied
and without users, in the shape of Kang & McAuley 2018; both learn by full softmax. `kang` is the
paper's own model, with its loss and optimizer; `gsasrec` that of Petrov & Macdonald 2023.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/sasrec_ml1m.py:data=src,size=cpu \\
      --workdir=runs/causal --config.data_dir=DATA

Arguments: data=src|tgt|all, size=full|cpu, variant=survey_code|sasrec|kang|gsasrec.
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
  train_as(config, arg.variant)
  return config


def train_as(config, variant):
  """Sets the loss and the optimizer that belong to a variant; those of ours keep the defaults."""
  if variant == "kang":
    config.optim.b2 = 0.98
    config.objective.causal_next_item.update(criterion="bce", num_negatives=1, unseen=True)
  elif variant == "gsasrec":
    config.objective.causal_next_item.update(criterion="gbce", num_negatives=256, calibration=0.75)
