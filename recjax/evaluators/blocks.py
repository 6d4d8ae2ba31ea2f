"""Evaluation of a sharded data set: users are read and evaluated some thousands at a time."""

import dataclasses

import numpy as np

from recjax import errors
from recjax.evaluators import held_out, values

USERS = 1 << 16


class Blocks:
  """An evaluator made of one for each block of users, which holds the rows of these alone.

  Users, negatives and metrics are those that one evaluator of the whole would have. What all users
  have is kept: their numbers and metrics. A single block (`max_users` of `USERS` at most) stays in
  memory; several are read anew each time.

  Args:
    data: `sequences.Dataset` with shards.
    make: (data) -> evaluator of all users that `data` has in `split`, drawing no negatives from a
      cache.
    split: val or test.
    max_users: evaluate a fixed random subset of this size; None is all.
    seed: of this choice.
    size: users in a block.
  """

  def __init__(self, data, make, *, split, max_users, seed, size=None):
    users = held_out.choose_users(data, split, max_users, seed)
    size = size or USERS
    self._parts = [users[low:low + size] for low in range(0, len(users), size)]
    self._data, self._make, self._split = data, make, split
    self._first = self._evaluator(self._parts[0])  # Mistakes show now.
    self.contexts = self._first.contexts
    if len(self._parts) > 1:
      self._first = None

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of all blocks; see `ranking.Ranking.run`."""
    return _join([e.run(predict, params, contexts=contexts) for e in self._evaluators()])

  def references(self):
    """Returns {name: Results} of what every table shows beside models."""
    found = [evaluator.references() for evaluator in self._evaluators()]
    return {name: _join([table[name] for table in found]) for name in found[0]}

  def _evaluators(self):
    for users in self._parts:
      yield self._first or self._evaluator(users)

  def _evaluator(self, users):
    evaluator = self._make(self._data.only(users))
    if not np.array_equal(evaluator.users, users):
      raise errors.UserError(f"data set {self._data.name!r}: the users of its {self._split} split "
                             "are not those of its shards; prepare the data again")
    return evaluator


def _join(results):
  """Returns the `Results` of all users, in the order of `results`."""
  first = results[0]
  users = np.concatenate([r.users for r in results])
  positives = None
  if first.positives is not None:
    starts = np.cumsum([0, *(len(r.users) for r in results[:-1])])
    rows = [r.positives.rows + start for r, start in zip(results, starts, strict=True)]
    positives = values.Positives(
      np.concatenate(rows).astype(np.int32), np.concatenate([r.positives.items for r in results]),
      _concatenate([r.positives.values for r in results]))
  return dataclasses.replace(first, users=users, values=_concatenate([r.values for r in results]),
                             positives=positives)


def _concatenate(nestings):
  """Returns one nesting of dicts whose arrays are those of `nestings`, one after the other."""
  if isinstance(nestings[0], dict):
    return {key: _concatenate([nesting[key] for nesting in nestings]) for key in nestings[0]}
  return np.concatenate(nestings)
