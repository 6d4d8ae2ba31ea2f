"""Labels of users (gender, age, occupation), who learns them, and who is judged by them.

Users are split by a hash of their external id: the same ones whatever the data set, its order and
its other users, so that no task that shares a backbone ever trains on another one's test users.
"""

import hashlib

import numpy as np

from recjax import errors

PARTS = ("train", "val", "test")


def labels(data, attribute):
  """Returns (int32 [U + 1] label of every user, 0 for none; names bytes [L + 1], row 0 empty)."""
  if attribute not in data.profiles:
    known = ", ".join(data.profiles) or "none: prepare it again, with a table of users"
    raise errors.UserError(f"data set {data.name!r} has no user attribute {attribute!r}; there are "
                           f"{known}")
  profile = data.profiles[attribute]
  return np.asarray(profile.values), np.asarray(profile.ids)


def parts(data, *, val, test, seed):
  """Returns int8 [U + 1], places in PARTS: a share of `val` and of `test`; user 0 has -1.

  Args:
    data: `sequences.Dataset`.
    val: share of the users.
    test: likewise.
    seed: of the hash.
  """
  draw = np.array([_uniform(name, seed) for name in np.asarray(data.user_ids)[1:].tolist()])
  part = np.where(draw < test, 2, np.where(draw < test + val, 1, 0))
  return np.concatenate([[-1], part]).astype(np.int8)


def trained(data, *, attribute, val, test, seed):
  """Returns int32 [U + 1]: the labels that may be learned from, 0 for all other users."""
  values, _ = labels(data, attribute)
  return np.where(parts(data, val=val, test=test, seed=seed) == 0, values, 0).astype(np.int32)


def facts(data, profile):
  """Returns {model attribute: function that finds it}.

  `labels` is how many a head scores, `profile_rows` are (attribute, values) of all attributes.
  """
  count = lambda: 0 if profile is None else len(labels(data, profile["attribute"])[1]) - 1
  sizes = lambda: tuple((name, len(found.ids) - 1) for name, found in data.profiles.items())
  return {"labels": count, "profile_rows": sizes}


def tables(data, attributes):
  """Returns {"profile/ATTRIBUTE": int32 [U + 1]}: what models read of users."""
  return {f"profile/{name}": np.asarray(labels(data, name)[0], np.int32) for name in attributes}


def row_names(data, profile, used):
  """Returns the vocabularies {name: (names, trained)} of users' attributes that are `used`.

  "label" are those that a head scores, "profile/ATTRIBUTE" the values that a model reads.
  """
  read = {f"profile/{name}": (np.asarray(found.ids[1:]), np.ones(len(found.ids) - 1, bool))
          for name, found in data.profiles.items() if f"profile/{name}" in used}
  if "label" not in used:
    return read
  attribute = profile["attribute"]
  scored = [b"\x01none", *(attribute.encode() + b"=" + x
                           for x in labels(data, attribute)[1][1:].tolist())]
  return {**read, "label": (np.array(scored), np.ones(len(scored), bool))}


def _uniform(name, seed):
  """Returns a number in [0, 1) that depends on an external id and the seed alone."""
  digest = hashlib.blake2b(name, digest_size=8, key=str(seed).encode()).digest()
  return int.from_bytes(digest, "big") / 2**64
