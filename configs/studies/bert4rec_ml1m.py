"""The survey's BERT4Rec rows on MovieLens-1M: does pre-training on one domain help the other?

Grid: transfer {none, embedding, model} x pre-training task {next item, masked item}, without
metadata, fine-tuned on the target domain with the next-item task (the survey is silent about that
one). Expect gains of a point at most, and `none` around popularity under uniform100_global.

Full size: the survey's model, five seeds with a pre-training each, 35 runs, for a GPU or TPU.
`:cpu`: a two-layer model, pre-trained once a task and fine-tuned with five seeds, 27 runs, an hour
on two CPU cores.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/bert4rec_ml1m.py:cpu \\
      --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.transfer_study(
    f"Transfer by pre-training: BERT4Rec on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    source=f"configs/bert4rec_ml1m.py:data=src,size={size}",
    target=f"configs/bert4rec_ml1m.py:data=tgt,size={size}",
    seeds=(0, 1, 2, 3, 4), source_seeds=(0,) * 5 if arg.cpu else None)
  # Zeng et al. 2021, Table 2, BERT4Rec without metadata.
  config.published = {
    "none": {
      "uniform100_global/ndcg@3": 42.34,
      "uniform100_global/ndcg@5": 51.56,
      "uniform100_global/ndcg@10": 61.18,
      "uniform100_global/recall@3": 40.94,
      "uniform100_global/recall@5": 56.79,
      "uniform100_global/recall@10": 77.87,
    },
  }
  config.notes += """
- Published numbers are from Zeng et al. 2021, "Knowledge Transfer via Pre-training for
  Recommendation: A Review and Prospect", Table 2, BERT4Rec without metadata: one number, no spread.
- `uniform100_global` is the survey's protocol: 100 negatives drawn from both domains, about 73 of
  which are never targets. That makes it easy: popularity alone comes close to the models. `full` is
  the protocol to judge by."""
  return config
