"""Which of a user's interactions train, validate and test: one small rule for every data set."""

import dataclasses

import numpy as np

from recjax import errors

ORDERS = ("time", "file")
UNITS = ("interactions", "baskets")


@dataclasses.dataclass(frozen=True)
class Rule:
  """How one data set is cut from all interactions, each user's being in `order`.

  Of the n interactions that a user has left after `keep_last`, the last `test` test, the `val`
  before them validate and all before those train, or only the latest `train` of them. With fewer
  than `min_full` the user gives up validation; with fewer than `min_interactions` the user is too
  short and gets no split. With `unit` "baskets" all numbers count baskets.
  """
  domain: str | None = None  # the rows of one domain; None is all of them
  order: str = "time"  # or "file": the rows of the raw file as they stand, whatever their times
  keep_last: int = 0  # keep only so many of each user's interactions, the latest; 0 keeps all
  train: int = 0  # train on the latest so many; older ones are in no split, but never negatives
  val: int = 1
  test: int = 1
  min_interactions: int = 3
  min_full: int = 0  # 0: as min_interactions
  min_item_interactions: int = 1  # an item with fewer in the domain leaves it, and its rows go
  drop_short: bool = True  # False: too short users still count as users, with no training items
  unit: str = "interactions"  # or "baskets": what train, val, test and min_... count
  legacy_overlap: bool = False  # users below min_full validate on test[:-1], a leak
  legacy_drop_last_user: bool = False  # leave out the last user, as the survey's release did

  def __post_init__(self):
    if self.order not in ORDERS:
      raise errors.UserError(f"split rule: order {self.order!r} is none of {', '.join(ORDERS)}")
    if self.unit not in UNITS:
      raise errors.UserError(f"split rule: unit {self.unit!r} is none of {', '.join(UNITS)}")
    if self.unit == "baskets" and (self.keep_last or self.order != "time"):
      raise errors.UserError("split rule: baskets are cut in the order of time, and keep_last, "
                             "which counts interactions, would cut through one")
    if min(self.keep_last, self.train, self.val, self.min_full) < 0 or self.test < 1:
      raise errors.UserError(
        "split rule: keep_last, train, val and min_full are >= 0 and test is >= 1")
    full, short = self.min_full or self.min_interactions, self.min_interactions
    if full < short or full < self.val + self.test + 1 or short < self.test + 1:
      raise errors.UserError(
        f"split rule: min_interactions {short} leaves no training item beside test {self.test}, or "
        f"min_full {full} none beside val {self.val} and test {self.test}")
    if 0 < self.keep_last < full:
      raise errors.UserError(f"split rule: keep_last {self.keep_last} is below min_full {full}, so "
                             "that no user would be split in full")


def parse(fields, name):
  """Returns the `Rule` of a mapping; unknown fields are errors."""
  known = {f.name: f.type for f in dataclasses.fields(Rule)}
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise errors.UserError(f"data set {name}: unknown field {unknown[0]!r} of a split rule; there "
                           f"are {', '.join(known)}")
  return Rule(**fields)


def describe(rule):
  """Returns the rule as a JSON-able dict, the same as ever for rules that older versions knew.

  It is part of a data set's identity, which runs compare before they resume.
  """
  fields = dataclasses.asdict(rule)
  if rule.order == "time":
    del fields["order"]
  if rule.unit == "interactions":
    del fields["unit"]
  if not rule.train:
    del fields["train"]
  return fields


def kept_lengths(counts, rule):
  """Returns int64 [U + 1]: how many of `counts` interactions each user keeps."""
  kept = np.minimum(counts, rule.keep_last) if rule.keep_last else counts.copy()
  if rule.legacy_drop_last_user:
    kept[-1] = 0
  return kept


def ranges(lengths, rule):
  """Returns int32 [U + 1, 3, 2]: [begin, end) of train, val and test for users of these lengths.

  Users that are too short own three empty ranges.
  """
  n = np.asarray(lengths, np.int64)
  full = n >= (rule.min_full or rule.min_interactions)
  split = n >= rule.min_interactions
  test = n - rule.test
  val_end = test.copy()
  val = np.where(full, test - rule.val, test)
  train_end = np.where(full, test - rule.val, test)
  if rule.legacy_overlap:
    # The survey's code takes items[-3:-1] to validate on from users with no room for validation.
    val_end = np.where(full, val_end, n - 1)
    val = np.where(full, val, np.maximum(n - 1 - rule.val, train_end))
  train = np.maximum(train_end - rule.train, 0) if rule.train else np.zeros_like(n)
  table = np.stack([np.stack([train, train_end], -1), np.stack([val, val_end], -1),
                    np.stack([test, n], -1)], 1)
  return np.where(split[:, None, None], table, 0).astype(np.int32)
