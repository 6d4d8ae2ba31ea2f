"""Files of (external id, vector), as anybody's encoder writes them."""

import dataclasses
import hashlib
import pathlib
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from recjax import errors
from recjax.data import readers


@dataclasses.dataclass(frozen=True)
class Vectors:
  """Distinct `ids` bytes [n], `vectors` float32 [n, d], `known` bool [n], the file's `digest`."""
  ids: np.ndarray
  vectors: np.ndarray
  known: np.ndarray
  digest: str


def read(path, *, ids="", column="", where):
  """Returns the `Vectors` of a file.

    .npz       arrays "ids" [n] and "vectors" [n, d], optionally "missing" bool [n]
    .parquet   a column of ids and one of lists, or all others in numbers
    .npy       vectors [n, d], beside a text file with an id a line

  A vector with a NaN is missing.

  Args:
    path: the file.
    ids: the column of ids ("id" by default), or the text file (by default the same name as .txt).
    column: the column of lists; "" finds it.
    where: who asks, for messages.

  Raises:
    UserError: there is no such file, it is not of this form, or an id is listed twice.
  """
  if not path:
    raise errors.UserError(f"{where}: path is required, a file of ids and vectors")
  path = pathlib.Path(path)
  parsers = {".npz": _npz, ".parquet": _parquet, ".npy": _npy}
  parse = errors.choose(parsers, path.suffix, f"{where}: the ending of {path}")
  if not path.is_file():
    raise errors.UserError(f"{where}: there is no file {path}")
  try:
    names, table, missing, files = parse(path, ids, column)
  except _Malformed as error:
    raise errors.UserError(f"{where}: {path}: {error}") from error
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
    text = " ".join(str(error).split())
    raise errors.UserError(f"{where}: {path}: cannot be read ({text})") from error
  if table.ndim != 2 or not table.size or table.dtype.kind not in "fiu":
    raise errors.UserError(f"{where}: {path}: vectors are {table.dtype} {table.shape}, numbers "
                           "[n, d] expected")
  if names.shape != table.shape[:1]:
    raise errors.UserError(f"{where}: {path}: {len(names)} ids for {len(table)} vectors")
  distinct, counts = np.unique(names, return_counts=True)
  if (counts > 1).any():
    twice = distinct[np.argmax(counts > 1)].decode(errors="replace")
    raise errors.UserError(f"{where}: {path}: id {twice!r} is listed twice")
  table = table.astype(np.float32)
  known = ~np.isnan(table).any(1)
  if missing is not None:
    known &= ~missing
  if np.isinf(table[known]).any() or not known.any():
    raise errors.UserError(f"{where}: {path}: a vector is infinite, or all of them are missing")
  return Vectors(names, table, known, _digest(files))


class _Malformed(Exception):
  """What a file lacks, in words."""


def _npz(path, ids, column):
  del ids, column
  with np.load(path, allow_pickle=False) as file:
    for name in ("ids", "vectors"):
      if name not in file.files:
        raise _Malformed(f"has no array {name!r} (there are: {', '.join(file.files)})")
    missing = np.asarray(file["missing"], bool) if "missing" in file.files else None
    return _names(file["ids"]), file["vectors"], missing, [path]


def _npy(path, ids, column):
  del column
  beside = pathlib.Path(ids) if ids else path.with_suffix(".txt")
  if not beside.is_file():
    raise _Malformed(f"its ids are not there, {beside}, one a line")
  lines = beside.read_text(encoding="utf-8").splitlines()
  return _names(np.array(lines)), np.load(path, allow_pickle=False), None, [path, beside]


def _parquet(path, ids, column):
  with readers.parquet_errors(str(path)):
    table = pa_parquet.read_table(path)
  ids = ids or "id"
  if ids not in table.column_names:
    raise _Malformed(f"has no column {ids!r} of ids (there are: {', '.join(table.column_names)})")
  names = _names(np.array(table.column(ids).to_pylist()))
  is_list = lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind) or (
    pa.types.is_fixed_size_list(kind))
  lists = [field.name for field in table.schema if is_list(field.type)]
  if column or lists:
    column = column or lists[0]
    if column not in lists:
      raise _Malformed(f"has no column of lists {column!r} (there are: {', '.join(lists)})")
    rows = table.column(column).to_pylist()
    width = max((len(row) for row in rows if row is not None), default=0)
    if any(row is not None and len(row) != width for row in rows):
      raise _Malformed(f"the lists of {column!r} differ in length")
    vectors = np.array([row or [np.nan] * width for row in rows], np.float32)
    return names, vectors, None, [path]
  numbers = [field.name for field in table.schema if field.name != ids]
  vectors = [table.column(name).to_numpy(zero_copy_only=False) for name in numbers]
  return names, np.stack(vectors, 1) if vectors else np.zeros((len(names), 0)), None, [path]


def _names(values):
  """Returns ids of text, bytes or whole numbers as bytes [n]."""
  values = np.asarray(values)
  if values.ndim != 1 or values.dtype.kind not in "USiu":
    raise _Malformed(f"ids are {values.dtype} {values.shape}; text or whole numbers [n] expected")
  if values.dtype.kind == "S":
    return values
  return np.array([str(value).encode() for value in values.tolist()], np.bytes_)


def _digest(files):
  digest = hashlib.sha256()
  for path in files:
    with open(path, "rb") as file:
      while block := file.read(1 << 20):
        digest.update(block)
  return digest.hexdigest()
