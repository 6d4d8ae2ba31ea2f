"""Cold items: what is held out is in no training, remains its users', and is tested."""

import dataclasses

import numpy as np
import pytest

import evaluator_data
from recjax import errors
from recjax.data import batches, held_out
from recjax.evaluators import popularity, ranking


@pytest.fixture(scope="module")
def pair():
  data = evaluator_data.random_dataset(num_items=60, domain=50, seed=3)
  return data, held_out.hold_out(data, (0.3, 1))


def _items(data, split, user):
  begin, end = data.span(split)
  return np.asarray(data.items[begin[user]:end[user]]).tolist()


def test_train_and_val_lose_what_is_held_out_and_test_does_not(pair):
  before, after = pair
  held = after.held_out
  assert held.sum() == 15 and not held[0] and not held[51:].any()
  for user in range(before.num_users + 1):
    for split in ("train", "val"):
      expected = [item for item in _items(before, split, user) if not held[item]]
      assert _items(after, split, user) == expected
    assert _items(after, "test", user) == _items(before, "test", user)
  assert (after.item_counts("train")[held] == 0).all()
  assert after.item_counts("test")[held].sum() > 10


def test_what_is_held_out_remains_its_users(pair):
  before, after = pair
  assert np.array_equal(before.offsets, after.offsets)
  for user in range(before.num_users + 1):
    rows = slice(before.offsets[user], before.offsets[user + 1])
    assert sorted(before.items[rows]) == sorted(after.items[rows])
    moved = dict(zip(after.times[rows], after.items[rows], strict=True))
    assert moved == dict(zip(before.times[rows], before.items[rows], strict=True))


def test_marks_of_baskets_move_with_their_rows(pair):
  before, _ = pair
  marks = np.arange(len(before.items), dtype=np.int32)
  after = held_out.hold_out(dataclasses.replace(before, baskets=marks), (0.3, 1))
  assert np.array_equal(np.asarray(before.items)[after.baskets], after.items)


def test_the_choice_goes_by_external_id_and_seed(pair):
  before, after = pair
  names = lambda data: set(np.asarray(data.item_ids)[data.held_out].tolist())
  assert names(held_out.hold_out(before, (0.3, 1))) == names(after)
  assert names(held_out.hold_out(before, (0.3, 2))) != names(after)
  about = after.identity()["held_out_items"]
  assert about.pop("interactions") == (before.lengths("train").sum() + before.lengths("val").sum()
                                       - after.lengths("train").sum() - after.lengths("val").sum())
  assert about == {"share": 0.3, "seed": 1, "items": 15}
  assert "held_out_items" not in before.identity()


def test_nothing_held_out_is_drawn(pair):
  _, after = pair
  for columns in ((), ("global",)):
    assert not after.held_out[batches.pool(after, columns)].any()


@pytest.mark.parametrize("wanted", [(0.0, 1), (1.0, 1), (0.2,), (0.2, "1")])
def test_a_mistake(pair, wanted):
  with pytest.raises(errors.UserError, match="held_out_items"):
    held_out.hold_out(pair[0], wanted)


def test_full_ranking_leaves_out_what_users_own_and_slices_tell_cold_items(pair, compile_quickly):
  before, after = pair
  plain, cold = (ranking.Ranking(data, protocols=("full",), ks=(10,), batch_size=64)
                 for data in pair)
  # Scores nothing but how many candidates there are: the same before and after.
  chance = [popularity.chance(evaluator, data).values["train"]["full"]["mrr"]
            for evaluator, data in ((plain, before), (cold, after))]
  np.testing.assert_allclose(*chance)
