"""Cold start on MovieLens-1M: movies that nobody has rated, and users without any history.

`of=items`, the default: a tenth of the movies is removed from all training (the same ones in every
run); test items among them are cold. Rows: SASRec by ids alone, genres joined to them (concat),
titles and plots in place of them (replace), titles, plots and genres beside them through a gate,
without and with item dropout (0.3: DropoutNet's idea); content cosine, which trains nothing; and
popularity, which cannot tell cold items apart. Protocol `cold` ranks cold items among themselves,
`full` among all movies. Slices by the train interactions of the test item: 0, 1-3, 4-10, more.

`of=users`: a fifth of the users has no interactions in the target domain but those that test. Rows:
SASRec on the target alone, for which they are nobody; SASRec that reads their history in the source
domain and was trained on other users' choices in the target (PeterRec's task), from scratch, from
a pre-training on the source, and with the pre-training frozen but for adapters; and what their
neighbors in the source chose in the target. Slices by a user's target history: cold (0), 1-3, 4-10.

In `full` all items compete, so that cold ones have to pass those that are popular: expect them
below chance wherever popularity is most of what a model knows, and compare the rows in column 0
with popularity, which has nothing else.

`:cpu`, one seed each: of items, 6 runs of 10 epochs on the last 50 items of a user; of users, 6
runs of 10 epochs. They take 20 and 35 minutes on one core (README.md has the numbers). Data that
were prepared before texts were kept must be prepared again.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/cold_start.py:cpu --workdir=W \\
      --config.data_dir=DIR
    python -m recjax.study --config=configs/studies/cold_start.py:of=users,cpu --workdir=W \\
      --config.data_dir=DIR

Arguments: of=items|users, cpu.
"""

from configs import content_ml1m
from configs.studies import common
from recjax import errors
from recjax import spec

HELD_OUT_ITEMS = (0.1, 0)  # share of the movies, seed
HELD_OUT_USERS = (0.2, 0)  # share of the users, seed


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, of="items", cpu=False)
  describe = errors.choose({"items": _items, "users": _users}, arg.of, "of")
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Cold {arg.of} on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0,) if arg.cpu else (0, 1, 2),
    overrides=(("total_epochs", 10.0), ("eval.every_epochs", 2.0)) if arg.cpu else ())
  describe(config, size)
  return config


def _items(config, size):
  width = 32 if size == "cpu" else 64
  def run(names, aggregate, item_dropout=None, model="sasrec"):
    features = content_ml1m.features(names, width=width)
    return {"config": f"configs/content_ml1m.py:model={model},size={size}",
            "overrides": (("model.features", features), ("model.aggregate", aggregate),
                          ("model.item_dropout", item_dropout))}
  config.overrides += (("held_out_items", HELD_OUT_ITEMS), ("eval.protocols", ("full", "cold")))
  config.runs = {
    "ids": run((), None),
    "concat_genre": run(("genre",), "concat"),
    "replace_text": run(("text",), "replace"),
    "gate": run(("text", "genre"), "gate"),
    "gate_dropout": run(("text", "genre"), "gate", 0.3),
    "content_cosine": {**run(("text", "genre"), None, model="content_cosine"), "seeds": (0,)},
  }
  config.rows = (
    ("ids alone", "ids"),
    ("genres joined", "concat_genre"),
    ("text in place of ids", "replace_text"),
    ("text, genres: gate", "gate"),
    ("gate, item dropout 0.3", "gate_dropout"),
    ("text, genres: cosine", "content_cosine"),
  )
  config.baseline = "ids"
  config.comparisons = (
    ("ids – popularity", "ids", "popularity"),
    ("item dropout: 0.3 – 0", "gate_dropout", "gate"),
    ("text alone – ids alone", "replace_text", "ids"),
    ("text alone – cosine", "replace_text", "content_cosine"),
  )
  config.notes = """\
- A tenth of the movies, drawn by a seed, is in no training or validation interaction; held-out
  movies that a user rated before are neither shown to the models nor counted as mistakes. In
  training they do not compete, so that nothing is learned against them.
- Where a model has features, an item without train interactions has no vector of its own; by ids
  alone it keeps the one that it started with.
- `cold` ranks the cold test items of a user among all cold movies that the user has not rated, of
  those users who have one: there popularity is chance. `full` ranks a test item, cold or not, among
  all movies: its 0 column is the generalized setting.
"""


def _users(config, size):
  def run(path, **fields):
    overrides = (("held_out_users", HELD_OUT_USERS), *fields.pop("overrides", ()))
    return {"config": path, "overrides": overrides, **fields}
  history = f"configs/peterrec_ml1m.py:task=items,backbone=sasrec,size={size}"
  config.overrides += (("eval.protocols", ("full", "uniform100_domain")),
                       ("eval.contexts", ("train",)))
  config.runs = {
    "source": {"config": f"configs/peterrec_ml1m.py:backbone=sasrec,size={size}", "overrides": ()},
    "target": run(f"configs/sasrec_ml1m.py:data=tgt,size={size}",
                  overrides=(("model.user_width", 0),)),
    "history": run(history),
    "history_model": run(history, source="source", mode="model"),
    "history_patch": run(history, source="source", mode="patch"),
    "neighbors": run("configs/item_knn.py:dataset=ml1m_tgt,of=user,history=ml1m_src", seeds=(0,)),
  }
  config.rows = (
    ("target alone", "target"),
    ("source history", "history"),
    ("source history, pre-trained", "history_model"),
    ("source history, adapters", "history_patch"),
    ("neighbors in the source", "neighbors"),
  )
  config.baseline = "target"
  config.comparisons = (
    ("target alone – popularity", "target", "popularity"),
    ("source history: pre-trained – not", "history_model", "history"),
    ("source history – neighbors", "history_model", "neighbors"),
  )
  config.notes = """\
- A fifth of the users, by a hash of their ids, has no training or validation interaction in the
  target domain. What they test on is ranked without anything that they did there; items that they
  own in no split are neither shown nor counted as mistakes.
- `target alone` reads what a user did in the target domain, the others what they did in the source:
  users who are not cold have either, and the rows are to be compared in the slice `cold`.
"""
