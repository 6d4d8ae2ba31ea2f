"""What every evaluator of held-out interactions needs: whose, after what, and fetched how."""

import collections

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
  return subset(users, max_users, seed)


def subset(rows, most, seed):
  """Returns `rows`, or `most` of them in ascending order, if there are more.

  Args:
    rows: [n], ascending.
    most: a number, or None: all of them.
    seed: that fixes the choice, or a numpy Generator.
  """
  if most is None or most >= len(rows):
    return rows
  return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


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


def pieces(count, size):
  """Returns the slices of `count` rows that hold `size` each, the last one what is left."""
  return [slice(low, low + size) for low in range(0, count, size)]


def fetched(batches):
  """Yields (label, arrays on the host) of (label, arrays on the devices), a few batches later.

  So that the next ones are computed meanwhile: what `batches` yields was dispatched, not awaited.
  """
  waiting = collections.deque()
  for batch in batches:
    waiting.append(batch)
    if len(waiting) > IN_FLIGHT:
      label, arrays = waiting.popleft()
      yield label, fetch(arrays)
  for label, arrays in waiting:
    yield label, fetch(arrays)


def fetch(tree):
  """Returns device arrays as numpy, whole in every process."""
  if all(array.is_fully_addressable for array in jax.tree.leaves(tree)):
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
