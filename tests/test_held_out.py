"""Cold items: what is held out is in no training, remains its users', and is tested."""

import dataclasses
import types

import numpy as np
import pytest

import evaluator_data
from recjax import catalog, comparisons, errors
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


def test_full_ranking_leaves_out_what_users_own_and_slices_tell_cold_items(pair):
  before, after = pair
  plain, cold = (ranking.Ranking(data, protocols=("full",), ks=(10,), batch_size=64)
                 for data in pair)
  # Scores nothing but how many candidates there are: the same before and after.
  chance = [popularity.chance(evaluator, data).values["train"]["full"]["mrr"]
            for evaluator, data in ((plain, before), (cold, after))]
  np.testing.assert_allclose(*chance)


def _by_hand(data, scores, user):
  """Returns the MRR of a user's cold test items among the cold items that they do not own."""
  rows = slice(data.offsets[user], data.offsets[user + 1])
  wanted = [item for item in _items(data, "test", user) if data.held_out[item]]
  others = set(np.flatnonzero(data.held_out)) - set(np.asarray(data.items[rows]).tolist())
  if not wanted:
    return np.nan
  above = lambda item: sum(scores[x] > scores[item] for x in {*others, *wanted})
  return 1 / (1 + min(above(item) for item in wanted))


def test_cold_items_are_ranked_among_themselves(pair):
  data, rng = pair[1], np.random.default_rng(0)
  scores = rng.permutation(61).astype(np.float32)
  wanted = [_by_hand(data, scores, user) for user in range(1, data.num_users + 1)]
  assert 5 < np.isfinite(wanted).sum() < data.num_users
  evaluator = ranking.Ranking(data, protocols=("cold", "full"), ks=(2,), batch_size=16)
  found = evaluator.run(popularity._score, scores)
  np.testing.assert_allclose(found.values["train"]["cold"]["mrr"], wanted, rtol=1e-6)
  assert found.means()["train"]["cold"]["mrr"] == pytest.approx(np.nanmean(wanted), rel=1e-6)
  assert set(found.positives.values["train"]) == {"full"}
  references = evaluator.references()  # Nobody trained on them: all are equally popular.
  known, nothing = (references[name].means()["train"] for name in ("popularity", "chance"))
  assert known["cold"] == nothing["cold"] and known["full"] != nothing["full"]


def test_cold_items_are_ranked_alike_in_blocks(pair, monkeypatch):
  data, scores = pair[1], np.random.default_rng(0).permutation(61).astype(np.float32)
  run = lambda: ranking.Ranking(data, protocols=("cold",), ks=(2,), batch_size=16).run(
    popularity._score, scores).values["train"]["cold"]
  plain = run()
  monkeypatch.setattr(catalog, "HELD", 0)
  for metric, value in run().items():
    np.testing.assert_array_equal(value, plain[metric])


def test_without_cold_items_there_is_no_ranking_of_them(pair):
  with pytest.raises(errors.UserError, match="protocol cold: .* set held_out_items"):
    ranking.Ranking(pair[0], protocols=("cold",))
  assert ranking.Ranking(pair[1], split="val", protocols=("cold", "full")).protocols == ("full",)


def test_users_without_a_cold_item_decide_nothing():
  run = lambda seed, *values: types.SimpleNamespace(
    seed=seed, users=np.arange(4), references=(), values={"train/cold/mrr": np.float32(values)})
  runs = {"a": [run(0, .5, np.nan, 1, .5), run(1, .5, np.nan, 1, .5)],
          "b": [run(0, 0, np.nan, .5, .25), run(1, .25, np.nan, .5, .25)]}
  entry, = comparisons.compare(runs, [("a - b", "a", "b")], metrics=("mrr",), draws=50)
  assert entry["users"] == 3
  assert entry["by_seed"] == pytest.approx([1.25 / 3, 1 / 3])
  assert entry["difference"] == pytest.approx(1.125 / 3)
