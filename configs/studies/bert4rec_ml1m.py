"""The survey's BERT4Rec rows on MovieLens-1M: does pre-training on one domain help the other?

Grid: transfer {none, embedding, model} x pre-training task {next item, masked item}, without
metadata, fine-tuned on the target domain with the next-item task (the survey is silent about that
one); none has no pre-training. Expect small gains, and `none` a few points above popularity under
uniform100_global. Seven runs per seed: five seeds at the survey's size for an accelerator, or, with
`:cpu`, three seeds of a small model on two CPU cores. The report prints the time of each run.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/bert4rec_ml1m.py:cpu \\
      --workdir=W --config.data_dir=DIR
"""

import ml_collections

from recjax import spec

RUN = "configs/bert4rec_ml1m.py"


def get_config(arg=None):
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = ml_collections.ConfigDict()
  config.title = f"Transfer by pre-training: BERT4Rec on MovieLens-1M (size {size})"
  config.data_dir = ""
  config.prepare = (
    "python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir={data_dir}")
  config.seeds = (0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4)
  config.overrides = ()
  config.bootstrap_draws = 10_000
  config.headline = ("ndcg@10", "recall@10", "mrr")

  config.runs = {
    "source_nip": source(size, "next_item"),
    "source_mip": source(size, "masked_item"),
    "none": target(size),
    "embedding_nip": target(size, source="source_nip", mode="embedding"),
    "embedding_mip": target(size, source="source_mip", mode="embedding"),
    "model_nip": target(size, source="source_nip", mode="model"),
    "model_mip": target(size, source="source_mip", mode="model"),
  }
  config.rows = (
    ("none", "none"),
    ("embedding, NIP", "embedding_nip"),
    ("embedding, MIP", "embedding_mip"),
    ("model, NIP", "model_nip"),
    ("model, MIP", "model_mip"),
  )
  config.baseline = "none"
  config.comparisons = (
    ("none – popularity", "none", "popularity"),
    ("embedding: MIP – NIP", "embedding_mip", "embedding_nip"),
    ("model: MIP – NIP", "model_mip", "model_nip"),
    ("NIP: model – embedding", "model_nip", "embedding_nip"),
    ("MIP: model – embedding", "model_mip", "embedding_mip"),
  )
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
  config.notes = """\
- NIP: next item prediction, MIP: masked item prediction. Both name the pre-training task; every
  target run is fine-tuned with NIP.
- Published numbers are from Zeng et al. 2021, "Knowledge Transfer via Pre-training for
  Recommendation: A Review and Prospect", Table 2, BERT4Rec without metadata: one number, no spread.
- `uniform100_global` is the survey's protocol: 100 negatives drawn from both domains, about 73 of
  which are never targets. That makes it easy: popularity alone comes close to the models. `full` is
  the protocol to judge by."""
  return config


def source(size, objective):
  return {"config": f"{RUN}:data=src,size={size}", "overrides": (("objective.name", objective),)}


def target(size, **transfer):
  return {"config": f"{RUN}:data=tgt,size={size}",
          "overrides": (("objective.name", "next_item"),), **transfer}
