"""Interaction rows on disk, one plain binary file a column, grouped by user within bounded memory.

Rows arrive in file order, blocks at a time. Grouping is a bucket sort: one pass deals the rows out
to buckets of consecutive users, whose places in the result are known from the users' counts; then
each bucket is sorted by (user, time, file row) in memory. Everything is read and written with
plain file calls, since pages of a memory map would count as the process's own memory.

Memory: O(users + items + BUCKET_ROWS + the rows of the busiest user), about 100 bytes a row of a
bucket, whatever the number of rows. Disk: two copies of the rows, 22 bytes each.
"""

import itertools
import pathlib

import numpy as np
import pyarrow as pa

from recjax import errors
from recjax.data import metadata

BUCKET_ROWS = 1 << 20
DTYPES = {"user": np.int32, "item": np.int32, "time": np.int64, "rating": np.float32,
          "domain": np.int16, "basket": np.int32, "place": np.int32}


class Columns:
  """Equally long columns in a folder, read and written by ranges of rows."""

  def __init__(self, folder, names):
    self.folder = pathlib.Path(folder)
    self.folder.mkdir()
    self.names = tuple(names)
    self.rows = 0

  def append(self, **arrays):
    """Adds one block of rows; `arrays` names every column."""
    for name in self.names:
      with open(self.folder / name, "ab") as stream:
        stream.write(np.ascontiguousarray(arrays[name], DTYPES[name]).data)
    self.rows += len(arrays["user"])

  def read(self, name, begin, end):
    """Returns rows begin..end of a column as an array in memory."""
    dtype = np.dtype(DTYPES[name])
    return np.fromfile(self.folder / name, dtype, end - begin, offset=begin * dtype.itemsize)

  def writer(self, name):
    """Returns an open file to `put` ranges of rows into."""
    path = self.folder / name
    path.touch()
    return open(path, "r+b")

  @staticmethod
  def put(stream, begin, values):
    """Writes `values` as the rows from `begin` on."""
    stream.seek(begin * values.dtype.itemsize)
    stream.write(values.data)


class Vocabulary:
  """Distinct ids in order of their first appearance, met block by block."""

  def __init__(self, role):
    self.role = role
    self._codes = {}

  def __len__(self):
    return len(self._codes)

  def text(self, code):
    """Returns the id of a code."""
    return list(self._codes)[code]

  def encode(self, values, refuse=None):
    """Returns (codes int32 [n], the problem with the first bad row of the block or None).

    Args:
      values: string array [n].
      refuse: optional; refuse(id) returns what is wrong with an id met for the first time, or None.
    """
    encoded = values.dictionary_encode()
    ids = encoded.dictionary.to_pylist()
    indices = encoded.indices.to_numpy()
    known = self._codes
    codes = np.fromiter(map(known.get, ids, itertools.repeat(-1)), np.int32, len(ids))
    for i in np.flatnonzero(codes < 0).tolist():  # In order of appearance: the first problem first.
      if problem := self._problem(ids[i], refuse):
        return codes, (int(np.argmax(indices == i)), problem)
      codes[i] = known[ids[i]] = len(known)
    return codes[indices], None

  def _problem(self, text, refuse):
    try:
      metadata.check_id(text, self.role)
    except errors.UserError as error:
      return str(error)
    return refuse(text) if refuse else None

  def ranked(self):
    """Returns (ids sorted by `metadata.order`, rank int32 [n]): code c has the number rank[c] >= 1.

    Numbers thus depend on the set of ids only; in order of appearance they would tell the popular
    items from the rare ones.
    """
    ids = list(self._codes)
    by_rank = sorted(range(len(ids)), key=lambda c: metadata.order(ids[c]))
    rank = np.empty(len(ids), np.int32)
    rank[by_rank] = np.arange(1, len(ids) + 1)
    return [ids[c] for c in by_rank], rank


def ingest(reader, folder, *, known_items=None, known_name="the item table"):
  """Streams a reader into columns; returns (Columns in file order, {role: Vocabulary}).

  Args:
    reader: see `recjax.data.readers`.
    folder: where the columns go; must not exist.
    known_items: if given, an interaction with any other item is an error.
    known_name: where the known items are listed, for the message.
  """
  roles = [r for r in ("user", "item", "domain", "basket") if r in reader.roles]
  vocabularies = {role: Vocabulary(role) for role in roles}
  columns = Columns(folder, reader.roles)
  refuse = None
  if known_items is not None:
    refuse = lambda i: None if i in known_items else f"unknown item {i!r}, not in {known_name}"
  for block in reader.blocks():
    texts = {"user": block.users, "item": block.items, "domain": block.domains,
             "basket": block.baskets}
    arrays, problems = {"time": block.times, "rating": block.ratings}, []
    for role in roles:
      arrays[role], problem = vocabularies[role].encode(
        texts[role], refuse if role == "item" else None)
      problems += [problem] if problem else []
    if problems:
      row, what = min(problems)
      raise errors.UserError(f"{reader.place(columns.rows + row)}: {what}")
    columns.append(**arrays)
    pa.default_memory_pool().release_unused()
  return columns, vocabularies


def user_offsets(columns, rank):
  """Returns int64 [U + 2]: the rows of user u (numbered by `rank`) in (user, ...) order."""
  counts = np.zeros(len(rank) + 1, np.int64)
  for begin, end in _chunks(columns.rows):
    counts += np.bincount(rank[columns.read("user", begin, end)], minlength=len(counts))
  return np.concatenate([[0], np.cumsum(counts)])


def group(columns, folder, ranks, offsets, *, repeats=True, ticks=1, places=False):
  """Returns `Columns` renumbered by `ranks`, in (user, time, file row) order, times in seconds.

  Where rows have baskets, those of a time lie together: (user, time, basket, file row).

  Args:
    columns: the rows in file order, with codes of the vocabularies.
    folder: where the result goes; must not exist.
    ranks: {"user": rank [U], "item": rank [N]}, see `Vocabulary.ranked`.
    offsets: see `user_offsets`.
    repeats: whether one user may choose an item again at another time.
    ticks: how many units of the time column are a second; rows are sorted before they are rounded.
    places: whether to add the column "place", by which each user's rows sort into file order.

  Returns the columns and the first repeated row as (user code, item code, time) or None.
  """
  out = Columns(folder, (*columns.names, "place") if places else columns.names)
  out.rows = columns.rows
  ranges = user_ranges(offsets, BUCKET_ROWS)
  begins = np.array([offsets[low] for low, _ in ranges])
  bucket = np.repeat(np.arange(len(ranges), dtype=np.int32), [high - low for low, high in ranges])
  writers = {name: out.writer(name) for name in out.names}
  try:
    cursors = begins.copy()
    for begin, end in _chunks(columns.rows):
      rows = {name: columns.read(name, begin, end) for name in columns.names}
      for name, rank in ranks.items():
        rows[name] = rank[rows[name]].astype(DTYPES[name])
      owner = bucket[rows["user"]]
      order = np.argsort(owner, kind="stable")
      pieces = np.bincount(owner, minlength=len(ranges))
      starts = np.cumsum(pieces) - pieces
      for name, values in rows.items():
        values = values[order]
        for b in np.flatnonzero(pieces):
          out.put(writers[name], cursors[b], values[starts[b]:starts[b] + pieces[b]])
      cursors += pieces
    for stream in writers.values():
      stream.flush()
    for low, high in ranges:
      begin, end = int(offsets[low]), int(offsets[high])
      rows = {name: out.read(name, begin, end) for name in columns.names}
      if places:
        rows["place"] = np.arange(end - begin, dtype=DTYPES["place"])
      by = [rows[name] for name in ("basket", "time", "user") if name in rows]
      order = np.lexsort(by)  # Stable, and pieces came in file order.
      rows = {name: values[order] for name, values in rows.items()}
      if repeat := _first_repeat(rows, len(ranks["item"]) + 1, repeats):
        user, item, time = repeat
        code = lambda role, number: int(np.flatnonzero(ranks[role] == number)[0])
        return out, (code("user", user), code("item", item), time)
      rows["time"] //= ticks
      for name, values in rows.items():
        out.put(writers[name], begin, values)
  finally:
    for stream in writers.values():
      stream.close()
  return out, None


def find_rows(columns, user, item, time=None):
  """Returns the file rows of (user code, item code[, time]); a full pass, for messages."""
  found = []
  for begin, end in _chunks(columns.rows):
    hit = columns.read("user", begin, end) == user
    hit &= columns.read("item", begin, end) == item
    if time is not None:
      hit &= columns.read("time", begin, end) == time
    found += (begin + np.flatnonzero(hit)).tolist()
  return found


def user_ranges(offsets, rows):
  """Returns [(low, high)]: consecutive users low..high-1 who own about `rows` rows together.

  A range exceeds `rows` by no more than the rows of one user. Ranges cover users 0..U.
  """
  users = len(offsets) - 1
  cuts = np.unique(np.asarray(offsets[:-1]) // rows, return_index=True)[1].tolist()
  return list(zip(cuts, [*cuts[1:], users], strict=True))


def _first_repeat(rows, num_items, repeats):
  """Returns (user, item, time) of a forbidden repetition among sorted rows, or None."""
  if not len(rows["user"]):
    return None
  pair = rows["user"].astype(np.int64) * num_items + rows["item"]
  ordered = np.sort(pair)
  twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
  if not len(twice):
    return None
  among = np.flatnonzero(np.isin(pair, twice))
  among = among[np.lexsort((rows["time"][among], pair[among]))]
  same = pair[among][1:] == pair[among][:-1]
  if repeats:
    same &= rows["time"][among][1:] == rows["time"][among][:-1]
  if not same.any():
    return None
  row = among[1:][same].min()
  return tuple(int(rows[name][row]) for name in ("user", "item", "time"))


def _chunks(rows):
  return [(begin, min(begin + BUCKET_ROWS, rows)) for begin in range(0, rows, BUCKET_ROWS)]
