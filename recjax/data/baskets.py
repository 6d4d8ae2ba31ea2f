"""Baskets: what a user chose at once, as runs of rows."""

import numpy as np


class Baskets:
  """The baskets of all users: consecutive rows of one user with the same mark.

  Attributes:
    numbers: int32 [R], the basket of every row, counted from 1 within its user.
    counts: int64 [U + 1], baskets of each user.
    total: how many there are.

  Args:
    marks: [R], in the order of the rows: their times, or what else tells baskets apart.
    offsets: int64 [U + 2]; user u owns rows offsets[u]:offsets[u + 1].
  """

  def __init__(self, marks, offsets):
    marks, offsets = np.asarray(marks), np.asarray(offsets)
    begins = np.ones(len(marks), bool)
    begins[1:] = marks[1:] != marks[:-1]
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    before = np.concatenate([[0], np.cumsum(begins)])  # baskets that begin before a row
    self._first = np.append(np.flatnonzero(begins), len(marks))
    self._offsets, self._before = offsets, before[offsets]
    self.counts, self.total = np.diff(self._before), int(begins.sum())
    users = np.repeat(np.arange(len(self.counts)), np.diff(offsets))
    self.numbers = (before[1:] - self._before[users]).astype(np.int32)

  def rows(self, ranges):
    """Returns ranges of baskets as ranges of rows, relative to each user's first.

    Args:
      ranges: int [U + 1, ...] edges, each 0..counts of its user.
    """
    shape = (-1,) + (1,) * (ranges.ndim - 1)
    found = self._first[self._before[:-1].reshape(shape) + ranges]
    # The last edge of a user is the next user's first row; of the last basket of all, the end.
    return (found - self._offsets[:-1].reshape(shape)).astype(np.int32)
