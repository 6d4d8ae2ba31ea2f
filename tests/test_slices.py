"""Slices against their plain definitions, and per-item metrics against those of users."""

import itertools

import evaluator_data
import numpy as np
import pytest

from recjax import slices
from recjax.evaluators import metrics, popularity, ranking, values


def test_history_slices_are_those_of_their_names():
  lengths = np.array([0, 1, 3, 4, 10, 11, 50, 51, 100_000])
  names = [slices.HISTORY[place] for place in slices.of_history(lengths)]
  assert names == ["cold", "1-3", "1-3", "4-10", "4-10", "11-50", "11-50", ">50", ">50"]


def test_frequency_slices_are_those_of_their_names():
  names = [slices.FREQUENCY[place] for place in slices.of_frequency(np.array([0, 1, 3, 4, 10, 11]))]
  assert names == ["0", "1-3", "1-3", "4-10", "4-10", ">10"]


def test_popularity_by_hand():
  # 30 interactions: four items of 1 and three of 2 are the first 10, two of 5 the next, one of 10.
  counts = np.array([0, 1, 1, 1, 1, 2, 2, 2, 5, 5, 10, 0])
  expected = [0] + [1] * 7 + [2, 2, 3, 0]
  np.testing.assert_array_equal(slices.of_popularity(counts), expected)


@pytest.mark.parametrize("seed", range(3))
def test_thirds_of_the_interactions_and_popular_items_above(seed):
  counts = np.random.default_rng(seed).zipf(1.5, 3000).clip(max=500)
  counts[:50] = 0
  place = slices.of_popularity(counts)
  assert (place[counts == 0] == 0).all() and (place[counts > 0] > 0).all()
  order = np.argsort(counts, kind="stable")
  assert (np.diff(place[order]) >= 0).all()
  for value in np.unique(counts):
    assert len(set(place[counts == value])) == 1
  share = np.bincount(place, weights=counts, minlength=4)[1:] / counts.sum()
  largest = max((counts[counts == value].sum() for value in np.unique(counts))) / counts.sum()
  assert np.abs(share - 1 / 3).max() <= largest + 1e-9


def test_nothing_to_train_on_is_all_cold():
  assert slices.of_popularity(np.zeros(4, int)).tolist() == [0] * 4


def test_by_user_is_the_mean_over_a_users_items():
  rng = np.random.default_rng(0)
  rows, classes, value = rng.integers(0, 20, 60), rng.integers(0, 4, 60), rng.uniform(size=60)
  got = slices.by_user(value, rows, classes, 20)
  for user, place in itertools.product(range(20), range(4)):
    mine = value[(rows == user) & (classes == place)]
    expected = mine.mean() if len(mine) else np.nan
    np.testing.assert_allclose(got[user, place], expected, rtol=1e-6)


@pytest.mark.parametrize("name, metric, stands", [
  ("dcg@10", "ndcg@10", True), ("dcg@10", "ndcg@3", True), ("hit@10", "recall@5", True),
  ("rr", "mrr", True), ("mse", "mse", True), ("hit@10", "ndcg@10", False), ("mse", "mae", False)])
def test_what_stands_for_a_metric(name, metric, stands):
  assert slices.stands_for(name, metric) == stands


def test_single_items_are_the_mean_over_all_orders_of_ties():
  for greater, equal in ((0, 0), (3, 0), (8, 4), (10, 2), (0, 20)):
    ranks = np.arange(greater + 1, greater + equal + 2)
    got = metrics.per_positive(np.array([greater]), np.array([equal]), 10)
    assert got["hit@10"][0] == pytest.approx((ranks <= 10).mean())
    assert got["dcg@10"][0] == pytest.approx(((ranks <= 10) / np.log2(ranks + 1)).mean())
    assert got["rr"][0] == pytest.approx((1 / ranks).mean())


def test_a_users_only_positive_has_the_metrics_of_its_user():
  rng = np.random.default_rng(0)
  greater, equal = rng.integers(0, 15, (2, 50, 1))
  each = metrics.per_positive(greater[:, 0], equal[:, 0], 10)
  user = metrics.compute(greater, equal, np.ones((50, 1), bool), (10,))
  for mine, theirs in (("hit@10", "recall@10"), ("dcg@10", "ndcg@10"), ("rr", "mrr")):
    np.testing.assert_allclose(each[mine], user[theirs])


def evaluated():
  data = evaluator_data.random_dataset(num_items=60, domain=50)
  evaluator = ranking.Ranking(data, protocols=("full", "pop100"), ks=(3, 10), batch_size=16)
  return data, popularity.popularity(evaluator, data), popularity.chance(evaluator, data)


def test_the_evaluator_tells_every_held_out_item():
  data, found, _ = evaluated()
  positives = found.positives
  begin, end = (edge[found.users] for edge in data.span("test"))
  expected = [(row, item) for row in range(len(found.users))
              for item in np.unique(data.items[begin[row]:end[row]])]
  assert list(zip(positives.rows, positives.items, strict=True)) == expected
  assert positives.rows.dtype == positives.items.dtype == np.int32
  for protocol, table in positives.values["train"].items():
    assert set(table) == {"hit@10", "dcg@10", "rr"}
    number = np.bincount(positives.rows)
    hits = np.bincount(positives.rows, weights=table["hit@10"])
    assert table["hit@10"].dtype == np.float32
    np.testing.assert_allclose(  # recall is what items have together
      hits / np.minimum(number, 10), found.values["train"][protocol]["recall@10"], rtol=1e-5)


def test_summaries_are_means_over_the_users_of_a_slice():
  data, found, chance = evaluated()
  lengths, counts = data.lengths("train")[found.users], data.item_counts("train")
  report = slices.summarize({"test": found, "chance": chance}, "train", lengths, counts,
                            data.in_domain)
  for name, low, high in (("cold", 0, 0), ("1-3", 1, 3), ("4-10", 4, 10), ("11-50", 11, 50)):
    keep = (lengths >= low) & (lengths <= high)
    table = report["history"][name]
    assert table["users"] == keep.sum()
    if not keep.any():
      assert table["test"] == table["chance"] == {}
      continue
    for row, results in (("test", found), ("chance", chance)):
      assert table[row]["full"]["mrr"] == pytest.approx(
        results.values["train"]["full"]["mrr"][keep].mean(), rel=1e-5)
  pieces = report["popularity"]
  assert sum(piece["positives"] for piece in pieces.values()) == len(found.positives.items)
  assert sum(piece["items"] for piece in pieces.values()) == 50
  assert sum(piece["interactions"] for piece in pieces.values()) == counts[data.in_domain].sum()
  for name, low, high in (("0", 0, 0), ("1-3", 1, 3), ("4-10", 4, 10)):
    inside = (counts >= low) & (counts <= high) & data.in_domain
    piece = report["frequency"][name]
    assert piece["items"] == inside.sum() and piece["interactions"] == counts[inside].sum()
  assert sum(piece["positives"] for piece in report["frequency"].values()) == (
    len(found.positives.items))
  # Popularity ranks by train counts, so its slices stand in that order.
  hits = [pieces[name]["test"]["full"]["hit@10"] for name in slices.POPULARITY
          if pieces[name]["users"]]
  assert len(hits) >= 3 and hits == sorted(hits) and hits[-1] > hits[0]


def test_pooled_metrics_are_pooled_within_a_slice():
  class Pooled(values.Results):
    def means(self):
      table = self.values["train"]["all"]
      pooled = np.sqrt(np.average(table["mse"], weights=table["count"]))
      return {"train": {"all": {"rmse": float(pooled)}}}

  found = Pooled(np.arange(3), {"train": {"all": {
    "mse": np.array([1.0, 4.0, 9.0]), "count": np.array([3, 1, 1])}}})
  report = slices.summarize({"test": found}, "train", np.array([2, 2, 7]), np.array([0, 1]),
                            np.array([False, True]))
  assert report["history"]["1-3"]["test"]["all"] == {"rmse": pytest.approx(np.sqrt(7 / 4))}
  assert report["history"]["4-10"]["test"]["all"] == {"rmse": 3.0}


def test_an_evaluator_without_single_items_has_history_only():
  found = values.Results(np.array([1, 2]), {"train": {"all": {"mse": np.array([1.0, 3.0])}}})
  report = slices.summarize({"test": found}, "train", np.array([2, 3]), np.array([0, 1]),
                            np.array([False, True]))
  assert set(report) == {"history"}
  assert report["history"]["1-3"] == {"users": 2, "test": {"all": {"mse": 2.0}}}
  assert report["history"]["cold"] == {"users": 0, "test": {}}
