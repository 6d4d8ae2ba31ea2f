"""Does knowing who made the movies make a better pre-training? MovieLens-1M, source to cold target.

Rows: no pre-training; masked items alone (MIP); and MIP with each way to bring in knowledge: joint
with a knowledge graph (shared item rows), with attributes of hidden movies and of movies by their
rows (MAP, AAP), with both. All are carried over by `model` and tuned alike, so that they differ in
what was pre-trained alone. With `vectors=FILE` also vectors of the graph's own model, in source
and target, beside the same model without pre-training: as a fused input, and in layers that fuse
them (ERNIE).

Full size: five seeds with a pre-training each, for a GPU or TPU. `:cpu`: one pre-training a row on
the last 30 movies of a user, 15 epochs, tuned with three seeds: 19 runs, 33 with `vectors`; the
26 without ERNIE's rows take 55 minutes on one core (README.md has the numbers).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.prepare --config=configs/data/ml1m_kg.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/knowledge.py:cpu --workdir=W \\
      --config.data_dir=DIR

For `knowledge.py:cpu,vectors=movies.npz` the file is made as configs/knowledge_ml1m.py says.
"""

from configs.studies import common
from recjax import spec

TITLES = {"none": "MIP", "joint": "MIP + graph", "attributes": "MIP + attributes",
          "all": "MIP + graph + attributes"}
FUSED = {"fused": ("fused", "gate"), "fusion": ("fused in layers", "fusion")}  # run: title, g


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, vectors="")
  config = common.study(
    f"Knowledge-enhanced pre-training on MovieLens-1M (size {_size(arg)})",
    prepare=f"{common.prepare('ml1m')} and {common.prepare('ml1m_kg')}",
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4))
  config.runs = {"none": {"config": _path(arg, "none", "tgt")}}
  config.rows, config.baselines = (("no pre-training", "none"),), {}
  for know, title in TITLES.items():
    _add(config, arg, know, title, f"mip_{know}" if know != "none" else "mip")
  if arg.vectors:
    for know, (title, _) in FUSED.items():
      config.runs[f"none_{know}"] = {"config": _path(arg, know, "tgt")}
      config.rows += ((f"no pre-training, {title}", f"none_{know}"),)
      _add(config, arg, know, f"MIP, {title}", f"mip_{know}")
  config.baselines = {run: "mip" for _, run in config.rows if run.startswith("mip_")}
  config.baselines["mip"] = "none"
  if arg.vectors:
    config.baselines.update({f"none_{know}": "none" for know in FUSED})
  config.comparisons = (("both – graph alone", "mip_all", "mip_joint"),
                        ("none – popularity", "none", "popularity"))
  config.claims = (
    ("Pre-training with masked items helps the cold target", (("mip", "none"),)),
    ("Knowledge makes pre-training better",
     tuple((run, "mip") for run in config.baselines if run.startswith("mip_"))))
  config.published = {}
  config.notes = """\
- MIP: masked item prediction on the source domain; all rows are tuned on the target with the
  next-item task. The graph is that of configs/data/ml1m_kg.py: its movies are of both domains, and
  rows of target movies that it has trained are carried over. No interaction of the target is.
- Attributes are genres, directors and actors (of the OMDb-style table) of at least five movies of
  the source domain."""
  if arg.cpu:
    config.notes += common.SHARED
  return config


def _size(arg):
  return "cpu" if arg.cpu else "full"


def _path(arg, know, data):
  if know in FUSED:
    know = f"fused,vectors={arg.vectors},g={FUSED[know][1]}"
  return f"configs/knowledge_ml1m.py:know={know},data={data},size={_size(arg)}"


def _add(config, arg, know, title, name):
  """Adds a pre-training and the row that is tuned from it."""
  common.add_transfer(config, name, source=f"source_{know}", pretrain=_path(arg, know, "src"),
                      tune=_path(arg, know, "tgt"), shared=arg.cpu)
  config.rows += ((title, name),)
