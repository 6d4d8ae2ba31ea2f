"""Does pre-training on sessions help to predict clicks, on known movies and on new ones?

BERT4SessRec on MovieLens-1M: a tenth of the movies is in no training at all. Rows: clicks learned
from scratch, and after masked-item pre-training with everything tuned or the head alone; popularity
beside them, which knows nothing of new movies. The slices by train interactions of the test movie
have the new ones as "cold": they are compared with new movies only (0.5 is chance).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/sessrec.py:cpu --workdir=W \\
      --config.data_dir=DIR

`from scratch` learns everything at the head's rate. Full size: three seeds, 12 runs, for a GPU or
TPU; it has not been run. `:cpu`: one pre-training for all seeds, 10 runs, 30 minutes of one core
(README.md has its numbers).
"""

from configs.studies import common
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"BERT4SessRec on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2),
    headline=("auc",))

  path = f"configs/bert4sessrec_ml1m.py:size={size},stage="
  sources = config.seeds[:1] if arg.cpu else config.seeds
  started = {"source": "sessions", "mode": "model",
             "source_seeds": sources * (len(config.seeds) // len(sources))}
  config.runs = {
    "sessions": {"config": f"{path}1", "seeds": sources},
    "scratch": {"config": f"{path}2,tune=alike"},
    "tuned": {"config": f"{path}2,tune=all", **started},
    "head": {"config": f"{path}2,tune=head", **started}}
  config.rows = (("from scratch", "scratch"), ("pre-trained, all tuned", "tuned"),
                 ("pre-trained, head alone", "head"))
  config.baseline = "scratch"
  config.comparisons = (("all tuned – head alone", "tuned", "head"),
                        ("all tuned – popularity", "tuned", "popularity"))
  config.claims = (
    ("Pre-training on sessions helps", (("tuned", "scratch"),)),
    ("Tuning all is better than the head alone", (("tuned", "head"),)))
  config.published = {}
  config.notes = """\
- AUC: the share of 100 movies that the user never chose and that score lower than the test movie,
  ties counting half. New movies are compared with new ones, others with others.
- "Gains by popularity" tests the new movies ("cold") apart."""
  if arg.cpu:
    config.notes += common.SHARED
  return config
