"""DUPN's question: does a representation of many tasks help a new one, and does it learn sooner?

A new task, `new=shop` (who directed the next movie), `price` (from which decade it is) or `click`
(is it rated 4 or more), is learned after the two others by what they have learned: the head alone
(frozen), everything (fine-tuned), and from scratch; learning curves and "steps to the baseline's
best" show how soon. The two others stand beside themselves trained one by one. The survey lists
clicks, shops and prices as the pre-training tasks; as far as we recall, the paper has shops as the
task that is transferred to. All of them are proxies here (configs/dupn_ml1m.py).

Data that were prepared before users' attributes were kept must be prepared again.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/dupn.py:cpu --workdir=W --config.data_dir=DIR

Full size: three seeds, 18 runs, for a GPU or TPU. `:cpu`: small models, one pre-training for the
three seeds of each arm, single tasks once, 12 runs, 8 minutes of an AVX-512 core. The full size has
not been run.
"""

from configs import dupn_ml1m
from configs.studies import common
from recjax import errors
from recjax import spec

FROZEN = "(embed|lstm|attention)/.*"


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, new="shop", cpu=False)
  errors.choose(dupn_ml1m.TASKS, arg.new, "new")
  size = "cpu" if arg.cpu else "full"
  old = [task for task in dupn_ml1m.TASKS if task != arg.new]
  name = lambda task: dupn_ml1m.TASKS[task]
  metric = dupn_ml1m.METRICS[name(arg.new)]
  config = common.study(
    f"DUPN on MovieLens-1M, new task {name(arg.new)} (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2),
    headline=("accuracy", "auc", "mrr") if metric == "accuracy" else (
      "auc", "accuracy", "mrr"))

  path = f"configs/dupn_ml1m.py:size={size},tasks="
  sources = config.seeds[:1] if arg.cpu else config.seeds
  started = {"source": "together", "mode": "model",
             "source_seeds": sources * (len(config.seeds) // len(sources))}
  tune = path + arg.new
  config.runs = {
    "together": {"config": path + "+".join(old), "seeds": sources},
    **{f"alone_{task}": {"config": path + task, "seeds": sources} for task in old},
    "scratch": {"config": tune},
    "frozen": {"config": tune, "overrides": (("transfer.freeze", FROZEN),), **started},
    "tuned": {"config": tune, **started}}
  config.rows = (
    ("new task, from scratch", "scratch"), ("new task, frozen", "frozen"),
    ("new task, fine-tuned", "tuned"), (f"{' and '.join(old)} together", "together"),
    *((f"{task} alone", f"alone_{task}") for task in old))
  config.baselines = {"frozen": "scratch", "tuned": "scratch"}
  own = f"{name(arg.new)}/{metric}"
  of = lambda task: f"{name(task)}/{dupn_ml1m.METRICS[name(task)]}"
  config.comparisons = (
    ("fine-tuned – frozen", "tuned", "frozen"),
    *((f"together – {task} alone", "together", f"alone_{task}") for task in old))
  reference = "item_user_bias" if arg.new == "click" else "personal_frequency"
  config.claims = (
    ("What was learned of other tasks helps the new one", (("tuned", "scratch"),), own),
    ("Fine-tuning is better than the head alone", (("tuned", "frozen"),), own),
    (f"The new task is learned beyond {reference}", (("tuned", reference),), own),
    *((f"Together is better than {task} alone", (("together", f"alone_{task}"),), of(task))
      for task in old))
  config.published = {}
  config.notes = """\
- Clicks are ratings of 4 and more, shops are directors and prices are decades of the next movie.
- `personal_frequency` names the class that the user has chosen most often, `majority` the one that
  everybody has; `item_user_bias` is the mean rating with the item's and the user's biases.
- A claim that asks for no less than noise allows, as "together at least as good as alone", cannot
  be shown by a test that finds no difference: read the intervals of the comparisons."""
  if arg.cpu:
    config.notes += common.SHARED
  return config
