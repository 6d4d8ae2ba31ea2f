"""What every evaluator of held-out interactions needs: whose, after what, and fetched how."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from recjax import errors

CONTEXTS = ("train", "train+val")
IN_FLIGHT = 3  # Batches: simulated CPU devices abort with many more, and scores take memory.


def check(what, names, known):
  """Raises UserError for the first of `names` that is not `known`."""
  for name in names:
    if name not in known:
      raise errors.UserError(f"evaluation: unknown {what} {name!r} here; known: {', '.join(known)}")


def choose_contexts(split, contexts):
  """Returns the contexts to evaluate: those asked for, or all that the split allows."""
  check("split", (split,), ("val", "test"))
  allowed = CONTEXTS if split == "test" else CONTEXTS[:1]
  contexts = allowed if contexts is None else tuple(contexts)
  check("context", contexts, allowed)
  return contexts


def choose_users(data, split, max_users, seed):
  """Returns the users who own an item in `split`, or a fixed random subset of that size."""
  users = data.users_in(split)
  if not len(users):
    raise errors.UserError(f"data set {data.name!r} has no user with an item in its {split} split; "
                           "evaluate another split or prepare the data with another rule")
  if max_users is not None and max_users < len(users):
    users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
  return users


def history_span(data, users, split, context):
  """Returns (begin, end) int64 [n]: the rows that a user's history is cut from."""
  begin, end = (edge[users] for edge in data.span("train"))
  if context == "train+val":
    val_begin, val_end = (edge[users] for edge in data.span("val"))
    # Where val overlaps test (the survey's short users) the history stops before the test items.
    val_end = np.minimum(val_end, data.span(split)[0][users])
    end = np.where(val_end > val_begin, np.maximum(end, val_end), end)
  return begin, end


def fill(array, size):
  """Returns `array` with rows of zeros appended up to `size`."""
  out = np.zeros((size, *array.shape[1:]), array.dtype)
  out[:len(array)] = array
  return out


def fetch(tree):
  """Returns device arrays as numpy, whole in every process."""
  if all(array.is_fully_addressable for array in jax.tree.leaves(tree)):
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
