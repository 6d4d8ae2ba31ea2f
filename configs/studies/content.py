"""What do texts and attributes of movies add, read how, and joined how? MovieLens-1M, cold target.

SASRec on the target domain, whose movies have few ratings. Read: genres, words of titles, words of
titles and plots; plots by word averages, CNN, BiGRU with attention, transformer; all joined to the
movies' own vectors by sum. Joined: word averages and genres by sum, gate, mlp, concat, and in place
of the movies' own vectors (replace).

Full size: five seeds, width 64, for a GPU. `:cpu`: three seeds, width 32, the last 20 movies of a
user, 6 epochs, 36 runs, 16 minutes of a core.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/content.py:cpu --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec

READ = (("genres", "genre", "features=genre"), ("titles", "title", "of=title"),
        ("titles and plots", "plot", "of=title+plot"),
        ("plots: CNN", "cnn", "of=title+plot,encoder=cnn"),
        ("plots: BiGRU, attention", "bigru", "of=title+plot,encoder=bigru_attention"),
        ("plots: transformer", "transformer", "of=title+plot,encoder=transformer_cls"))
JOINED = ("sum", "gate", "mlp", "concat", "replace")


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Content of movies, MovieLens-1M's target domain (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4),
    overrides=(("total_epochs", 6.0), ("eval.every_epochs", 2.0), ("model.max_len", 20),
               ("eval.contexts", ("train",))) if arg.cpu else ())
  path = f"configs/content_ml1m.py:data=tgt,size={size}"
  config.runs = {"ids": {"config": path, "overrides": (("model.features", ()),
                                                       ("model.aggregate", None))}}
  config.rows = (("ids alone", "ids"),)
  for title, run, tail in READ:
    config.runs[run] = {"config": f"{path},{tail}"}
    config.rows += ((title, run),)
  for how in JOINED:
    config.runs[how] = {"config": f"{path},features=text+genre,of=title+plot,g={how}"}
    config.rows += ((f"plots and genres: {how}", how),)
  config.baseline = "ids"
  encoders = ("cnn", "bigru", "transformer")
  config.comparisons = (
    ("ids – popularity", "ids", "popularity"),
    *((f"plots: {run} – word average", run, "plot") for run in encoders),
    *((f"plots and genres: {how} – sum", how, "sum") for how in JOINED[1:]))
  config.claims = (
    ("What is known of movies helps", tuple((run, "ids") for _, run in config.rows[1:])),
    ("Encoders of documents are better than averages of words",
     tuple((run, "plot") for run in encoders)))
  config.published = {}
  config.notes = """\
- Words and encoders are learned with the model, from nothing: vectors of a language model would
  join as `features=given` (configs/content_ml1m.py).
- All movies have a title and genres; plots are those of the OMDb-style table."""
  return config
