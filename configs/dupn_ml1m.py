"""DUPN on MovieLens-1M: many tasks share one user representation, and a new task takes it over.

`tasks` are trained at once, as a weighted sum whose parts metrics.jsonl reports apart:

  click   is the next movie rated 4 or more?             AUC
  shop    who directed the movie that comes next?        accuracy, MRR
  price   from which decade is it?                       accuracy, MRR

These are proxies. MovieLens has no clicks, shops and prices, and no kinds of behavior: properties
of past behaviors are the rating, log2 of the seconds since the behavior before, and the hour of the
day.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/dupn_ml1m.py:tasks=click+price,size=cpu \\
      --workdir=runs/dupn --config.data_dir=DATA
    python -m recjax.train --config=configs/dupn_ml1m.py:tasks=shop,size=cpu --workdir=runs/shop \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/dupn --config.transfer.mode=model

The transfer carries tables, LSTM and attention; a task's head is its own and always fresh. With
--config.transfer.freeze="(embed|lstm|attention)/.*" the head alone is trained. Weights are those of
--config.objective.mix.parts. `configs/studies/dupn.py` compares all of it (README.md has what it
found). The paper's numbers are of Taobao's own data: there is nothing to check ours against.

Directors and genres are read of movies; of the users who they are and, without
--config.model.user_width=0, a vector each.

Arguments: tasks=click+shop+price (any of them, joined by +), data=all|src|tgt, size=full|cpu.
"""

from configs import common
from recjax import errors
from recjax import spec

TASKS = {"click": "click", "shop": "shop_preference", "price": "price_preference"}
METRICS = {"click": "auc", "shop_preference": "accuracy", "price_preference": "accuracy"}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, tasks="click+shop+price", data="all", size="full")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  tasks = [errors.choose(TASKS, task, "tasks") for task in arg.tasks.split("+")]
  config = common.get_config()
  config.dataset = errors.choose({"all": "ml1m", "src": "ml1m_src", "tgt": "ml1m_tgt"}, arg.data,
                                 "data")
  wide = 8 if small else 16
  config.model = dict(
    name="dupn", variant="dupn", dtype="float32", dropout=0.2,
    item_width=32 if small else 64, user_width=16 if small else 32,
    fields=(("director", wide, 1), ("genre", wide, 3)),  # (attribute, width, slots)
    properties=(("rating", 8), ("gap", 8), ("hour", 8)),
    profile=(("gender", 4), ("age", 4), ("occupation", 8)),
    hidden=64 if small else 128, attention=32 if small else 64,
    widths=(64, 32) if small else (256, 128), max_len=30 if small else 100)
  config.objective.name = "mix"
  config.objective.mix.parts = tuple((task, 1.0) for task in tasks)
  # liked: rated with at least `threshold`; clicks: chosen, told from `num_negatives` others.
  config.objective.click = dict(of="liked", threshold=4.0, num_negatives=4)
  config.objective.shop_preference = dict(attribute="director")
  config.objective.price_preference = dict(attribute="decade")  # or rating
  config.batch_size = 128
  config.total_epochs = 30.0 if small else 200.0
  config.eval.update(metric=f"{tasks[0]}/{METRICS[tasks[0]]}", protocols=tuple(tasks),
                     contexts=("train",), every_epochs=2.0 if small else 5.0, patience=None)
  return config


def sweep(add):
  """Sizes of steps and weights of all three tasks, chosen on validation of the first one."""
  for lr in (3e-4, 1e-3, 3e-3):
    for weight in (0.3, 1.0):
      add(**{"optim.lr": lr, "objective.mix.parts": (
        ("click", 1.0), ("shop_preference", weight), ("price_preference", weight))})
