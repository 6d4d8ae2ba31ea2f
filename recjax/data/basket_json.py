"""Reads baskets as JSON objects {user: [[-1], [item, ...], ..., [-1]]}, one file after another.

Next-basket data are shared so (Li et al. 2023, "A next basket recommendation reality check"): a
file of histories and one with the basket that follows each, -1 before the first and after the last.
"""

import hashlib

import numpy as np
import pyarrow as pa

from recjax import errors
from recjax.data import readers

END = [-1]


class BasketJson:
  """Reader of baskets; a basket's place among its user's is its time. See `recjax.data.readers`.

  Args:
    raws: `readers.Raw` of the files; each continues the users of the first, which names them all.
  """
  roles = ("user", "item", "time")
  ticks = 1

  def __init__(self, raws):
    self._raws, self.sha256, self._baskets = raws, None, []
    self.name = raws[0].name

  def place(self, row):
    file, user, number = self._baskets[int(np.searchsorted(self._begins, row, side="right")) - 1]
    return f"{file}: user {user!r}, basket {number}"

  def blocks(self):
    files = [(raw.name, readers.read_json(raw)) for raw in self._raws]
    users, items, times, self._baskets, begins = [], [], [], [], []
    for user in files[0][1]:
      when = 0
      for name, listed in files:
        for number, basket in enumerate(_baskets(name, user, listed.get(user)), 1):
          begins.append(len(users))
          self._baskets.append((name, user, number))
          users += [user] * len(basket)
          items += map(str, basket)
          times += [when] * len(basket)
          when += 1
    for name, listed in files[1:]:
      if strangers := listed.keys() - files[0][1].keys():
        raise errors.UserError(f"{name}: user {min(strangers)!r} is not in {files[0][0]}")
    if not users:
      raise errors.UserError(f"{self.name}: is empty (no baskets)")
    self._begins = np.array(begins)
    yield readers.Block(pa.array(users, pa.string()), pa.array(items, pa.string()),
                        np.array(times, np.int64))
    digest = hashlib.sha256()
    for raw in self._raws:
      digest.update(raw.read())
    self.sha256 = digest.hexdigest()


def _baskets(name, user, listed):
  """Returns the baskets of a user, checked."""
  whole = lambda item: type(item) is int and item >= 0
  if not isinstance(listed, list) or len(listed) < 3 or listed[0] != END or listed[-1] != END:
    raise errors.UserError(f"{name}: user {user[:40]!r}: [[-1], basket, ..., [-1]] expected, not "
                           f"{str(listed)[:60]}")
  for number, basket in enumerate(listed[1:-1], 1):
    if not (isinstance(basket, list) and basket and all(map(whole, basket))):
      raise errors.UserError(f"{name}: user {user[:40]!r}, basket {number}: a list of item numbers "
                             f"expected, not {str(basket)[:60]}")
  return listed[1:-1]
