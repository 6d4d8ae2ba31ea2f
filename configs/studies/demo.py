"""Does pre-training on one domain help another? BERT4Rec on small generated data, three seeds.

Grid: transfer {none, embedding, model} x pre-training task {next item, masked item}, fine-tuned on
the target domain with the next-item task; none has no pre-training. The data are generated, so the
report shows that everything works, not how good a method is. Seven runs per seed, a few minutes
on two CPU cores.

    python -m recjax.study --config=configs/studies/demo.py --workdir=W --config.data_dir=DIR
"""

import ml_collections

from recjax import spec

RUN = "configs/bert4rec_demo.py"


def get_config(arg=None):
  spec.parse_arg(arg)  # Takes no arguments; one that is given is a mistake.
  config = ml_collections.ConfigDict()
  config.title = "Transfer by pre-training: BERT4Rec on generated data"
  config.data_dir = ""
  config.prepare = "python -m recjax.prepare --config=configs/data/demo.py --data_dir={data_dir}"
  config.seeds = (0, 1, 2)
  config.overrides = ()
  config.bootstrap_draws = 10_000
  config.headline = ("ndcg@10", "recall@10", "mrr")

  config.runs = {
    "source_nip": source("next_item"),
    "source_mip": source("masked_item"),
    "none": target(),
    "embedding_nip": target(source="source_nip", mode="embedding"),
    "embedding_mip": target(source="source_mip", mode="embedding"),
    "model_nip": target(source="source_nip", mode="model"),
    "model_mip": target(source="source_mip", mode="model"),
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
  config.notes = """\
- NIP: next item prediction, MIP: masked item prediction. Both name the pre-training task; every
  target run is fine-tuned with NIP."""
  return config


def source(objective):
  return {"config": f"{RUN}:data=src", "overrides": (("objective.name", objective),)}


def target(**transfer):
  return {"config": f"{RUN}:data=tgt", "overrides": (("objective.name", "next_item"),), **transfer}
