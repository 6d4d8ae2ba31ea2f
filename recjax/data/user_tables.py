"""Attributes of users: MovieLens' users.dat, or any small table with a column of user ids."""

import re

import numpy as np

from recjax import errors
from recjax.data import metadata
from recjax.data import sequences

MOVIELENS = ("gender", "age", "occupation")


def read_movielens(raw):
  """Returns {attribute: {user: value}} of lines "id::gender::age::occupation::zip code".

  Ages are those of MovieLens' groups (1 stands for under 18), occupations its numbers.
  """
  found = {name: {} for name in MOVIELENS}
  for number, line in enumerate(metadata.read_text(raw).rstrip("\r\n").split("\n"), 1):
    user, *values = line.rstrip("\r").split("::")
    if len(values) != 4 or not user.isdecimal() or not all(values[:3]):
      raise errors.UserError(f"{raw.name} line {number}: malformed row, id::gender::age::occupation"
                             f"::zip expected, not {line[:80]!r}")
    if user in found["gender"]:
      raise errors.UserError(f"{raw.name} line {number}: user {user} is listed twice")
    for name, value in zip(MOVIELENS, values[:3], strict=True):
      found[name][user] = value
  return found


def read_table(path, *, user, separator=","):
  """Returns {attribute: {user: value}} of a CSV or Parquet table; an empty field is no value.

  Args:
    path: the file.
    user: the column of user ids, once each; every other column is an attribute.
    separator: between the columns of a CSV.
  """
  names, columns, place = metadata.read_strings(path, separator)
  if user not in names:
    raise errors.UserError(f"{path}: no column {user!r} for the user (there are: "
                           f"{', '.join(names)}); set --config.user_column")
  ids = metadata.distinct_ids(columns[user], place, "user")
  found = {}
  for name in (n for n in names if n != user):
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name.endswith("_ids"):
      raise errors.UserError(f"{path}: column {name!r} cannot name an attribute (letters, digits "
                             "and _, not ending in _ids); rename it")
    found[name] = {i: row[0] for i, row in zip(ids, columns[name], strict=True) if row and row[0]}
  return found


def encode(attributes, user_ids):
  """Returns {attribute: `sequences.Feature`}, one label of each user; attributes of nobody go.

  Args:
    attributes: {attribute: {user: value}}, of `read_movielens` or `read_table`.
    user_ids: the external ids (str) of users 1..U.
  """
  found = {}
  for name, values in attributes.items():
    listed = {user: (value,) for user, value in values.items()}
    table, ids = metadata.encode_values(listed, user_ids, name)
    if len(ids) > 1:
      found[name] = sequences.Feature(np.ascontiguousarray(table[:, 0]), ids)
  return found
