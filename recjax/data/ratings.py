"""What models and evaluators ask about ratings: facts, row names, ratings of another data set."""

import functools

import numpy as np

from recjax import errors
from recjax.data import sequences
from recjax.data import vocabulary

MAX_LEVELS = 10
ITEM_SHRINK, USER_SHRINK = 5, 3  # ratings of the mean that an item and a user start with


def train_rows(data):
  """Returns (users, items, ratings float32), one entry for each rating of the train split."""
  if data.ratings is None:
    raise errors.UserError(f"data set {data.name!r} has no ratings")
  begin, end = data.span("train")
  users = np.repeat(np.arange(len(begin)), end - begin)
  take = lambda values: sequences.take_ranges(values, begin, end)
  return users, take(data.items), take(data.ratings).astype(np.float32)


def facts(data):
  """Returns {model attribute: function that finds it in the train split of `data`}."""
  values = functools.cache(lambda: train_rows(data)[2])
  return {"rating_mean": lambda: float(np.mean(values(), dtype=np.float64)),
          "rating_range": lambda: (float(values().min()), float(values().max())),
          "rating_levels": lambda: levels(data)}


def levels(data):
  """Returns the distinct ratings of the train split, ascending; UserError where they are many."""
  found = np.unique(train_rows(data)[2])
  if len(found) > MAX_LEVELS:
    raise errors.UserError(f"data set {data.name!r} has {len(found)} distinct ratings; a model "
                           f"that reads them as tags takes {MAX_LEVELS}: round them first")
  return tuple(map(float, found))


def biases(data):
  """Returns (mean, item [N + 1], user [U + 1]): shrunk mean residuals of the train split."""
  users, items, values = train_rows(data)
  mean = values.mean(dtype=np.float64)
  def shrunk(owner, residual, size, shrink):
    return np.bincount(owner, residual, size) / (np.bincount(owner, minlength=size) + shrink)
  item = shrunk(items, values - mean, data.num_items + 1, ITEM_SHRINK)
  user = shrunk(users, values - mean - item[items], data.num_users + 1, USER_SHRINK)
  return mean, item, user


def item_table(data):
  """Returns {"item_rating": float32 [N]}: the shrunk mean rating of every item."""
  mean, item, _ = biases(data)
  return {"item_rating": (mean + item[1:]).astype(np.float32)}


def row_names(data, used):
  """Returns {vocabulary: (names, trained)} of those `used` that only rating models have.

  "rated" is items 1..N without padding, "rating" the levels, MASK and unknown; see `vocabulary`.
  """
  names = {}
  if "rated" in used:
    names["rated"] = np.asarray(data.item_ids[1:]), np.asarray(data.in_domain[1:])
  if "rating" in used:
    known = [b"%g" % level for level in levels(data)]
    tags = np.array([*known, vocabulary.MASK, vocabulary.UNKNOWN])
    names["rating"] = tags, np.ones(len(tags), bool)
  return names


def extra_tables(data, other):
  """Returns what the users of `data` rated in the train split of `other`, as arrays for a device.

  Users and items are matched by external id. Items of `data`'s own domain are left out: nothing
  that `data` holds out can come in this way.

  Returns:
    {"extra_offsets" int32 [U + 2]: user u owns rows offsets[u]:offsets[u + 1] of the others,
    "extra_items" int32 [R], "extra_ratings" float32 [R]}, most recent last.
  """
  users, items, values = train_rows(other)
  users = find(other.user_ids, data.user_ids)[users]
  items = find(other.item_ids, data.item_ids)[items]
  keep = (users > 0) & (items > 0) & ~np.asarray(data.in_domain)[items]
  if not keep.any():
    raise errors.UserError(f"model.extra_ratings: no user of {data.name!r} has rated an item of "
                           f"another domain in {other.name!r}")
  order = np.flatnonzero(keep)[np.argsort(users[keep], kind="stable")]
  counts = np.bincount(users[order], minlength=data.num_users + 1)
  offsets = np.concatenate([[0], np.cumsum(counts)])
  return {"extra_offsets": offsets.astype(np.int32), "extra_items": items[order].astype(np.int32),
          "extra_ratings": values[order]}


def find(theirs, ours):
  """Returns int64 [len(theirs)]: the row of each name in `ours`, 0 where it is unknown."""
  width = max(np.asarray(theirs).dtype.itemsize, np.asarray(ours).dtype.itemsize)
  theirs, ours = np.asarray(theirs).astype(f"S{width}"), np.asarray(ours).astype(f"S{width}")
  order = np.argsort(ours, kind="stable")
  place = np.minimum(np.searchsorted(ours[order], theirs), len(ours) - 1)
  return np.where(ours[order][place] == theirs, order[place], 0)
