"""What is known about items beside who chose them: titles, domains and categorical attributes."""

import csv
import dataclasses
import io
import os
import re

import numpy as np
import pyarrow.parquet as pa_parquet

from recjax import errors
from recjax.data import readers

MAX_ID_BYTES = 256  # ids are stored in fixed-width rows: one endless id would widen all of them
MAX_TITLE_BYTES = 512
MAX_TEXT_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Items:
  """Facts by external item id; an item that is absent from a mapping has no value there."""
  fields: dict  # {feature: {item: (value, ...)}}
  titles: dict | None = None  # {item: title}
  domains: dict | None = None  # {item: domain}
  complete: bool = False  # True: an interaction with an item that has no title is an error
  listed: tuple = ()  # fields that come with the list of items and are no metadata beside it
  name: str = "the item table"
  texts: dict = dataclasses.field(default_factory=dict)  # {name: {item: text}}, beside titles


def read_movies(raw, domains):
  """Returns the `Items` of MovieLens' `movies.dat`, lines of "id::title::genre|genre".

  Args:
    raw: a `readers.Raw`. MovieLens publishes Latin-1; copies re-coded as UTF-8 are recognized.
    domains: {domain: genres}; the first-listed genre of a movie decides on its domain.
  """
  text = read_text(raw)
  home = {genre: domain for domain, genres in domains.items() for genre in genres}
  titles, genres, where = {}, {}, {}
  for number, line in enumerate(text.rstrip("\r\n").split("\n"), 1):
    parts = line.rstrip("\r").split("::")
    if len(parts) != 3 or not parts[0].isdecimal() or not parts[2]:
      raise errors.UserError(f"{raw.name} line {number}: malformed row, id::title::genres "
                             f"expected, not {line[:80]!r}")
    movie, title, listed = parts
    if movie in titles:
      raise errors.UserError(f"{raw.name} line {number}: movie {movie} is listed twice")
    titles[movie], genres[movie] = title, tuple(listed.split("|"))
    if genres[movie][0] not in home:
      raise errors.UserError(f"{raw.name} line {number}: first genre {genres[movie][0]!r} belongs "
                             "to no domain; see the config's domains")
    where[movie] = home[genres[movie][0]]
  return Items({"genre": genres}, titles, where, complete=True, listed=("genre",), name=raw.name)


def read_text(raw):
  """Returns the text of a small file in UTF-8 or, where it is no UTF-8, in Latin-1."""
  data = raw.read().removeprefix(readers.BOM)
  try:
    return data.decode()
  except UnicodeDecodeError:
    return data.decode("latin-1")


def read_table(path, *, item="item", title="title", features=(), texts=(), separator=","):
  """Returns the `Items` of a CSV or Parquet table: a column of item ids, any others are features.

  Args:
    path: the file.
    item: the column of item ids, once each.
    title: the column of titles, or "" ; like any optional column it may be missing.
    features: the columns to keep, all where empty. `|` separates several values of one field, an
      empty field is no value.
    texts: columns that are read as texts, and are no features.
    separator: between the columns of a CSV.
  """
  names, columns, place = read_strings(path, separator)
  if item not in names:
    raise errors.UserError(f"{path}: no column {item!r} for the item (there are: "
                           f"{', '.join(names)}); set --config.item_columns.item")
  missing = sorted({*features, *texts} - set(names))
  if missing:
    raise errors.UserError(f"{path}: no column {missing[0]!r} (there are: {', '.join(names)})")
  ids = distinct_ids(columns[item], place, "item")
  fields = {}
  for name in [*(features or [n for n in names if n not in (item, title, *texts)]), *texts]:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name.endswith("_ids"):
      raise errors.UserError(f"{path}: column {name!r} cannot name a feature (letters, digits and "
                             "_, not ending in _ids); rename it or set --config.features")
    if name in texts:
      continue
    split = lambda row: tuple(v.strip() for text in row for v in text.split("|") if v.strip())
    fields[name] = {i: split(row) for i, row in zip(ids, columns[name], strict=True)}
  titles = dict(zip(ids, (r[0] if r else "" for r in columns[title]), strict=True)) if (
    title in names) else None
  prose = {name: {i: " ".join(row) for i, row in zip(ids, columns[name], strict=True)}
           for name in texts}
  return Items(fields, titles, name=str(path), texts=prose)


def distinct_ids(column, place, what):
  """Returns the ids [n] (str) of a column of `read_strings`; a missing or repeated one is an error.

  Args:
    column: of the table.
    place: likewise, for messages.
    what: an id stands for, a user or an item.
  """
  ids, seen = [row[0] if row else "" for row in column], set()
  for row, external in enumerate(ids):
    if not external or external in seen:
      wrong = f"{what} {external!r} is listed twice" if external else f"the {what} is empty"
      raise errors.UserError(f"{place(row)}: {wrong}")
    seen.add(external)
  return ids


def read_strings(path, separator=","):
  """Returns (names, columns, place) of a small CSV or Parquet table.

  `columns` maps each name to a list of one tuple of texts per row (several values where a Parquet
  column holds lists), `place(row)` names a row for a message.
  """
  name = os.fspath(path)
  if name.endswith(".parquet"):
    with readers.parquet_errors(name):
      table = pa_parquet.read_table(name)
    return table.column_names, {c: _texts(table.column(c)) for c in table.column_names}, (
      lambda row: f"{name} row {row + 1}")
  raw = readers.file(path)
  try:
    text = raw.read().removeprefix(readers.BOM).decode()
  except UnicodeDecodeError as error:
    line = error.object.count(b"\n", 0, error.start) + 1
    raise errors.UserError(f"{name} line {line}: not valid UTF-8") from error
  separator = "\t" if name.removesuffix(".gz").endswith(".tsv") else separator
  rows, lines = [], []
  reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter=separator)
  try:
    for row in reader:
      rows.append(row)
      lines.append(reader.line_num)
      if len(row) != len(rows[0]):
        raise errors.UserError(f"{name} line {reader.line_num}: malformed row, {len(rows[0])} "
                               f"columns expected and {len(row)} found")
  except csv.Error as error:
    raise errors.UserError(f"{name} line {reader.line_num}: {error}") from error
  if len(rows) < 2:
    raise errors.UserError(f"{name}: is empty (no rows)")
  columns = {c: [(row[i],) for row in rows[1:]] for i, c in enumerate(rows[0])}
  return rows[0], columns, lambda row: f"{name} line {lines[row + 1]}"


def _texts(column):
  rows = column.to_pylist()
  as_tuple = lambda v: v if isinstance(v, list) else [v]
  return [tuple(str(x) for x in as_tuple(row) if x is not None) for row in rows]


def encode_values(values, item_ids, name):
  """Returns (values int32 [N + 1, S], ids bytes [K + 1]) of one feature.

  Values keep their order of listing and occur once; S is the most that any item has, at least 1.
  Attribute ids follow the sorted texts. Only values of items in `item_ids` are numbered.

  Args:
    values: {item: (value, ...)}.
    item_ids: the external ids (str) of items 1..N.
    name: the feature's, for messages.
  """
  listed = [tuple(dict.fromkeys(values.get(i, ()))) for i in item_ids]
  distinct = {v for row in listed for v in row}
  for value in distinct:
    check_id(value, f"{name} value")
  ids = sorted(distinct, key=order)
  number = {v: n for n, v in enumerate(ids, 1)}
  table = np.zeros((len(item_ids) + 1, max([1, *map(len, listed)])), np.int32)
  for i, row in enumerate(listed, 1):
    table[i, :len(row)] = [number[v] for v in row]
  return table, id_array(ids)


def order(text):
  """Sorting key of external ids: decimal numbers by value and first, all other texts after."""
  return (0, int(text), text) if text.isdecimal() else (1, 0, text)


def check_id(text, what):
  """Raises `UserError` for an id that cannot be stored as a row of fixed-width bytes."""
  if not text:
    raise errors.UserError(f"the {what} is empty")
  if "\0" in text or len(text.encode()) > MAX_ID_BYTES:
    raise errors.UserError(f"{what} {text[:40]!r} holds a zero byte or more than {MAX_ID_BYTES} "
                           "bytes")


def id_array(texts):
  """Returns bytes [len + 1] with an empty row 0 before the texts."""
  return np.array([b"", *(t.encode() for t in texts)], dtype=np.bytes_)


def title_array(titles, item_ids):
  """Returns UTF-8 bytes [N + 1]; titles are cut at a character after MAX_TITLE_BYTES."""
  return _cut(titles, item_ids, MAX_TITLE_BYTES)


def text_array(texts, item_ids):
  """Returns UTF-8 bytes [N + 1]; texts are cut at a character after MAX_TEXT_BYTES."""
  return _cut(texts, item_ids, MAX_TEXT_BYTES)


def _cut(texts, item_ids, most):
  cut = lambda text: text.replace("\0", "").encode()[:most].decode(errors="ignore")
  return id_array([cut(texts.get(i, "")) for i in item_ids])
