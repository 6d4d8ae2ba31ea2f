"""Sampled negatives: who may be drawn, how often, and that the draws are everyone's own."""

import dataclasses

import evaluator_data
import numpy as np
import pytest

from recjax import errors
from recjax.data import sequences
from recjax.evaluators import candidates


def _owned(data, user):
  start = data.offsets[user]
  return set(data.items[start:data.offsets[user + 1]].tolist())


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("protocol", candidates.SAMPLED)
def test_negatives_are_distinct_eligible_and_not_owned(protocol, split):
  data = evaluator_data.random_dataset()
  users = data.users_in(split)
  counts = data.item_counts("train")
  negatives = candidates.sample(data, users, split, protocol)
  assert negatives.shape == (len(users), 100) and negatives.dtype == np.int32
  for user, row in zip(users, negatives, strict=True):
    assert len(set(row.tolist())) == 100 and row.min() >= 1 and row.max() <= data.num_items
    assert not set(row.tolist()) & _owned(data, user)
    if protocol == "uniform100_domain":
      assert data.in_domain[row].all()
    if protocol == "pop100":
      assert (counts[row] > 0).all()
  outside = (~data.in_domain[negatives]).mean()
  assert (outside > .2) == (protocol == "uniform100_global")


@pytest.mark.parametrize("protocol", candidates.SAMPLED)
def test_too_few_eligible_items_are_all_taken_and_zero_padded(protocol):
  users = [([1, 2, 3], [4], [5]), (list(range(1, 61)), [61], [62]), ([1], [2], [3])]
  data = evaluator_data.dataset(users, 70, in_domain=range(1, 66))
  counts = data.item_counts("train")
  pool = {"uniform100_global": set(range(1, 71)), "uniform100_domain": set(range(1, 66)),
          "pop100": set(np.flatnonzero(counts).tolist())}[protocol]
  negatives = candidates.sample(data, data.users_in("test"), "test", protocol)
  for user, row in enumerate(negatives, start=1):
    expected = pool - _owned(data, user)
    assert set(row[:len(expected)].tolist()) == expected
    assert not row[len(expected):].any()


@pytest.mark.parametrize("num_items", [12, 400])  # Decided by the race alone, and by rejection.
def test_pop_follows_successive_sampling(num_items):
  # Items 1..6 have frequencies 6..1 times a block; user U owns item 6 and may not get it.
  popular = [[item] * (7 - item) for item in range(1, 7)]
  train = [item for group in popular for item in group]
  users = [(train, [], [7])] + [([6], [], [7])] * 4000
  data = evaluator_data.dataset(users, num_items)
  if num_items > 12:  # A wide pool: all other items once, by a user who is not evaluated.
    users[0] = ([*train * 30, *range(8, num_items + 1)], [], [])
    data = evaluator_data.dataset(users, num_items)
  weights = data.item_counts("train").astype(float)
  weights[[6, 7]] = 0
  chosen = data.users_in("test")[-4000:]
  draws = candidates.sample(data, chosen, "test", "pop100", num_negatives=2)
  first = np.bincount(draws[:, 0], minlength=num_items + 1) / 4000
  p = weights / weights.sum()
  _check_frequencies(first, p)
  # The second draw: sum over the first of p_i * p_j / (1 - p_i).
  second = np.array([sum(p[i] * p[j] / (1 - p[i]) for i in np.flatnonzero(p) if i != j)
                     for j in range(num_items + 1)])
  _check_frequencies(np.bincount(draws[:, 1], minlength=num_items + 1) / 4000, second)


def _check_frequencies(seen, p):
  assert not seen[p == 0].any()
  chi2 = (4000 * (seen - p)[p > 0] ** 2 / p[p > 0]).sum()
  freedom = np.count_nonzero(p) - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_the_race_continues_what_rejection_began():
  # Item 1 holds nearly all the weight, so rejection stops at it and the race must go on unbiased.
  counts = np.array([0, 100_000, *range(1, 21)])
  users = [(np.repeat(np.arange(22), counts), [], [])] + [([22], [], [23])] * 4000
  data = evaluator_data.dataset(users, 23)
  draws = candidates.sample(data, data.users_in("test"), "test", "pop100", num_negatives=3)
  assert (draws[:, 0] == 1).mean() > .98 and draws.all()
  counts[1] = 0
  rows = draws[draws[:, 0] == 1]
  _check_frequencies(np.bincount(rows[:, 1], minlength=22) / len(rows), counts / counts.sum())


def test_uniform_draws_are_uniform():
  data = evaluator_data.dataset([([1], [2], [3])] * 3000, 203)
  draws = candidates.sample(data, data.users_in("test"), "test", "uniform100_global")
  share = np.bincount(draws.reshape(-1), minlength=204)[4:] / 3000
  deviation = np.sqrt(.5 * .5 / 3000)  # Each of the 200 items is in half of the lists.
  assert abs(share - .5).max() < 5 * deviation


def test_draws_depend_on_seed_protocol_split_and_user_only():
  data = evaluator_data.random_dataset()
  users = data.users_in("test")
  base = candidates.sample(data, users, "test", "uniform100_global")
  np.testing.assert_array_equal(base, candidates.sample(data, users, "test", "uniform100_global"))
  some = users[[3, 17, 4]]
  np.testing.assert_array_equal(
    candidates.sample(data, some, "test", "uniform100_global"), base[[3, 17, 4]])
  np.testing.assert_array_equal(
    candidates.sample(data, users, "test", "uniform100_global", num_negatives=40), base[:, :40])
  for other in (candidates.sample(data, users, "test", "uniform100_global", seed=1),
                candidates.sample(data, users, "val", "uniform100_global"),
                candidates.sample(data, users, "test", "uniform100_domain")):
    assert (base == other).mean() < .05
  assert len({tuple(row) for row in base}) == len(users)


def test_stored_draws_are_read_back_and_checked(tmp_path, monkeypatch):
  data = evaluator_data.random_dataset()
  users = data.users_in("test")
  folder = tmp_path / "deep" / "candidates"
  first = candidates.load_or_sample(data, users, "test", "pop100", cache_dir=folder)
  assert [p.name for p in folder.iterdir()] == ["test_pop100_n100_seed0.npz"]
  with monkeypatch.context() as patch:
    patch.setattr(candidates, "sample", None)  # What is stored needs no drawing, for a subset too.
    again = candidates.load_or_sample(data, users, "test", "pop100", cache_dir=folder)
    part = candidates.load_or_sample(data, users[5:9], "test", "pop100", cache_dir=folder)
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(first[5:9], part)

  items = data.items.copy()  # Prepared again, and a negative has become somebody's test item.
  items[data.span("test")[0][users[8]]] = first[8, 0]
  other = dataclasses.replace(data, items=items)
  fresh = candidates.load_or_sample(other, users, "test", "pop100", cache_dir=folder)
  assert first[8, 0] not in fresh[8]
  np.testing.assert_array_equal(fresh, candidates.sample(other, users, "test", "pop100"))
  (folder / "test_pop100_n100_seed0.npz").write_bytes(b"PK\x03\x04 broken")
  np.testing.assert_array_equal(
    first, candidates.load_or_sample(data, users, "test", "pop100", cache_dir=folder))


def test_unwritable_folder_is_no_error(tmp_path):
  data = evaluator_data.random_dataset()
  (tmp_path / "file").write_text("not a folder")
  users = data.users_in("test")
  negatives = candidates.load_or_sample(
    data, users, "test", "uniform100_domain", cache_dir=tmp_path / "file" / "candidates")
  assert negatives.all()


def test_a_subset_of_users_is_not_stored(tmp_path):
  data = evaluator_data.random_dataset()
  candidates.load_or_sample(data, data.users_in("test")[:5], "test", "pop100", cache_dir=tmp_path)
  assert not list(tmp_path.iterdir())


def test_distinct_items(monkeypatch):
  data = evaluator_data.random_dataset()
  users = data.users_in("test")[[9, 2, 30]]
  whole = candidates.distinct_items(data, users, sequences.SPLITS)
  for row, user in enumerate(users):
    assert whole[0][whole[1][row]:whole[1][row + 1]].tolist() == sorted(_owned(data, user))
  monkeypatch.setattr(candidates, "_USERS_PER_BLOCK", 2)
  blocks = candidates.distinct_items(data, users, sequences.SPLITS)
  for first, second in zip(whole, blocks, strict=True):
    np.testing.assert_array_equal(first, second)


def test_mistakes_are_user_errors():
  data = evaluator_data.random_dataset()
  with pytest.raises(errors.UserError, match="pop1000"):
    candidates.sample(data, data.users_in("test"), "test", "pop1000")
  for wrong in (0, data.num_items + 1):  # An id space that is off by one at either end.
    items = data.items.copy()
    items[data.span("test")[0][5]] = wrong
    broken = dataclasses.replace(data, items=items)
    with pytest.raises(errors.UserError, match="outside 1.."):
      candidates.distinct_items(broken, data.users_in("test"), ["test"])
