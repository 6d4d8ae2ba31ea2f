"""Rows of data sets beyond memory: Parquet files of consecutive users, one row a user.

A data set whose manifest has "shards" keeps its interactions in `rows/part-00000-of-00016.parquet`
and so on, in place of items.npy, times.npy and ratings.npy (see `sequences`):

    user     int32          the user's number; a file holds whole users, in order, none left out
    user_id  string         external id
    items    list<int32>    all of the user's items, in the data set's order
    times    list<int64>    seconds
    ratings  list<float32>  optional
    train_begin, train_end, val_begin, val_end, test_begin, test_end   int32, places in the lists

Pages carry checksums, so that a flipped bit is noticed when it is read.
"""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from recjax import errors

FOLDER = "rows"
VALUES = {"items": pa.int32(), "times": pa.int64(), "ratings": pa.float32()}
RANGES = ("train_begin", "train_end", "val_begin", "val_end", "test_begin", "test_end")


class Shards:
  """The files of a data set.

  Args:
    folder: of the data set.
    entries: the manifest's "shards": [{"file", "first_user", "users", "interactions"}].
    offsets: int64 [U + 2], see `sequences`.

  Raises:
    UserError: a file is missing, or the entries are not those of this data set.
  """

  def __init__(self, folder, entries, offsets):
    self._offsets = offsets
    self.paths = [pathlib.Path(folder) / FOLDER / entry["file"] for entry in entries]
    for path in self.paths:
      if not path.is_file():
        raise errors.UserError(f"{path}: this shard of the data set is missing; restore it, or "
                               "prepare the data again")
    firsts = [entry["first_user"] for entry in entries] + [len(offsets) - 1]
    self.users = np.array(firsts, np.int64)  # [S + 1]: shard s holds users users[s]:users[s + 1]
    self.rows = np.asarray(offsets)[self.users]  # [S + 1]: and these rows
    if (self.users[0] != 1 or np.diff(self.users).tolist() != [e["users"] for e in entries]
        or np.diff(self.rows).tolist() != [e["interactions"] for e in entries]):
      raise errors.UserError(f"{folder}: the shards do not fit the arrays; prepare the data again")

  def __len__(self):
    return len(self.paths)

  def read(self, shard, names):
    """Returns {name of VALUES: flat array} of a shard, checked against the offsets.

    Raises:
      UserError: the file is damaged, or another one.
    """
    path, first, last = self.paths[shard], *self.users[shard:shard + 2]
    try:
      with pa_parquet.ParquetFile(path, page_checksum_verification=True) as source:
        table = source.read(columns=["user", *names])
    except (pa.ArrowException, OSError) as error:
      reason = str(error).partition("\n")[0]
      raise errors.UserError(f"{path}: this shard is damaged or gone ({reason}); restore it, or "
                             "prepare the data again") from error
    lengths = np.diff(self._offsets[first:last + 1])
    right = np.array_equal(table.column("user"), np.arange(first, last))
    flat = {}
    for name in names:
      chunks = table.column(name).chunks
      right = right and np.array_equal(
        np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks]), lengths)
      flat[name] = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    if not right:
      raise errors.UserError(f"{path}: is not the shard of users {first}..{last - 1} that the "
                             "manifest lists; restore it, or prepare the data again")
    return flat


class Rows:
  """A column of all interactions, [R], that is read from the shards when it is indexed.

  Each look-up reads every shard that it touches once, and the last one read is kept: ask for many
  rows at once, in order.
  """
  ndim = 1

  def __init__(self, shards, name):
    self.shards, self.name = shards, name
    self.dtype = np.dtype(VALUES[name].to_pandas_dtype())
    self.shape = (int(shards.rows[-1]),)
    self._kept = (None, None)

  def __len__(self):
    return self.shape[0]

  def __array__(self, dtype=None, copy=None):
    del copy
    return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)

  def __getitem__(self, rows):
    if isinstance(rows, slice):
      rows = np.arange(*rows.indices(len(self)))
    rows = np.asarray(rows, np.int64)
    out = np.empty(rows.shape, self.dtype)
    # Side "right": a shard of users without rows begins where the next one does.
    owner = np.searchsorted(self.shards.rows, rows, side="right") - 1
    for shard in np.unique(owner).tolist():
      mine = owner == shard
      out[mine] = self._values(shard)[rows[mine] - self.shards.rows[shard]]
    return out

  def _values(self, shard):
    if self._kept[0] != shard:
      self._kept = (None, None)  # Not two at once.
      self._kept = (shard, self.shards.read(shard, [self.name])[self.name])
    return self._kept[1]


def cuts(offsets, count):
  """Returns the first user of each of `count` shards, and U + 1: about equally many rows each.

  They are fewer where single users own more than a shard.
  """
  offsets = np.asarray(offsets)
  if not 0 < count < len(offsets) - 1:
    raise errors.UserError(f"config.shards={count}: there are {len(offsets) - 2} users, and every "
                           "shard has one at least")
  goals = offsets[-1] * np.arange(1, count) // count
  edges = np.searchsorted(offsets, goals)
  edges = edges[offsets[edges] < offsets[-1]]  # The last one has rows, too.
  return np.unique(np.clip([1, *edges, len(offsets) - 1], 1, len(offsets) - 1)).tolist()


def file_name(shard, count):
  """Returns the name of a shard's file."""
  return f"part-{shard:05d}-of-{count:05d}.parquet"


def piece(first_user, ids, offsets, ranges, values):
  """Returns the arrow table of consecutive users.

  Args:
    first_user: number of the first of them.
    ids: their external ids, texts [n].
    offsets: int64 [n + 1] into `values`.
    ranges: int32 [n, 3, 2] of `splits.ranges`.
    values: {name of VALUES: flat array}.
  """
  starts = pa.array(np.asarray(offsets) - offsets[0], pa.int32())
  arrays = {"user": pa.array(np.arange(first_user, first_user + len(ids)), pa.int32()),
            "user_id": pa.array(ids, pa.string())}
  for name, flat in values.items():
    arrays[name] = pa.ListArray.from_arrays(starts, pa.array(flat, VALUES[name]))
  arrays |= zip(RANGES, np.asarray(ranges).reshape(len(ids), 6).T, strict=True)
  return pa.table(arrays)


def count_items(offsets, ranges, items, num_items):
  """Returns int64 [3, N + 1]: how often each item occurs in train, val and test.

  Args:
    offsets: int64 [n + 1] of some users.
    ranges: int32 [n, 3, 2], theirs.
    items: their rows.
    num_items: N.
  """
  place = np.arange(len(items)) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))
  counts = np.zeros((3, num_items + 1), np.int64)
  for split in range(3):
    begin, end = (np.repeat(edge, np.diff(offsets)) for edge in ranges[:, split].T)
    counts[split] = np.bincount(items[(place >= begin) & (place < end)], minlength=num_items + 1)
  return counts


class Writer:
  """Writes the shards of a data set from rows that come in the order of their users.

  Args:
    folder: of the data set.
    ids: external ids of users 1..U.
    offsets: int64 [U + 2].
    ranges: int32 [U + 1, 3, 2] of `splits.ranges`.
    num_items: N.
    shards: how many files.
  """

  def __init__(self, folder, ids, offsets, ranges, *, num_items, shards):
    self._folder = pathlib.Path(folder) / FOLDER
    self._folder.mkdir()
    self._ids, self._offsets, self._ranges, self._num_items = ids, offsets, ranges, num_items
    self._cuts = cuts(offsets, shards)
    self._user, self._open = 1, None
    self.entries, self.columns = [], []  # what the manifest says of them
    self.counts = np.zeros((3, num_items + 1), np.int64)  # see `count_items`

  def append(self, values):
    """Writes {name of VALUES: flat array}: all rows of the next so many users."""
    self.columns, first_row = list(values), self._offsets[self._user]
    end = first_row + len(values["items"])
    stop = int(np.searchsorted(self._offsets, end, side="right")) - 1
    while self._user < stop:
      shard = np.searchsorted(self._cuts, self._user, side="right") - 1
      if self._open is None:
        name = file_name(shard, len(self._cuts) - 1)
        self.entries.append(entry(name, *self._cuts[shard:shard + 2], self._offsets))
      last = min(stop, self._cuts[shard + 1])
      offsets, ranges = self._offsets[self._user:last + 1], self._ranges[self._user:last]
      part = slice(*(offsets[[0, -1]] - first_row))
      flat = {name: array[part] for name, array in values.items()}
      table = piece(self._user, self._ids[self._user - 1:last - 1], offsets, ranges, flat)
      if self._open is None:
        self._open = create(self._folder / self.entries[-1]["file"], table.schema)
      self._open.write_table(table)
      self.counts += count_items(offsets, ranges, flat["items"], self._num_items)
      self._user = last
      if last == self._cuts[shard + 1]:
        self.close()
    assert self._offsets[stop] == end, "rows of a user in two blocks"

  def close(self):
    """Completes the file that is open."""
    if self._open is not None:
      self._open.close()
    self._open = None


def entry(name, first, last, offsets):
  """Returns the manifest's entry of the file `name` with users first..last-1."""
  return {"file": name, "first_user": int(first), "users": int(last - first),
          "interactions": int(offsets[last] - offsets[first])}


def create(path, schema):
  """Returns the Parquet writer of a shard."""
  return pa_parquet.ParquetWriter(path, schema, compression="zstd", compression_level=1,
                                  write_page_checksum=True)
