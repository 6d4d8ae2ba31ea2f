"""Slices of an evaluation: users by the length of their history, true items by popularity.

A user's history is its train items in the run's own data set. An item's popularity is its train
interactions there: "tail", "mid" and "head" hold a third of all of them each, as nearly as items of
one count can be kept together, and "cold" has none; "frequency" goes by the count itself. A user's
value in a slice of items is the mean over its test items there, so that users count alike.
"""

import dataclasses

import numpy as np

HISTORY = ("cold", "1-3", "4-10", "11-50", ">50")
POPULARITY = ("cold", "tail", "mid", "head")
FREQUENCY = ("0", "1-3", "4-10", ">10")
OF_ITEMS = {"popularity": POPULARITY, "frequency": FREQUENCY}
# What a held-out item by itself has in place of its user's metric.
_FAMILIES = {"ndcg": "dcg", "recall": "hit", "mrr": "rr"}
_LONGER = (1, 4, 11, 51)  # where the slices of HISTORY after the first begin


def of_history(lengths):
  """Returns int8 [n], places in HISTORY, of train lengths [n]."""
  return np.digitize(lengths, _LONGER).astype(np.int8)


def of_frequency(counts):
  """Returns int8 [N + 1], places in FREQUENCY, of items' train interactions [N + 1]."""
  return np.digitize(counts, _LONGER[:3]).astype(np.int8)


def of_popularity(counts):
  """Returns int8 [N + 1], places in POPULARITY, of items' train interactions [N + 1].

  Items of one count share a slice: the third that holds the middle of what they have together.
  """
  values, member = np.unique(counts, return_inverse=True)
  mass = values * np.bincount(member)
  total = mass.sum()
  middle = (np.cumsum(mass) - mass / 2) / max(total, 1)
  third = np.minimum(middle * 3, 2).astype(np.int8) + 1
  return np.where(values > 0, third, 0).astype(np.int8)[member.reshape(-1)]


def stands_for(name, metric):
  """Returns whether `name` is what a single item has in place of `metric`, at any cut-off."""
  family = metric.partition("@")[0]
  return name.partition("@")[0] == _FAMILIES.get(family, family)


def by_user(values, rows, classes, users):
  """Returns float32 [users, len(POPULARITY)]: each user's mean over its items of each class.

  NaN where a user has none.

  Args:
    values: [P], one per held-out item.
    rows: int [P], whose it is.
    classes: int [P], places in POPULARITY.
    users: how many users there are.
  """
  cell = rows.astype(np.int64) * len(POPULARITY) + classes
  size = users * len(POPULARITY)
  number = np.bincount(cell, minlength=size)
  total = np.bincount(cell, weights=values, minlength=size)
  mean = np.divide(total, number, out=np.full(size, np.nan), where=number > 0)
  return mean.astype(np.float32).reshape(users, len(POPULARITY))


def summarize(found, context, lengths, item_counts, in_domain):
  """Returns {"history", "popularity", "frequency": {slice: table}} of what was measured.

  A table holds its numbers of users, items and held-out items, and {PROTOCOL: {METRIC: mean}} under
  each name of `found`; nothing under the name where the slice has no user.

  Args:
    found: {name: Results} of the same users.
    context: whose values to take.
    lengths: train lengths of the users, [n].
    item_counts: train interactions of all items, [N + 1].
    in_domain: bool [N + 1].
  """
  first = next(iter(found.values()))
  member = of_history(lengths)
  history = {}
  for place, name in enumerate(HISTORY):
    rows = np.flatnonzero(member == place)
    history[name] = {"users": len(rows), **{row: _means(results, context, rows) if len(rows) else {}
                                            for row, results in found.items()}}
  if first.positives is None:
    return {"history": history}
  counts = np.where(in_domain, item_counts, 0)
  places = {"popularity": of_popularity(counts), "frequency": of_frequency(counts)}
  return {"history": history, **{
    kind: _by_item(found, context, len(lengths), item_counts, in_domain, names, places[kind])
    for kind, names in OF_ITEMS.items()}}


def _by_item(found, context, users, item_counts, in_domain, names, slices):
  """Returns {slice: table} of the slices `names`, in which items have the places `slices`."""
  first = next(iter(found.values())).positives
  classes = slices[first.items]
  number = by_user(np.ones(len(classes)), first.rows, classes, users)
  out = {}
  for place, name in enumerate(names):
    of_domain = (slices == place) & in_domain
    of_domain[0] = False
    counts = item_counts[of_domain]
    out[name] = {"users": int(np.isfinite(number[:, place]).sum()),
                 "positives": int((classes == place).sum()), "items": len(counts),
                 "interactions": int(counts.sum()),
                 "train_counts": [int(counts.min()), int(counts.max())] if len(counts) else []}
  for row, results in found.items():
    for name in names:
      out[name][row] = {}
    for protocol, table in results.positives.values[context].items():
      for metric, values in table.items():
        cells = by_user(values, first.rows, classes, users)
        for place, name in enumerate(names):
          if out[name]["users"]:
            mean = float(np.nanmean(cells[:, place], dtype=np.float64))
            out[name][row].setdefault(protocol, {})[metric] = mean
  return out


def _means(results, context, rows):
  """Returns the means of the users in `rows` alone, as their evaluator forms them."""
  table = {protocol: {metric: value[rows] for metric, value in part.items()}
           for protocol, part in results.values[context].items()}
  part = dataclasses.replace(
    results, users=results.users[rows], values={context: table}, positives=None)
  return part.means()[context]
