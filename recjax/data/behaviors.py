"""Properties of behaviors: not what a user chose, but how and when (Ni et al. 2018, DUPN).

    rating  the level that the user gave, of those in the train split
    gap     log2 of the seconds since the user's behavior before, 1 for none before
    hour    of the day, UTC

A stand-in for what a shop logs (kind of behavior, scenario, time): MovieLens has ratings alone.
"""

import numpy as np

from recjax import errors
from recjax.data import ratings

GAPS = 30  # no behavior before, then powers of two up to 2^28 seconds and more, 8 years
PROPERTIES = ("rating", "gap", "hour")


def read_by(model):
  """Returns the names of the properties that a model reads."""
  return [name for name, _ in getattr(model, "properties", ())]


def columns(data, properties):
  """Returns {"property/NAME": int32 [R]}: ids 1, 2, ... of every row; 0 says unknown.

  Args:
    data: `sequences.Dataset`, not sharded.
    properties: names, of PROPERTIES.
  """
  make = {"rating": levels, "gap": _gap, "hour": _hour}
  return {f"property/{name}": errors.choose(make, name, "model.properties")(data)
          for name in properties}


def facts(data, properties):
  """Returns {model attribute: function that finds it}: (name, rows of its table) of `properties`.
  """
  sizes = {"rating": lambda: len(ratings.levels(data)), "gap": lambda: GAPS, "hour": lambda: 24}
  size = lambda name: errors.choose(sizes, name, "model.properties")()
  return {"property_rows": lambda: tuple((name, size(name)) for name in properties)}


def levels(data):
  """Returns int32 [R]: the place (1, 2, ...) of every rating among the levels of the train split.

  0 for a rating that no train interaction has.
  """
  known = np.array(ratings.levels(data))
  place = np.minimum(np.searchsorted(known, data.ratings), len(known) - 1)
  return np.where(known[place] == data.ratings, place + 1, 0).astype(np.int32)


def _gap(data):
  """Returns gaps by time, not by row: items that are held out stand before the others."""
  times = _times(data)
  user = np.repeat(np.arange(len(data.offsets) - 1), np.diff(np.asarray(data.offsets)))
  order = np.lexsort((np.arange(len(times)), times, user))
  before = np.diff(times[order], prepend=times[order[:1]])
  gap = np.minimum(2 + np.floor(np.log2(1 + before.clip(0))), GAPS)
  gap[np.diff(user[order], prepend=-1) != 0] = 1
  out = np.zeros(len(times), np.int32)
  out[order] = gap
  return out


def _hour(data):
  return (1 + _times(data) // 3600 % 24).astype(np.int32)


def _times(data):
  if data.times is None:
    raise errors.UserError(f"model.properties: data set {data.name!r} has no times here (a history "
                           "from another one has none); take rating alone")
  return np.asarray(data.times)
