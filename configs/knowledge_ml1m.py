"""Knowledge-enhanced pre-training on MovieLens-1M: BERT4Rec that knows who made the movies.

    know=none        masked items alone, as configs/bert4rec_ml1m.py
    know=fused       vectors that a knowledge graph's model has learned, as a feature of items that
                     is aggregated with their own (g=gate, or concat): `vectors=FILE`; g=fusion is
                     ERNIE's (Zhang et al. 2019), a second stream of the last two blocks
    know=joint       masked items + 0.3 knowledge graph: a movie's item row is its entity's vector
    know=attributes  masked items + 0.1 attributes of a hidden movie + 0.1 of a movie by its row:
                     genres, directors and actors (MAP and AAP of S3-Rec, Zhou et al. 2020)
    know=all         joint and attributes

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target, where `fused` alone
differs from configs/bert4rec_ml1m.py, `data=all` is leave-one-out on the whole. metrics.jsonl
reports every part apart. Weights are guesses; `sweep` has others. What it
gains is the question of configs/studies/knowledge.py.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.prepare --config=configs/data/ml1m_kg.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/knowledge_ml1m.py:know=joint,data=src,size=cpu \\
      --workdir=runs/joint --config.data_dir=DATA
    python -m recjax.train --config=configs/knowledge_ml1m.py:data=tgt,size=cpu \\
      --workdir=runs/tgt --config.data_dir=DATA --config.transfer.checkpoint=runs/joint \\
      --config.transfer.mode=model

The knowledge graph speaks of movies of both domains. So do then the item rows that are carried to
the target: those of its movies that are entities count as trained.

Fused input first needs the vectors:

    python -m recjax.train --config=configs/kge.py:transe,data=ml1m_kg,size=cpu \\
      --workdir=runs/transe --config.data_dir=DATA
    python -m recjax.export --workdir=runs/transe --items --output=movies.npz
    python -m recjax.train \\
      --config=configs/knowledge_ml1m.py:know=fused,vectors=movies.npz,data=src,size=cpu \\
      --workdir=runs/fused --config.data_dir=DATA

size=cpu reads the last 30 movies of a user, with 2 layers of 64, for 15 epochs (tgt: 10).

Arguments: know (above), data=src|tgt|all, size=full|cpu, vectors=FILE,
g=gate|concat|sum|mlp|fusion.
"""

from configs import bert4rec_ml1m
from configs import common
from recjax import errors
from recjax import spec

PARTS = {
  "none": (), "fused": (), "joint": (("knowledge", 0.3),),
  "attributes": (("masked_attribute", 0.1), ("item_attribute", 0.1)),
  "all": (("knowledge", 0.3), ("masked_attribute", 0.1), ("item_attribute", 0.1)),
}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, know="joint", data="src", size="full", vectors="", g="gate")
  parts = errors.choose(PARTS, arg.know, "know")
  config = bert4rec_ml1m.get_config(f"data={arg.data},size={arg.size}")
  if arg.size == "cpu":
    config.model.max_len = 30
    config.micro_lengths = ()
    if arg.data != "tgt":
      config.total_epochs = 15.0
  attributes = dict(attributes=("genre", "director", "actor"), min_count=5, value_width=32,
                    rate=0.2)
  config.objective.update(
    knowledge=dict(graph="ml1m_kg", scorer="transe", norm=1, normalize=True,
                   criterion="margin_ranking", margin=1.0, num_negatives=1, corruption="bern",
                   triples=4),
    masked_attribute=attributes, item_attribute=dict(attributes))
  if parts and arg.data != "tgt":
    config.objective.name = "mix"
    config.objective.mix.parts = (("masked_item", 1.0), *parts)
  if arg.know == "fused":
    config.model.features = common.exported("knowledge", arg.vectors, argument="know=fused")
    config.model.aggregate = arg.g
  return config


def sweep(add):
  """How much the knowledge graph weighs, and how triples are scored, chosen on validation."""
  for weight in (0.0, 0.1, 0.3, 1.0):
    add(**{"objective.mix.parts": (("masked_item", 1.0), ("knowledge", weight))})
  for scorer in ("transe", "complex"):
    add(**{"objective.knowledge.scorer": scorer, "objective.knowledge.criterion": "logistic",
           "objective.knowledge.normalize": False})
