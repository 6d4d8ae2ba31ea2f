"""Sampled negatives for ranking, fixed per (data set, split, protocol, seed).

    uniform100_global   uniform over the whole vocabulary, other domains included
    uniform100_domain   uniform over the items of the data set's own domain
    pop100              one by one, proportional to training frequency

All draws are without replacement and leave out whatever the user owns, in a split or not. A user's
negatives are a function of (seed, protocol, split, user id): they depend neither on the run's seed
nor on which other users are evaluated, and a shorter list is the beginning of a longer one.
"""

import os
import pathlib
import tempfile
import zipfile
import zlib

import numpy as np

from recjax import errors
from recjax.data import sequences

EVERYTHING = ("everything",)  # in place of splits: all of a user's rows, in a split or not
SAMPLED = ("uniform100_global", "uniform100_domain", "pop100")
_VERSION = 1  # Raise it when the draws change, so that stored ones are not reused.
_USERS_PER_BLOCK = 2048
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample(data, users, split, protocol, *, num_negatives=100, seed=0):
  """Returns int32 [n, num_negatives]: each user's negatives, 0-padded where too few are eligible.

  Draws with replacement that skip repeats and excluded items are exactly successive sampling, so
  rejection gives the bulk. Rows that stay short are completed by an exponential race over all
  items, which continues the same process exactly (it has no memory).
  """
  weights = _weights(data, protocol)
  stream = f"{protocol}/{split}".encode()
  keys = np.random.SeedSequence([seed, zlib.crc32(stream)]).generate_state(2, np.uint64)
  out = np.zeros((len(users), num_negatives), np.int32)
  for low in range(0, len(users), _USERS_PER_BLOCK):
    block = np.asarray(users[low:low + _USERS_PER_BLOCK])
    out[low:low + len(block)] = _sample_block(data, block, weights, keys, num_negatives)
  return out


def load_or_sample(data, users, split, protocol, *, num_negatives=100, seed=0, cache_dir=None):
  """Returns what `sample` returns, kept in `cache_dir/SPLIT_PROTOCOL_n100_seed0.npz`.

  A stored file counts only if it was drawn for the same interactions and covers `users`. A file is
  written only for all users of the split; where the folder is read-only it is not written at all.
  """
  options = dict(num_negatives=num_negatives, seed=seed)
  if cache_dir is None:
    return sample(data, users, split, protocol, **options)
  path = pathlib.Path(cache_dir) / f"{split}_{protocol}_n{num_negatives}_seed{seed}.npz"
  everyone = data.users_in(split)
  mark = _fingerprint(data, everyone, protocol)
  stored = _read(path, everyone, mark, num_negatives)
  if stored is not None:
    return stored[np.searchsorted(everyone, users)]
  negatives = sample(data, users, split, protocol, **options)
  if np.array_equal(users, everyone):
    _write(path, users=everyone, fingerprint=mark, negatives=negatives)
  return negatives


def distinct_items(data, users, splits, *, without=()):
  """Returns (values int32 [R], offsets int64 [n + 1]): the distinct items of each user, ascending.

  User i of `users` has values[offsets[i]:offsets[i + 1]]: what it owns in `splits` and not in
  `without`. Raises `UserError` for an item outside the vocabulary.
  """
  find = lambda split: _everything(data) if split in EVERYTHING else data.span(split)
  spans = {split: find(split) for split in (*splits, *without)}
  values, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
  for low in range(0, len(users), _USERS_PER_BLOCK):
    block = np.asarray(users[low:low + _USERS_PER_BLOCK])
    keys = _owned(data, block, [spans[split] for split in splits])
    if without:
      drop = _owned(data, block, [spans[split] for split in without])
      keys = np.setdiff1d(keys, drop, assume_unique=True)
    row, item = np.divmod(keys, data.num_items + 1)
    values.append(item.astype(np.int32))
    counts.append(np.bincount(row, minlength=len(block)))
  offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
  return np.concatenate(values), offsets


def item_before(data):
  """Returns int32 [N + 1]: the item before each one, in order of first appearance in the raw file.

  For the known defect of the survey's released Caser evaluation. Its negatives count from 1, as the
  model does, but its positives from 0, so that the model ranked the item before each true item.
  The first item has none before it and stays itself (as released: padding).
  """
  if data.first_seen is None:
    raise errors.UserError(f"protocol survey_caser_legacy: data set {data.name!r} does not say in "
                           "which order items first appear; prepare ml1m_tgt_asreleased")
  order = np.argsort(data.first_seen, kind="stable").astype(np.int32)  # By rank; row 0 is rank 0.
  before = order[np.maximum(np.asarray(data.first_seen) - 1, 0)]
  return np.where(before > 0, before, np.arange(len(before))).astype(np.int32)


def _everything(data):
  """Returns (begin, end) int64 [U + 1]: all rows of every user, those of no split included."""
  offsets = np.asarray(data.offsets, np.int64)
  return offsets[:-1], offsets[1:]


def _owned(data, users, spans):
  """Returns the sorted distinct keys row * (N + 1) + item of what `users` own in `spans`."""
  keys = []
  for begin, end in spans:
    begin, end = begin[users], end[users]
    items = sequences.take_ranges(data.items, begin, end)
    if items.size and not 0 < items.min() <= items.max() <= data.num_items:
      raise errors.UserError(f"data set {data.name!r} has an item outside 1..{data.num_items}; "
                             "prepare the data again")
    keys.append(np.repeat(np.arange(len(users)), end - begin) * (data.num_items + 1) + items)
  return np.unique(np.concatenate(keys))


def _weights(data, protocol):
  """Returns int64 [N + 1]: how likely each item is, up to a factor; 0 is never drawn."""
  if protocol == "uniform100_global":
    weights = np.ones(data.num_items + 1, np.int64)
  elif protocol == "uniform100_domain":
    weights = data.in_domain.astype(np.int64)
  elif protocol == "pop100":
    weights = data.item_counts("train")
  else:
    raise errors.UserError(f"unknown sampled protocol {protocol!r}; known: {', '.join(SAMPLED)}")
  weights[0] = 0
  return weights


def _sample_block(data, users, weights, keys, num_negatives):
  base = data.num_items + 1
  excluded = _owned(data, users, [_everything(data)])
  cumulative, support = np.cumsum(weights), np.count_nonzero(weights)
  out, short = np.zeros((len(users), num_negatives), np.int32), np.arange(len(users))
  # A stream is a function of its position, so a wider round repeats the narrower one and goes on.
  for width in (num_negatives * 5 // 4 + 8, num_negatives * 4, num_negatives * 32):
    if width > support:
      break  # Then the race costs less.
    point = (_uniform(keys[0], users[short], width) * cumulative[-1]).astype(np.int64)
    point = np.minimum(point, cumulative[-1] - 1)  # The product can round up.
    draws = np.searchsorted(cumulative, point, side="right")
    fresh = _first_seen(draws) & ~np.isin(short[:, None] * base + draws, excluded)
    out[short] = _first(draws, fresh, num_negatives)
    short = short[out[short, -1] == 0]
  step = max(1, (1 << 22) // base)
  for rows in (short[low:low + step] for low in range(0, len(short), step)):
    out[rows] = _race(users[rows], rows, out[rows], excluded, weights, keys[1])
  return out


def _race(users, rows, partial, excluded, weights, key):
  """Returns `partial` [n, k] completed by the eligible items that arrive first, in that order."""
  base = len(weights)
  arrival = -np.log1p(-_uniform(key, users, base))
  with np.errstate(divide="ignore", invalid="ignore"):
    arrival = np.where(weights > 0, arrival / weights, np.inf)
  arrival[np.isin(rows[:, None] * base + np.arange(base), excluded)] = np.inf
  np.put_along_axis(arrival, partial.astype(np.int64), np.inf, axis=1)
  order = np.argsort(arrival, axis=1, kind="stable")[:, :partial.shape[1]]
  items = np.concatenate([partial, order], axis=1)
  running = np.isfinite(np.take_along_axis(arrival, order, axis=1))
  return _first(items, np.concatenate([partial > 0, running], axis=1), partial.shape[1])


def _first_seen(draws):
  """Returns bool [n, W]: is this the first time its row shows this value?"""
  width = draws.shape[1]
  order = np.sort(draws * width + np.arange(width), axis=1)  # By value, then by column.
  value, column = np.divmod(order, width)
  first = np.ones(draws.shape, bool)
  first[:, 1:] = value[:, 1:] != value[:, :-1]
  seen = np.empty_like(first)
  np.put_along_axis(seen, column, first, axis=1)
  return seen


def _first(values, keep, k):
  """Returns int32 [n, k]: the first k kept values of each row, 0-padded."""
  slot = np.cumsum(keep, axis=1) - 1
  row, column = np.nonzero(keep & (slot < k))
  out = np.zeros((len(values), k), np.int32)
  out[row, slot[row, column]] = values[row, column]
  return out


def _uniform(key, users, width):
  """Returns float64 [n, width] in [0, 1): the first numbers of each user's own stream.

  SplitMix64 (Steele, Lea and Flood 2014), started at a hash of the user: a counter and not a state,
  so all users are drawn at once and none depends on another.
  """
  start = _mix(np.asarray(users).astype(np.uint64) * _GOLDEN + np.atleast_1d(key))
  bits = _mix(start[:, None] + np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN)
  return (bits >> np.uint64(11)) * 2.0**-53


def _mix(z):
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return z ^ (z >> np.uint64(31))


def _fingerprint(data, users, protocol):
  """Returns a checksum of all that the draws depend on besides the numbers in the file's name."""
  mark = zlib.crc32(np.int64([_VERSION, data.num_items]).tobytes())
  mark = zlib.crc32(_weights(data, protocol).tobytes(), mark)
  begin, end = (edge[users] for edge in _everything(data))
  mark = zlib.crc32((end - begin).tobytes(), mark)
  for low in range(0, len(users), _USERS_PER_BLOCK):
    part = slice(low, low + _USERS_PER_BLOCK)
    mark = zlib.crc32(sequences.take_ranges(data.items, begin[part], end[part]).tobytes(), mark)
  return np.int64(mark)


def _read(path, users, mark, num_negatives):
  """Returns the stored negatives of `users`, or None if there are none or they are not theirs."""
  try:
    with np.load(path, allow_pickle=False) as stored:
      if stored["fingerprint"] == mark and np.array_equal(stored["users"], users):
        negatives = stored["negatives"]
        return negatives if negatives.shape == (len(users), num_negatives) else None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    pass
  return None


def _write(path, **arrays):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
  except OSError:
    return  # A read-only data folder: draw again next time.
  try:
    with os.fdopen(handle, "wb") as file:
      np.savez(file, **arrays)
    os.chmod(draft, 0o644)  # mkstemp's files are private; the data set is not.
    os.replace(draft, path)
  except OSError:
    pathlib.Path(draft).unlink(missing_ok=True)
