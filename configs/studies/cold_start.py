"""Cold items on MovieLens-1M: who can rank movies that nobody has rated, and at what price.

A tenth of the movies is removed from all training (the same ones in every run); test items among
them are cold. Rows: SASRec by ids alone, genres joined to them (concat), titles and plots in place
of them (replace), titles, plots and genres beside them through a gate, without and with item
dropout (0.3: DropoutNet's idea), and popularity, which cannot tell cold items apart. Report: all
test items, and slices by the train interactions of the test item: 0, 1-3, 4-10, more.

Not measured yet at any size. All items compete, so that cold ones have to pass those that are
popular: expect them below chance wherever popularity is most of what a model knows, and compare the
rows in column 0 with popularity, which has nothing else.

`:cpu`, 5 runs, one seed each, 10 epochs on the last 50 items of a user. Data that were prepared
before texts were kept must be prepared again.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/cold_start.py:cpu --workdir=W \\
      --config.data_dir=DIR
"""

import ml_collections

from configs import content_ml1m
from configs.studies import common
from recjax import spec

HELD_OUT = (0.1, 0)  # share of the movies, seed


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  config = ml_collections.ConfigDict()
  config.title = f"Cold items on MovieLens-1M (size {'cpu' if arg.cpu else 'full'})"
  config.data_dir = ""
  config.prepare = common.prepare("ml1m")
  config.seeds = (0,) if arg.cpu else (0, 1, 2)
  config.overrides = ("held_out_items", HELD_OUT), ("eval.protocols", ("full",)), *(
    (("total_epochs", 10.0), ("eval.every_epochs", 2.0)) if arg.cpu else ())
  config.bootstrap_draws = 10_000
  config.headline = ("ndcg@10", "recall@10", "mrr")
  width = 32 if arg.cpu else 64
  def run(names, aggregate, item_dropout=None):
    features = content_ml1m.features(names, width=width)
    return {"config": f"configs/content_ml1m.py:size={'cpu' if arg.cpu else 'full'}",
            "overrides": (("model.features", features), ("model.aggregate", aggregate),
                          ("model.item_dropout", item_dropout))}
  config.runs = {
    "ids": run((), None),
    "concat_genre": run(("genre",), "concat"),
    "replace_text": run(("text",), "replace"),
    "gate": run(("text", "genre"), "gate"),
    "gate_dropout": run(("text", "genre"), "gate", 0.3),
  }
  config.rows = (
    ("ids alone", "ids"),
    ("genres joined", "concat_genre"),
    ("text in place of ids", "replace_text"),
    ("text, genres: gate", "gate"),
    ("gate, item dropout 0.3", "gate_dropout"),
  )
  config.baseline = "ids"
  config.comparisons = (
    ("ids – popularity", "ids", "popularity"),
    ("item dropout: 0.3 – 0", "gate_dropout", "gate"),
    ("text alone – ids alone", "replace_text", "ids"),
  )
  config.notes = """\
- A tenth of the movies, drawn by a seed, is in no training or validation interaction; held-out
  movies that a user rated before are neither shown to the models nor counted as mistakes. In
  training they do not compete in the softmax, so that nothing is learned against them.
- Where a model has features, an item without train interactions has no vector of its own; by ids
  alone it keeps the one that it started with.
- `full` ranks a test item, cold or not, among all movies: the 0 column is the generalized setting.
"""
  return config
