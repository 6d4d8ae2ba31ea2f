"""One data set read after another: what users did there comes first, what they do here is new.

As PeterRec's task has it (Yuan et al. 2020): a user is known from one domain and cold in another.
"""

import dataclasses

import numpy as np

from recjax import errors
from recjax.data import ratings
from recjax.data import sequences


def join(data, other):
  """Returns `data` whose users' rows begin with the train split of `other`.

  Users and items are matched by external id; items that `data` does not know, or holds out of
  training, are left out. The
  train split is what comes from `other`, "targets" (`sequences.PARTS`) what trains in `data`, and
  validation and test are those of `data`, as are items, domain and `item_counts`. There are no
  times, ratings and baskets.
  """
  for part in (data, other):
    if part.shards is not None:
      raise errors.UserError(f"data set {part.name!r} is sharded, and config.history reads both "
                             "data sets in memory; prepare it with --config.shards=0")
  owner, items = _train(data, other)
  if not len(items):
    raise errors.UserError(f"config.history: no user of {data.name!r} has chosen an item in "
                           f"{other.name!r} that it knows")
  before = np.bincount(owner, minlength=data.num_users + 1)
  own = np.diff(np.asarray(data.offsets))
  offsets = np.concatenate([[0], np.cumsum(before + own)])
  rows = np.zeros(offsets[-1], np.int32)
  place = lambda users, first: first[users] + np.arange(len(users)) - np.searchsorted(users, users)
  rows[place(owner, offsets[:-1])] = items
  users = np.repeat(np.arange(len(own)), own)
  rows[place(users, offsets[:-1] + before)] = np.asarray(data.items)
  train, val, test = (np.asarray(data.splits)[:, index] for index in range(3))
  shift = lambda part: np.where((part[:, 1] > part[:, 0])[:, None], part + before[:, None], 0)
  history = np.stack([np.zeros_like(before), before], axis=1)
  splits = np.stack([history, shift(val), shift(test), shift(train)], axis=1).astype(np.int32)
  rule = {**data.manifest["split"], "history": other.identity()}
  return dataclasses.replace(
    data, manifest={**data.manifest, "split": rule}, offsets=offsets, items=rows, splits=splits,
    counts=np.stack([data.item_counts(split) for split in sequences.SPLITS]), times=None,
    ratings=None, baskets=None)


def _train(data, other):
  """Returns (users ascending, items), as `data` numbers them, of the train split of `other`."""
  begin, end = other.span("train")
  users = ratings.find(other.user_ids, data.user_ids)[np.repeat(np.arange(len(begin)), end - begin)]
  items = ratings.find(other.item_ids, data.item_ids)[
    sequences.take_ranges(other.items, begin, end)]
  keep = (users > 0) & (items > 0)
  if data.held_out is not None:
    keep &= ~data.held_out[items]
  keep = np.flatnonzero(keep)
  order = keep[np.argsort(users[keep], kind="stable")]
  return users[order], items[order]
