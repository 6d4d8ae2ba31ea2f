"""SASRec that also learns to tell users' sequences apart: CL4SRec (Xie et al. 2022), MovieLens-1M.

Two objectives on every batch, next items at all positions and, with weight 0.1, contrastive
learning over crops, masks and reorderings of the same user's sequence; metrics.jsonl reports each
apart. `data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target, `data=all`
is leave-one-out on the whole. Not run at length yet; what contrast gives BERT4Rec and NextItNet
before a cold target is in README.md (it hurts the one and helps neither).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/cl4srec_ml1m.py:data=all,size=cpu \\
      --workdir=runs/cl4srec --config.data_dir=DATA

Users are told from the others of their group of 32, a part of the batch that no device and no
micro-batch cuts. The paper takes all of the batch and inner products, without a temperature:
--config.micro_batch=256 and, of --config.objective.contrast, group=256, normalize=false and
temperature=1.

Arguments: data=src|tgt|all, size=full|cpu, variant=survey_code|sasrec.
"""

from configs import sasrec_ml1m
from recjax import spec

CONTRAST = dict(operators=("crop", "mask", "reorder"), crop_share=0.6, mask_share=0.3,
                reorder_share=0.6, temperature=0.1, normalize=True, append_mask=False, group=32)


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="all", size="full", variant="sasrec")
  config = sasrec_ml1m.get_config(f"data={arg.data},size={arg.size},variant={arg.variant}")
  config.objective.name = "mix"
  config.objective.mix.parts = (("causal_next_item", 1.0), ("contrast", 0.1))
  config.objective.contrast = dict(CONTRAST)
  config.micro_lengths = ()  # views are not cut
  return config


def sweep(add):
  """The weight of the second objective and its temperature, chosen on validation."""
  for weight in (0.03, 0.1, 0.3):
    for temperature in (0.05, 0.1, 0.5):
      add(**{"objective.mix.parts": (("causal_next_item", 1.0), ("contrast", weight)),
             "objective.contrast.temperature": temperature})
