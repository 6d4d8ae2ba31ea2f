"""Popularity and chance, on generated data and against the anchors on MovieLens-1M."""

import dataclasses

import evaluator_data
import numpy as np
import pytest

from recjax import spec
from recjax.data import prepare, sequences
from recjax.evaluators import popularity, ranking


def test_ranks_by_training_counts_only():
  # Item 1 leads in training; 9 leads everywhere else. Both users are tested on one item.
  users = [([1, 1, 2], [9], [3]), ([1, 2, 4], [9], [2])] + [([1], [], [])] * 3
  data = evaluator_data.dataset(users, 10)
  evaluator = ranking.Ranking(data, protocols=("full",), batch_size=2)
  values = popularity.popularity(evaluator, data).values
  assert set(values) == {"train", "train+val"}
  # User 1 is left with 3..8, 10 and 4 leads them; the rest ties. User 2 owned its positive before.
  expected = [np.mean(1 / np.arange(2, 8)), 1]
  np.testing.assert_allclose(values["train"]["full"]["mrr"], expected, rtol=1e-6)
  np.testing.assert_array_equal(values["train"]["full"]["mrr"], values["train+val"]["full"]["mrr"])


def test_counts_beyond_float32_stay_apart(monkeypatch):
  data = evaluator_data.dataset([([1], [], [2])], 3)
  counts = np.array([0, 0, 2**24 + 1, 2**24])
  monkeypatch.setattr(sequences.Dataset, "item_counts", lambda self, split="train": counts)
  evaluator = ranking.Ranking(data, protocols=("full",), ks=(1,))
  assert popularity.popularity(evaluator, data).means()["train"]["full"]["mrr"] == 1


def test_chance_is_chance():
  data = evaluator_data.dataset([([1, 2], [3], [4, 5, 6])] * 4, 300)
  values = popularity.chance(ranking.Ranking(data), data).means()["train"]
  assert values["uniform100_global"]["recall@10"] == pytest.approx(10 / 103, rel=1e-6)
  assert values["full"]["recall@10"] == pytest.approx(10 / 297, rel=1e-6)


def test_popularity_ranks_above_chance_where_some_items_are_popular():
  data = evaluator_data.random_dataset()
  begin, end = data.span("train")
  items = data.items.copy()
  for user in range(1, data.num_users + 1):
    items[begin[user]:end[user]] = items[begin[user]:end[user]] % 20 + 1
    test = data.span("test")
    items[test[0][user]:test[1][user]] = np.arange(test[1][user] - test[0][user]) + 1
  data = dataclasses.replace(data, items=items)
  evaluator = ranking.Ranking(data)
  ours = popularity.popularity(evaluator, data).means()["train"]
  base = popularity.chance(evaluator, data).means()["train"]
  for protocol in ("uniform100_global", "uniform100_domain", "full"):
    assert ours[protocol]["ndcg@10"] > 2 * base[protocol]["ndcg@10"]


# Popularity on the target domain of MovieLens-1M, percent: (NDCG@10, Recall@10).
ANCHORS = {"uniform100_global": (57.58, 76.37), "uniform100_domain": (29.70, 41.72),
           "full": (4.97, 8.04)}


def test_movielens_anchors(raw_dir, tmp_path):
  config = spec.load_config("configs/data/ml1m.py")
  prepare.prepare(config, raw_dir=raw_dir, data_dir=tmp_path)
  data = sequences.load(tmp_path, "ml1m_tgt")
  evaluator = ranking.Ranking(data, contexts=("train",), cache_dir=tmp_path / "candidates")
  values = popularity.popularity(evaluator, data).means()["train"]
  for protocol, (ndcg, recall) in ANCHORS.items():
    assert 100 * values[protocol]["ndcg@10"] == pytest.approx(ndcg, abs=1), protocol
    assert 100 * values[protocol]["recall@10"] == pytest.approx(recall, abs=1), protocol
  chance = popularity.chance(evaluator, data).means()["train"]
  assert 100 * chance["uniform100_global"]["recall@10"] == pytest.approx(1000 / 103, abs=.01)
  assert 100 * chance["uniform100_global"]["ndcg@10"] == pytest.approx(6.21, abs=.01)
