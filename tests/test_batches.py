"""Sampling on the device: epochs are permutations, windows stay inside the split."""

import dataclasses
import functools

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax.data import batches
from recjax.data import sequences

LENGTHS = (1, 2, 3, 4, 5, 7, 12, 12, 0, 2, 9)  # train interactions of users 1..11
TRAINING = 10  # users who have any
WIDTH = 6


@functools.cache
def _data():
  """Returns a data set where each interaction has an item of its own, numbered in time order."""
  users, item = [], 1
  for length in LENGTHS:
    parts = []
    for size in (length, 1, 2):  # train, val, test
      parts.append(list(range(item, item + size)))
      item += size
    users.append(tuple(parts))
  return evaluator_data.dataset(users, item - 1)


@functools.cache
def _compiled(window, batch_size):
  resident = jax.tree.map(jnp.asarray, batches.resident(_data()))
  sample = batches.make_sampler(num_users=TRAINING, batch_size=batch_size, length=WIDTH,
                                window=window)
  return jax.jit(functools.partial(sample, resident))


def _draw(window, seed, steps, *, batch_size=5):
  """Returns {"items" [steps, B, T], "users" [steps, B]}."""
  rng = jax.random.key(seed)
  drawn = [_compiled(window, batch_size)(rng, np.int32(step)) for step in steps]
  return {name: np.stack([np.asarray(batch[name]) for batch in drawn]) for name in drawn[0]}


def _train_items(user):
  begin, end = _data().span("train")
  return _data().items[begin[user]:end[user]].tolist()




# One program per size, over many keys at once.
@functools.cache
def _permutations(size):
  return jax.jit(jax.vmap(lambda key: batches.permute(jnp.arange(size), size, key)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64, 1000, 6040])
def test_permute_is_a_bijection(size):
  keys = jax.random.split(jax.random.key(size), 5)
  for row in np.asarray(_permutations(size)(keys)):
    np.testing.assert_array_equal(np.sort(row), np.arange(size))


def test_permute_of_a_part_is_that_part_of_the_whole():
  key = jax.random.key(3)
  whole = np.asarray(_permutations(1000)(key[None])[0])
  part = jnp.array([999, 0, 17, 500, 17])
  np.testing.assert_array_equal(batches.permute(part, 1000, key), whole[np.asarray(part)])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_place_is_equally_likely(size):
  trials = 4000
  perms = np.asarray(_permutations(size)(jax.random.split(jax.random.key(0), trials)))
  counts = np.stack([(perms == value).sum(0) for value in range(size)])  # [value, index]
  sigma = np.sqrt(trials / size * (1 - 1 / size))
  assert np.abs(counts - trials / size).max() < 5 * sigma


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_occurs(size):
  trials = 6000
  perms = np.asarray(_permutations(size)(jax.random.split(jax.random.key(1), trials)))
  orders, counts = np.unique(perms, axis=0, return_counts=True)
  assert len(orders) == np.prod(np.arange(1, size + 1))
  expected = trials / len(orders)
  assert ((counts - expected)**2 / expected).sum() < len(orders) + 6 * np.sqrt(2 * len(orders))


def test_large_permutations_look_random():
  size, trials = 1000, 40
  perms = np.asarray(_permutations(size)(jax.random.split(jax.random.key(2), trials))).astype(float)
  index = np.arange(size)
  # Neither the order nor neighbors survive; two keys do not resemble each other.
  limit = 4.5 / np.sqrt(size)
  assert max(abs(np.corrcoef(index, p)[0, 1]) for p in perms) < limit
  assert max(abs(np.corrcoef(p[:-1], p[1:])[0, 1]) for p in perms) < limit
  pairs = zip(perms[:-1], perms[1:], strict=True)
  assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs) < limit
  fixed = (perms == index).sum()
  assert abs(fixed - trials) < 5 * np.sqrt(trials)  # Poisson, one a permutation
  # Neighbors stay neighbors about twice in a permutation.
  close = (np.abs(np.diff(perms, axis=1)) == 1).sum()
  assert abs(close - 2 * trials) < 5 * np.sqrt(2 * trials)


@pytest.mark.parametrize("window,batch_size", [
  ("last", 5), ("prefix", 5), ("random", 5), ("last", 1), ("last", 4), ("last", 16)])
def test_every_epoch_visits_each_user_once(window, batch_size):
  per_epoch = -(-TRAINING // batch_size)
  out = _draw(window, 0, range(3 * per_epoch), batch_size=batch_size)
  orders = []
  for epoch in range(3):
    users = out["users"][epoch * per_epoch:(epoch + 1) * per_epoch].ravel()
    assert (users[TRAINING:] == 0).all()  # what fills up the last batch
    assert sorted(users[:TRAINING]) == [u for u, n in enumerate(LENGTHS, 1) if n]
    orders.append(users[:TRAINING].tolist())
  assert orders[0] != orders[1] != orders[2] != orders[0]
  np.testing.assert_array_equal((out["items"] > 0).any(-1), out["users"] > 0)


@pytest.mark.parametrize("window", batches.WINDOWS)
def test_a_batch_is_a_function_of_seed_and_step(window):
  all_steps, other = _draw(window, 7, range(12)), _draw(window, 8, range(12))
  alone = _draw(window, 7, [11, 3])
  for name in all_steps:
    np.testing.assert_array_equal(alone[name], all_steps[name][[11, 3]])
    assert not np.array_equal(other[name], all_steps[name])


@pytest.mark.parametrize("window", batches.WINDOWS)
def test_windows_are_runs_of_the_users_own_training_items(window):
  out = _draw(window, 1, range(60))
  for user, row in zip(out["users"].ravel(), out["items"].reshape(-1, WIDTH), strict=True):
    kept = row[row > 0].tolist()
    assert (row[:WIDTH - len(kept)] == 0).all()  # left-padded
    if user == 0:
      assert not kept
      continue
    mine = _train_items(user)
    end = mine.index(kept[-1]) + 1
    assert kept == mine[:end][-WIDTH:]  # and never a val or test row
    if window == "last":
      assert end == len(mine)
    elif window == "prefix":
      assert end >= min(3, len(mine))
    else:
      assert len(kept) == min(WIDTH, len(mine))


@pytest.mark.parametrize("window,first", [("prefix", 3), ("random", WIDTH)])
def test_ends_are_uniform(window, first):
  epochs = 1000
  out = _draw(window, 2, range(epochs * (TRAINING // 5)))
  for user in (5, 6, 7):
    mine = _train_items(user)
    last = out["items"][out["users"] == user][:, -1]
    ends = np.array([mine.index(item) + 1 for item in last])
    first_end = min(first, len(mine))
    options = len(mine) - first_end + 1
    counts = np.bincount(ends, minlength=len(mine) + 1)
    assert counts[:first_end].sum() == 0 and counts.sum() == epochs
    sigma = np.sqrt(epochs / options * (1 - 1 / options))
    assert np.abs(counts[first_end:] - epochs / options).max() <= 4.5 * sigma


def test_resident_arrays_leave_out_short_users():
  for min_length in (1, 3):
    resident = batches.resident(_data(), min_length=min_length)
    assert resident["users"].tolist() == [u for u, n in enumerate(LENGTHS, 1) if n >= min_length]
    assert all(x.dtype == np.int32 for x in resident.values())
    for user, begin, end in zip(resident["users"], resident["begin"], resident["end"], strict=True):
      assert resident["items"][begin:end].tolist() == _train_items(user)
  with pytest.raises(errors.UserError, match="no user has 13 train interactions"):
    batches.resident(_data(), min_length=13)


def test_the_pool_is_the_domain():
  data = evaluator_data.dataset([([1, 2], [], [])], 6, in_domain=[1, 2, 5])
  assert batches.resident(data)["pool"].tolist() == [1, 2, 5]


def test_an_unknown_window_lists_the_known():
  with pytest.raises(errors.UserError, match="'all'.*last, prefix, random"):
    batches.make_sampler(num_users=1, batch_size=1, length=1, window="all")


def test_attribute_tables():
  values = np.zeros((5, 2), np.int32)
  values[1:] = [[1, 0], [2, 3], [0, 0], [3, 1]]
  data = dataclasses.replace(
    evaluator_data.dataset([([1, 2], [], [])], 4),
    features={"genre": sequences.Feature(values, np.array([b"", b"a", b"b", b"c"]))})
  rows = batches.field_rows(data)["genre"]
  unknown = rows  # the last id of the table
  assert rows == 3 + 1
  for slots in (1, 2, 3):
    table = batches.attribute_tables(data, [("genre", 8, slots)], extra_tokens=2)["genre"]
    assert table.shape == (4 + 2 + 2, slots) and table.dtype == np.int32
    assert (table[0] == 0).all()  # padding has no attributes
    assert (table[[3, 5, 6, 7]] == unknown).all()  # no value, MASK, extra tokens
    want = np.zeros((3, slots))
    want[:, :2] = values[[1, 2, 4], :slots]
    np.testing.assert_array_equal(table[[1, 2, 4]], want)
  with pytest.raises(errors.UserError, match="'actor'.*genre"):
    batches.attribute_tables(data, [("actor", 8, 1)])


def test_sliding_windows_are_every_run_of_so_many_items():
  slide = 4
  resident = batches.resident(_data(), slide=slide)
  windows = {user: [] for user in range(1, len(LENGTHS) + 1)}
  for user, begin, end in zip(*(resident[k] for k in ("users", "begin", "end")), strict=True):
    windows[int(user)].append(resident["items"][begin:end].tolist())
  for user, found in windows.items():
    mine = _train_items(user)
    want = [mine[low:low + slide] for low in range(max(len(mine) - slide, 0) + 1)] if mine else []
    assert sorted(found) == want


def test_what_users_have_seen_is_of_the_pool_and_of_the_split():
  data = evaluator_data.dataset([([5, 1, 5, 3], [2], [6]), ([], [1], [2]), ([6, 2], [1], [5])], 6,
                                in_domain=[1, 2, 5, 6])
  plain = batches.resident(data)
  assert "seen_gaps" not in plain
  for columns, pool, seen in ((("seen",), [1, 2, 5, 6], {1: [0, 2], 2: [], 3: [1, 3]}),
                              (("seen", "global"), [1, 2, 3, 4, 5, 6],
                               {1: [0, 2, 4], 2: [], 3: [1, 5]})):
    table = batches.resident(data, columns=columns)
    assert table["pool"].tolist() == pool
    for user, places in seen.items():
      begin, end = table["seen_begin"][user], table["seen_end"][user]
      gaps = table["seen_gaps"][begin:end]
      assert (gaps + np.arange(len(gaps))).tolist() == places
    assert table["seen_begin"][0] == table["seen_end"][0]
