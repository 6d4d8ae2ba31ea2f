"""What is kept from training: items, of which features alone are known, and users, cold both.

A cold user may be known from another domain (`histories.join`, which comes after this), or by a row
of a table that a source run has trained.
"""

import dataclasses

import numpy as np

from recjax import errors
from recjax.data import profiles


def hold_out(data, wanted):
  """Returns `data` with a share of its domain's items removed from the train and val splits.

  A user's interactions with them lose their split, but remain the user's own: they move before
  the train items, so that evaluators neither show them to a model nor count them as negatives. The
  test split is as it was, and a test item that is held out is a cold one.

  Args:
    data: `sequences.Dataset`, not sharded.
    wanted: (share of the domain's items, seed that decides which), `config.held_out_items`.
  """
  share, seed = _checked(data, wanted, "held_out_items")
  held = _choose(data, share, seed)
  gone, order, splits = _without(data, held)
  take = lambda values: None if values is None else np.asarray(values)[order]
  about = {"share": share, "seed": int(seed), "items": int(held.sum()),
           "interactions": int(gone.sum())}
  return dataclasses.replace(
    data, manifest={**data.manifest, "held_out_items": about,
                    "mean_train_length": _mean_length(data, splits)},
    items=take(data.items), times=take(data.times), ratings=take(data.ratings),
    baskets=take(data.baskets), splits=splits, held_out=held)


def hold_out_users(data, wanted):
  """Returns `data` in which a share of the users has no train and val interactions.

  These lose their split, but remain the users' own, so that evaluators neither show them to a model
  nor count them as negatives. The test split is as it was: that of cold users.

  Args:
    data: `sequences.Dataset`, not sharded.
    wanted: (share of the users, seed), `config.held_out_users`; users are chosen by a hash of their
      external id, the same ones in every data set.
  """
  share, seed = _checked(data, wanted, "held_out_users")
  held = profiles.parts(data, val=0, test=share, seed=seed) == profiles.PARTS.index("test")
  train, val = (np.where(held, data.lengths(split), 0).sum() for split in ("train", "val"))
  splits = np.array(data.splits)
  splits[held, :2] = 0
  about = {"share": share, "seed": int(seed), "users": int((data.lengths("test")[held] > 0).sum()),
           "interactions": int(train + val)}
  return dataclasses.replace(
    data, manifest={**data.manifest, "held_out_users": about,
                    "mean_train_length": _mean_length(data, splits)},
    splits=splits, held_out_users=held)


def _checked(data, wanted, field):
  """Returns (share, seed) of the config's `field`."""
  if len(wanted) != 2 or not isinstance(wanted[1], int):
    raise errors.UserError(f"{field} is (share, seed), not {wanted!r}")
  share, seed = wanted
  if data.shards is not None:
    raise errors.UserError(f"{field}: data set {data.name!r} is sharded; prepare it with "
                           "--config.shards=0")
  if not 0 < share < 1:
    raise errors.UserError(f"{field}: the share must be between 0 and 1, not {share}")
  return share, seed


def _mean_length(data, splits):
  """Returns the mean number of train interactions of the data set's users, as the manifest does."""
  users = max(data.manifest.get("users", data.num_users), 1)
  return round(float((splits[:, 0, 1] - splits[:, 0, 0]).sum()) / users, 6)


def _choose(data, share, seed):
  """Returns bool [N + 1]; data sets of the same external ids hold out the same items."""
  domain = np.flatnonzero(np.asarray(data.in_domain)[1:]) + 1
  by_name = domain[np.argsort(np.asarray(data.item_ids)[domain], kind="stable")]
  count = max(round(share * len(domain)), 1)
  held = np.zeros(data.num_items + 1, bool)
  held[by_name[np.random.default_rng(seed).permutation(len(domain))[:count]]] = True
  return held


def _without(data, held):
  """Returns (bool [R] rows that lose their split, int [R] the new order of rows, the new splits).

  They come first among their user's rows, and all others follow in the order that they had.
  """
  items, offsets, old = np.asarray(data.items), np.asarray(data.offsets), np.asarray(data.splits)
  user = np.repeat(np.arange(data.num_users + 1), np.diff(offsets))
  gone = held[items] & (_within(data, user, "train") | _within(data, user, "val"))
  gone &= ~_within(data, user, "test")  # where a legacy split overlaps
  order = np.lexsort((np.arange(len(items)), ~gone, user))
  start, count = offsets[:-1, None, None], np.concatenate([[0], np.cumsum(gone)])
  all_gone = np.bincount(user[gone], minlength=data.num_users + 1)[:, None, None]
  moved = old + all_gone - (count[start + old] - count[start])
  empty = old[:, :, :1] == old[:, :, 1:]
  return gone, order, np.where(empty, 0, moved).astype(np.int32)


def _within(data, user, split):
  """Returns bool [R]: which rows, of users int [R], are in a split."""
  begin, end = data.span(split)
  rows = np.arange(len(user))
  return (rows >= begin[user]) & (rows < end[user])
