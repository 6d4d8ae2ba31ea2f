"""Tiny data sets with ratings, times and titles, and configs of models that answer questions."""

import dataclasses
import functools

import numpy as np
import tiny

from recjax import transfer, trees
from recjax.data import sequences

DECADES = 4
TASKS = {"click": dict(of="liked", threshold=4.0, num_negatives=2),
         "shop_preference": dict(attribute="genre"), "price_preference": dict(attribute="decade")}
FEATURES = (("title", {"kind": "text", "width": 4, "min_count": 1}),
            ("genre", {"kind": "attribute", "width": 2}))


@functools.cache
def root():
  """Returns a folder of this test process with `src` and `tgt`."""
  folder = tiny.root() / "responses"
  rng = np.random.default_rng(0)
  for name in ("src", "tgt"):
    data = sequences.load(tiny.root() / "data", name)
    titles = [b"A story %d (19%d5)" % (int(item[1:]) % 7, 5 + int(item[1:]) % DECADES)
              for item in np.asarray(data.item_ids)[1:].tolist()]
    rows = len(data.items)
    sequences.save(folder / name, dataclasses.replace(
      data, texts={"title": np.array([b"", *titles])}, times=np.cumsum(rng.integers(0, 9000, rows)),
      ratings=rng.integers(1, 6, rows).astype(np.float32)))
  return folder


def data(name="src"):
  """Returns one of the data sets."""
  return sequences.load(root(), name)


def config(tasks, dataset="src", *, model, **fields):
  """Returns the config of a run of 6 steps; of several tasks they are mixed, the first decides.

  Args:
    tasks: {objective: weight}.
    dataset: src or tgt.
    model: `config.model`.
    **fields: see `tiny.config`.
  """
  first = next(iter(tasks))
  metric = "auc" if first == "click" else "accuracy"
  found = tiny.config(dataset, data_dir=str(root()), micro_batch=None, total_steps=6, **{
    "eval.every_steps": 3, "eval.metric": f"{first}/{metric}", "eval.protocols": tuple(tasks),
    "eval.contexts": ("train",), "checkpoint.every_steps": 2, "log.every_steps": 3})
  with found.unlocked():
    found.model = model
    found.objective.name = first if len(tasks) == 1 else "mix"
    found.objective.mix.parts = tuple(tasks.items())
    for task, options in TASKS.items():
      found.objective[task] = dict(options)
    for name, value in fields.items():
      *parents, last = name.split(".")
      functools.reduce(lambda node, parent: node[parent], parents, found)[last] = value
  return found


def plan(source, target, mode):
  """Returns what a transfer between two Experiments carries, decided without training either."""
  return transfer.make_plan(
    target.params_shapes(), trees.flatten(source.params_shapes()),
    target.model.transfer_rules(mode), row_tables=target.model.row_tables(),
    target_rows=target.rows(), source_rows=source.rows())


def dupn(**overrides):
  """Returns the `config.model` of a small DUPN that reads everything."""
  return dict(dict(
    name="dupn", variant="dupn", dtype="float32", fields=(("genre", 3, 2),),
    properties=(("rating", 2), ("gap", 2), ("hour", 2)), profile=(("group", 2),), item_width=4,
    user_width=3, hidden=6, attention=4, widths=(5,), max_len=8, dropout=0.1), **overrides)


def sessrec(**overrides):
  """Returns the `config.model` of a small BERT4SessRec."""
  return dict(dict(
    name="bert4sessrec", variant="bert4sessrec", dtype="float32", fields=(), features=FEATURES,
    num_layers=1, item_width=8, heads=2, hidden=16, max_len=8, widths=(6,), read="mask"),
    **overrides)
