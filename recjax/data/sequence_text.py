"""Reads files of one user a line, "user item item ..." or "user item|time item|time ...".

Two-domain data sets are often published so, with numbers for users and items and JSON files that
say which external ids they stand for and which domain an item belongs to.
"""

import hashlib
import re

import numpy as np
import pyarrow as pa

from recjax import errors
from recjax.data import readers

MAX_LINE = 64 << 20  # bytes of all of a user's interactions
TIME = re.compile(r"-?[0-9]{1,18}")  # fits int64


class SequenceText:
  """Reader of one user a line; rows count over all lines. See `recjax.data.readers`.

  Without times an interaction's place in its line is its time, in seconds.
  """
  roles = ("user", "item", "time")

  def __init__(self, raw, *, users=None, items=None, time_unit="s"):
    """Opens nothing yet.

    Args:
      raw: a `readers.Raw`.
      users: {user of the file: external id}, or None where they are the same.
      items: likewise.
      time_unit: s, ms, us or ns.
    """
    if readers.UNITS.get(time_unit) is None or time_unit == "iso":
      raise errors.UserError(f"time_unit {time_unit!r} is none of s, ms, us, ns")
    self.name, self.raw, self.users, self.items = raw.name, raw, users, items
    self.unit = readers.UNITS[time_unit]
    self.ticks = self.unit
    self.sha256 = None
    self._begins = []  # the first row of every line

  def place(self, row):
    line = int(np.searchsorted(self._begins, row, side="right"))
    return f"{self.name} line {line}, item {row - self._begins[line - 1] + 1}"

  def blocks(self):
    digest, lines, self._begins = hashlib.sha256(), {}, []
    users, items, times, rows, timed = [], [], [], 0, None
    for number, line in enumerate(self._lines(digest), 1):
      user, *tokens = line.split()
      timed = "|" in tokens[0] if timed is None and tokens else timed
      mistake = self._mistake(user, tokens, timed)
      if not mistake and (first := lines.setdefault(user, number)) != number:
        mistake = f"user {user!r} has line {first} already"
      if mistake:
        raise errors.UserError(f"{self.name} line {number}: {mistake}")
      pairs = [token.rpartition("|") for token in tokens] if timed else None
      names = [pair[0] for pair in pairs] if timed else tokens
      self._begins.append(rows)
      users += [self.users[user] if self.users else user] * len(names)
      items += [self.items[name] for name in names] if self.items else names
      times += [int(pair[2]) for pair in pairs] if timed else range(len(names))
      rows += len(names)
      if len(users) >= readers.BLOCK_ROWS:
        yield self._block(users, items, times)
        users, items, times = [], [], []
    if not rows:
      raise errors.UserError(f"{self.name}: is empty (no rows)")
    if users:
      yield self._block(users, items, times)
    self.ticks = self.unit if timed else 1
    self.sha256 = digest.hexdigest()

  def _lines(self, digest):
    """Yields the lines as texts; blank ones at the end of the file are left out."""
    blank = 0
    with self.raw.open() as stream:
      for number in range(1, 1 << 62):
        line = stream.readline(MAX_LINE + 1)
        if not line:
          return
        digest.update(line)
        if len(line) > MAX_LINE:
          raise errors.UserError(f"{self.name} line {number}: is longer than {MAX_LINE:,} bytes")
        blank = blank or (0 if line.strip() else number)
        if blank and line.strip():
          raise errors.UserError(f"{self.name} line {blank}: malformed row (a blank line)")
        if not blank:
          try:
            yield (line.removeprefix(readers.BOM) if number == 1 else line).decode()
          except UnicodeDecodeError as error:
            raise errors.UserError(f"{self.name} line {number}: not valid UTF-8") from error

  def _mistake(self, user, tokens, timed):
    """Returns what is wrong with a line, or None."""
    if not tokens:
      return f"malformed row, user {user[:40]!r} has no items"
    if self.users and user not in self.users:
      return f"user {user[:40]!r} is not in the map of users"
    for place, token in enumerate(tokens, 1):
      item, bar, when = token.rpartition("|") if timed else (token, "", "")
      if timed and not (item and TIME.fullmatch(when)):
        return f"item {place}: item|time expected, not {token[:40]!r}"
      if not timed and "|" in token:
        return f"item {place}: has a time, {token[:40]!r}, which the first item of the file has not"
      if self.items and item not in self.items:
        return f"item {place}: {item[:40]!r} is not in the map of items"
    return None

  @staticmethod
  def _block(users, items, times):
    return readers.Block(pa.array(users, pa.string()), pa.array(items, pa.string()),
                         np.array(times, np.int64))


def read_map(path):
  """Returns ({name in the file: external id}, {external id: domain code} or None).

  Args:
    path: a JSON object {external id: name} or {external id: [name, domain code]}, where names and
      codes are whole numbers.
  """
  raw = readers.file(path)
  names, codes = {}, {}
  whole = lambda x: type(x) is int and x >= 0
  for external, value in readers.read_json(raw).items():
    pair = isinstance(value, list) and len(value) == 2 and all(map(whole, value))
    if not (pair or whole(value)) or (names and pair != bool(codes)):
      raise errors.UserError(f"{raw.name}: malformed entry {external[:40]!r}, a number for each id "
                             f"or [number, domain] for each expected, not {str(value)[:60]}")
    name = str(value[0] if pair else value)
    if name in names:
      raise errors.UserError(f"{raw.name}: {names[name]!r} and {external[:40]!r} are both {name}")
    names[name] = external
    if pair:
      codes[external] = value[1]
  return names, codes or None
