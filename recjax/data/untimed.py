"""Reads ratings without times, one file a domain, in an order that a seed decides.

Published "user item rating" files say neither when nor in which order their rows were given. To
hold out the last interaction of a user is then to hold out any: here a random one, of a seed, and
not the last of the file, whose order might be that of time or its reverse.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recjax import errors
from recjax.data import readers


class Untimed:
  """Reader (see `recjax.data.readers`) of several tables, each with the rows of one domain.

  Users are the same in all of them. Items are numbered apart, and become DOMAIN:ITEM. Times are
  random, a function of the seed, the domain and the row.
  """
  roles = ("user", "item", "time", "rating", "domain")
  ticks = 1

  def __init__(self, tables, *, seed):
    """Opens nothing yet.

    Args:
      tables: {domain: `readers.TextTable` with the roles user, item and rating}.
      seed: of the order.
    """
    self.name, self.sha256 = " and ".join(table.name for table in tables.values()), None
    self._tables, self._seed, self._begins = tables, seed, []

  def place(self, row):
    index = int(np.searchsorted(self._begins, row, side="right")) - 1
    return list(self._tables.values())[index].place(row - self._begins[index])

  def blocks(self):
    rows, self._begins = 0, []
    for number, (domain, table) in enumerate(self._tables.items()):
      self._begins.append(rows)
      rng = np.random.default_rng([self._seed, number])
      for block in table.blocks():
        rows += len(block.times)
        yield readers.Block(
          block.users, pc.binary_join_element_wise(domain, block.items, ":"),
          rng.integers(0, 2**31, len(block.times)), block.ratings,
          pa.array([domain] * len(block.times), pa.string()))
    self.sha256 = hashlib.sha256(
      "".join(table.sha256 for table in self._tables.values()).encode()).hexdigest()


def open_tables(paths, *, seed, rating_range, skip=0):
  """Returns the `Untimed` of {domain: path} of files with lines of user, item, rating and tabs.

  Args:
    paths: {domain: path}.
    seed: of the order.
    rating_range: (low, high), or None where any number is a rating.
    skip: lines of a header.
  """
  if bad := [domain for domain in paths if ":" in domain or not domain]:
    raise errors.UserError(f"config.files: {bad[0]!r} cannot name a domain")
  names = ["user", "item", "rating"]
  return Untimed({domain: readers.TextTable(
    readers.file(path), header=names, columns={name: name for name in names}, separator="\t",
    rating_range=rating_range, skip=skip) for domain, path in paths.items()}, seed=seed)
