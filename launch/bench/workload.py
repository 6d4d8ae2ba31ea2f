"""The work that every contestant does, in numbers and arrays: no jax and no torch here.

MovieLens-1M, leave-one-out: 6,040 users, 3,706 items, the last 100 training items of every user.
"""

import dataclasses

import numpy as np

from recjax.data import sequences

TASKS = ("bert4rec", "sasrec", "sasrec_bce", "caser")
DATASET = "ml1m"


@dataclasses.dataclass(frozen=True)
class Size:
  """A transformer, and the batches that it is trained on. The defaults are what is compared."""
  layers: int = 6
  width: int = 128
  heads: int = 4
  hidden: int = 512
  max_len: int = 100
  batch: int = 256  # users an optimizer step
  dropout: float = 0.1
  rate: float = 0.15  # of items that are masked
  lr: float = 1e-3


@dataclasses.dataclass(frozen=True)
class CaserSize:
  """Caser as Tang & Wang 2018 on ML-1M: an example is a window of 5 items and the 3 after it."""
  width: int = 50
  vertical: int = 4
  horizontal: int = 16
  max_len: int = 5
  targets: int = 3
  negatives: int = 3
  batch: int = 512
  dropout: float = 0.5
  lr: float = 1e-3
  weight_decay: float = 1e-6


def load(data_dir):
  """Returns the prepared `sequences.Dataset` in the folder `data_dir`."""
  return sequences.load(data_dir, DATASET)


def windows(data, columns):
  """Returns int32 [users, columns]: the last training items of every user, left-padded."""
  begin, end = data.span("train")
  kept = np.flatnonzero(end - begin >= 2)
  return sequences.pad(data.items, begin[kept], end[kept], width=columns, align="right").astype(
    np.int32)


def lengths(data, task, size):
  """Returns int [users]: how many inputs a transformer has of each; of next items, all but one."""
  ahead = task != "bert4rec"
  return (windows(data, size.max_len + ahead) > 0).sum(1) - ahead


def sliding(data, columns):
  """Returns (users int32 [n], items int32 [n, columns]): all windows of all training sequences."""
  users, found = [], []
  begin, end = data.span("train")
  for user in np.flatnonzero(end - begin >= columns):
    items = np.asarray(data.items[begin[user]:end[user]])
    rows = np.lib.stride_tricks.sliding_window_view(items, columns)
    users.append(np.full(len(rows), user, np.int32))
    found.append(rows)
  return np.concatenate(users), np.concatenate(found).astype(np.int32)


def batches(rows, size, seed):
  """Yields int [size] row numbers for ever: every epoch in an order of its own, whole batches."""
  rng = np.random.default_rng(seed)
  while True:
    order = rng.permutation(rows)
    for low in range(0, rows - size + 1, size):
      yield order[low:low + size]


def mask(items, *, rate, num_items, rng):
  """Returns (inputs, labels), int64 like `items`: the cloze task, 80/10/10 (Devlin et al. 2019).

  Args:
    items: int [B, T] left-padded.
    rate: share of the items to predict.
    num_items: N; MASK is N + 1.
    rng: numpy generator.
  """
  chosen = (rng.random(items.shape) < rate) & (items > 0)
  fate = rng.random(items.shape)
  other = rng.integers(1, num_items + 1, items.shape)
  changed = np.where(fate < 0.8, num_items + 1, np.where(fate < 0.9, other, items))
  return (np.where(chosen, changed, items).astype(np.int64),
          np.where(chosen, items, 0).astype(np.int64))
