"""Reads interaction tables as a stream of blocks: text (plain, .gz, in a zip) and Parquet.

A reader is an object with
  blocks()    yields `Block`s in file order; memory holds one block of the file, never the file
  place(row)  names a row for people: "ratings.dat line 7"; rows count from 0 over all blocks
  sha256      hex digest of the decompressed bytes, once blocks() is exhausted
  roles       the columns that it delivers, a subset of ROLES

One line of text is one row, so that the line number in a message is exact. A bad row is an error
and never skipped: data that silently lost rows would still train.
"""

import contextlib
import csv
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from recjax import errors

ROLES = ("user", "item", "time", "rating", "domain")
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "iso": 10**6}  # ticks in a second
BLOCK_BYTES = 8 << 20
BLOCK_ROWS = 1 << 18
MAX_LINE = 1 << 20
MAX_SMALL = 256 << 20  # bytes of a table that is read whole (items, attributes)
MAX_UNZIPPED = 1 << 30  # bytes of one member of a zip file; ML-1M's largest has 24.6 million
BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Block:
  """Consecutive rows. `times` counts ticks of the reader's `ticks` per second, exactly."""
  users: pa.Array  # string [n]
  items: pa.Array  # string [n]
  times: np.ndarray  # int64 [n]
  ratings: np.ndarray | None = None  # float32 [n]
  domains: pa.Array | None = None  # string [n]


@dataclasses.dataclass(frozen=True)
class Raw:
  """A stream of decompressed bytes that can be opened again, and its name for messages."""
  name: str
  opener: object

  @contextlib.contextmanager
  def open(self):
    try:
      with self.opener() as stream:
        yield stream
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
      raise errors.UserError(f"{self.name}: cannot be read ({error})") from error

  def read(self, limit=MAX_SMALL):
    """Returns all bytes of a small file; more than `limit` is an error."""
    with self.open() as stream:
      data = stream.read(limit + 1)
    if len(data) > limit:
      raise errors.UserError(f"{self.name}: larger than {limit:,} bytes")
    return data


def file(path):
  """Returns the `Raw` of a plain or `.gz` file."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"no file {os.fspath(path)!r}; check --raw_dir and the config's names")
  opener = gzip.open if path.suffix == ".gz" else open
  return Raw(os.fspath(path), lambda: opener(path, "rb"))


def find(raw_dir, name):
  """Returns the path of `raw_dir`/`name` or of that file right in `raw_dir`, also .gz, or None."""
  for path in (raw_dir / name, raw_dir / pathlib.PurePath(name).name):
    for spelling in (path, path.with_name(f"{path.name}.gz")):
      if spelling.is_file():
        return spelling
  return None


def read_json(raw):
  """Returns the object that a small JSON file holds; anything but an object is an error."""
  try:
    value = json.loads(raw.read().removeprefix(BOM))
  except json.JSONDecodeError as error:
    raise errors.UserError(f"{raw.name} line {error.lineno}: not JSON ({error.msg})") from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f"{raw.name}: not JSON ({error})") from error
  if not isinstance(value, dict):
    raise errors.UserError(f"{raw.name}: a JSON object is expected, not {type(value).__name__}")
  return value


def zip_members(path, limit=MAX_UNZIPPED):
  """Returns {base name: Raw} of a zip file's members.

  Nothing is unpacked to disk: members are streamed, so no name in the archive can touch a file.
  Names that leave the archive's folder and members that declare more than `limit` bytes (zipfile
  never delivers more than declared) are refused all the same, as the archive is then not what it
  claims to be.
  """
  members = {}
  with Raw(os.fspath(path), lambda: zipfile.ZipFile(path)).open() as archive:
    for info in archive.infolist():
      parts = info.filename.replace("\\", "/").split("/")
      if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise errors.UserError(f"{path}: refused, member {info.filename!r} leaves its folder")
      if info.file_size > limit:
        raise errors.UserError(f"{path}: refused, member {info.filename!r} unpacks to "
                               f"{info.file_size:,} bytes (limit {limit:,})")
      if parts[-1] in members:
        raise errors.UserError(f"{path}: refused, two members named {parts[-1]!r}")
      if not info.is_dir():
        members[parts[-1]] = Raw(f"{path}:{info.filename}", _member_opener(path, info.filename))
  return members


def _member_opener(path, member):
  @contextlib.contextmanager
  def opener():
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
      yield stream
  return opener


def interactions(path, *, columns, separator=",", time_unit="s", rating_range=None):
  """Returns the reader of a CSV (.csv, .tsv, .txt, each also .gz) or Parquet file with a header.

  Args:
    path: the file.
    columns: {role: column name} for the roles of ROLES; "" or a missing role is not read. `rating`
      and `domain` are optional as long as they carry their role's own name.
    separator: one character; a `.tsv` is split at tabs whatever it says.
    time_unit: what one unit of the time column is, a key of UNITS. "iso" is text such as
      2015-03-01 12:00:00. Parquet timestamps carry their own unit.
    rating_range: (low, high), inclusive, or None.
  """
  if time_unit not in UNITS:
    raise errors.UserError(f"time_unit {time_unit!r} is none of {', '.join(UNITS)}")
  name = os.fspath(path)
  if name.endswith(".parquet"):
    return ParquetTable(path, columns=columns, time_unit=time_unit, rating_range=rating_range)
  stem = name.removesuffix(".gz")
  if not stem.endswith((".csv", ".tsv", ".txt")):
    raise errors.UserError(f"{name}: unknown kind of file; .csv, .tsv, .txt (or .gz) and .parquet")
  separator = "\t" if stem.endswith(".tsv") else separator
  raw = file(path)
  header = _header(raw, separator)
  return TextTable(raw, header=header, columns=pick(columns, header, raw.name),
                   separator=separator, time_unit=time_unit, rating_range=rating_range, skip=1)


def _header(raw, separator):
  with raw.open() as stream:
    line = stream.readline(MAX_LINE).removeprefix(BOM)
  if not line.strip():
    raise errors.UserError(f"{raw.name}: is empty")
  try:
    return next(csv.reader([line.decode().rstrip("\r\n")], delimiter=separator))
  except (UnicodeDecodeError, csv.Error, TypeError) as error:
    raise errors.UserError(f"{raw.name} line 1: the header cannot be read ({error})") from error


def pick(columns, header, name):
  """Returns {role: column} of the columns that `header` has; a missing one is an error."""
  twice = sorted({c for c in header if header.count(c) > 1})
  if twice:
    raise errors.UserError(f"{name}: column {twice[0]!r} occurs twice")
  picked = {}
  for role in ROLES:
    column = columns.get(role) or None
    if column in header and column is not None:
      picked[role] = column
    elif role in ROLES[:3] or column not in (None, role):
      raise errors.UserError(f"{name}: no column {column!r} for the {role} (there are: "
                             f"{', '.join(header)}); set --config.columns.{role}")
  return picked


class _Table:
  """What text and Parquet share: checking the columns of one block."""

  def __init__(self, name, columns, time_unit, rating_range):
    self.name = name
    self.columns = columns
    self.roles = tuple(r for r in ROLES if r in columns)
    self.ticks = UNITS[time_unit]
    self.rating_range = rating_range
    self.sha256 = None

  def _block(self, table, first):
    """Returns the checked `Block` of an arrow table whose first row is row `first` of the file."""
    def column(role):
      values = table.column(self.columns[role])
      values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
      self._refuse(np.asarray(values.is_null()), first, lambda i: f"the {role} is empty")
      return values
    texts = {role: _as_text(column(role)) for role in self.roles if role not in ("time", "rating")}
    ratings = self._ratings(column("rating"), first) if "rating" in self.roles else None
    # Without times a row's place in the file is its time.
    times = self._times(column("time"), first) if "time" in self.roles else np.arange(
      first, first + table.num_rows)
    return Block(texts["user"], texts["item"], times, ratings, texts.get("domain"))

  def _times(self, values, first):
    if pa.types.is_timestamp(values.type):
      self.ticks = UNITS[values.type.unit]
      return values.cast(pa.int64()).to_numpy()
    if pa.types.is_date(values.type):
      self.ticks = 1
      return values.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy()
    if pa.types.is_integer(values.type):
      return values.cast(pa.int64()).to_numpy()
    if not pa.types.is_floating(values.type):
      raise errors.UserError(f"{self.name}: the time column holds {values.type}, not numbers; "
                             "set --config.time_unit=iso for dates written as text")
    exact = values.to_numpy(zero_copy_only=False).astype(np.float64)
    # Beyond 2**53 a float no longer tells neighbors apart, which would reorder rows silently.
    bad = ~(np.abs(exact) < 2**53)
    self._refuse(bad, first, lambda i: f"time {exact[i]} is not a usable number")
    whole = np.floor(exact)
    self._refuse(whole != exact, first,
                 lambda i: f"time {exact[i]} is not a whole number; set --config.time_unit")
    return whole.astype(np.int64)

  def _ratings(self, values, first):
    try:
      ratings = values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
      raise errors.UserError(f"{self.name}: the ratings are not numbers ({error})") from error
    low, high = self.rating_range or (-np.inf, np.inf)
    bad = ~((ratings >= low) & (ratings <= high) & np.isfinite(ratings))
    self._refuse(bad, first, lambda i: f"rating {ratings[i]:g} is out of range [{low:g}, {high:g}]")
    return ratings

  def _refuse(self, bad, first, what):
    if bad.any():
      row = int(np.argmax(bad))
      raise errors.UserError(f"{self.place(first + row)}: {what(row)}")


class TextTable(_Table):
  """Reader of separated text. A `separator` of two characters or more allows no quotes."""

  def __init__(self, raw, *, header, columns, separator=",", time_unit="s", rating_range=None,
               skip=0, block_bytes=None):
    super().__init__(raw.name, columns, time_unit, rating_range)
    self.raw, self.header, self.separator, self.skip = raw, header, separator, skip
    self.block_bytes = block_bytes or BLOCK_BYTES
    time_type = pa.timestamp("us") if time_unit == "iso" else pa.float64()
    kinds = {"time": time_type, "rating": pa.float64()}
    self._types = {name: kinds.get(role, pa.string()) for role, name in columns.items()}

  def place(self, row):
    return f"{self.name} line {row + self.skip + 1}"

  def blocks(self):
    digest, first = hashlib.sha256(), 0
    for number, lines in enumerate(self._lines(digest)):
      if number == 0:
        lines = lines.removeprefix(BOM)
        for _ in range(self.skip):
          lines = lines[lines.find(b"\n") + 1:]
      if lines:
        table = self._parse_or_blame(lines, first)
        yield self._block(table, first)
        first += table.num_rows
    if first == 0:
      raise errors.UserError(f"{self.name}: is empty (no rows)")
    self.sha256 = digest.hexdigest()

  def _lines(self, digest):
    """Yields whole lines in blocks. Blank lines are kept, save those at the end of the file."""
    rest = b""
    with self.raw.open() as stream:
      while data := stream.read(self.block_bytes):
        digest.update(data)
        data = rest + data
        end = len(data[:data.rfind(b"\n") + 1].rstrip(b"\r\n"))
        if end:
          end = data.find(b"\n", end) + 1
          yield data[:end]
        rest = data[end:]
        if len(rest) > MAX_LINE + self.block_bytes:
          raise errors.UserError(f"{self.name}: a line is longer than {MAX_LINE:,} bytes")
    if rest.strip(b"\r\n"):
      yield rest.rstrip(b"\r\n") + b"\n"

  def _parse(self, lines):
    separator, quote = self.separator, '"'
    if lines.startswith((b"\n", b"\r\n")) or b"\n\n" in lines or b"\n\r\n" in lines:
      raise pa.ArrowInvalid("a blank line")
    if len(separator) > 1:
      if b"\t" in lines:
        raise pa.ArrowInvalid("a tab inside the row")
      lines, separator, quote = lines.replace(separator.encode(), b"\t"), "\t", False
    table = pa_csv.read_csv(
      pa.py_buffer(lines),
      read_options=pa_csv.ReadOptions(column_names=self.header),
      parse_options=pa_csv.ParseOptions(delimiter=separator, quote_char=quote,
                                        ignore_empty_lines=False),
      convert_options=pa_csv.ConvertOptions(
        column_types=self._types, include_columns=list(self._types), null_values=[""],
        strings_can_be_null=False))
    if table.num_rows != lines.count(b"\n"):
      raise pa.ArrowInvalid("a quoted field goes over the end of the line")
    return table

  def _parse_or_blame(self, lines, first):
    try:
      return self._parse(lines)
    except pa.ArrowInvalid as error:
      reason = error
    # The fast parser names no dependable row: halve the block to the shortest prefix that fails.
    rows = [row + b"\n" for row in lines.split(b"\n")[:-1]]
    good, bad = 0, len(rows)
    while bad - good > 1:
      middle = (good + bad) // 2
      try:
        self._parse(b"".join(rows[good:middle]))
        good = middle
      except pa.ArrowInvalid as error:
        bad, reason = middle, error
    raise errors.UserError(f"{self.place(first + good)}: {self._reason(reason, rows[good])}")

  def _reason(self, error, line):
    text = str(error)
    if count := re.search(r"Expected (\d+) columns, got (\d+)", text):
      shown = line[:80].decode(errors="replace").rstrip()
      return f"malformed row, {count[1]} columns expected and {count[2]} found: {shown!r}"
    if value := re.search(r"CSV column #(\d+):.*invalid value '(.*)'", text, re.DOTALL):
      return f"{self.header[int(value[1])]} {value[2]!r} is not a valid value"
    if "UTF8" in text:
      return "not valid UTF-8"
    return f"malformed row ({text})"


class ParquetTable(_Table):
  """Reader of a Parquet file, by row groups and batches of rows."""

  def __init__(self, path, *, columns, time_unit="s", rating_range=None):
    path = os.fspath(path)
    if not os.path.isfile(path):
      raise errors.UserError(f"no file {path!r}; check --raw_dir and the config's names")
    with parquet_errors(path):
      self._header = pa_parquet.read_schema(path).names
    super().__init__(path, pick(columns, self._header, path), time_unit, rating_range)
    self.path = path

  def place(self, row):
    return f"{self.name} row {row + 1}"

  def blocks(self):
    first, names = 0, list(self.columns.values())
    with parquet_errors(self.name), pa_parquet.ParquetFile(self.path, pre_buffer=False) as source:
      for batch in source.iter_batches(batch_size=BLOCK_ROWS, columns=names):
        if batch.num_rows:
          yield self._block(batch, first)
        first += batch.num_rows
    if first == 0:
      raise errors.UserError(f"{self.name}: is empty (no rows)")
    with open(self.path, "rb") as stream:
      self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def parquet_errors(name):
  try:
    yield
  except (pa.ArrowException, OSError) as error:
    first_line = str(error).partition("\n")[0]
    raise errors.UserError(f"{name}: is not a readable Parquet file ({first_line})") from error


def _as_text(values):
  if isinstance(values, pa.DictionaryArray):
    values = values.dictionary_decode()
  return values if values.type == pa.string() else pc.cast(values, pa.string())
