"""Metrics against other libraries, all orders of ties, and values worked out by hand."""

import itertools
import math

import ir_measures
import numpy as np
import pytest

from recjax.evaluators import metrics

KS = (1, 2, 3, 5, 10)


def _counts(scores, relevant):
  """Returns (greater, equal, mask), each [1, P], of one user's list of candidates."""
  scores, relevant = np.asarray(scores), np.flatnonzero(relevant)
  greater = [[(scores > scores[p]).sum() for p in relevant]]
  equal = [[(scores == scores[p]).sum() - 1 for p in relevant]]
  return np.array(greater), np.array(equal), np.ones((1, len(relevant)), bool)


def _by_definition(relevant, ks):
  """Returns the metrics of one list of bools in rank order, term by term."""
  total, values = sum(relevant), {}
  for k in ks:
    ideal = sum(1 / math.log2(j + 1) for j in range(1, min(k, total) + 1))
    values[f"ndcg@{k}"] = sum(r / math.log2(j + 2) for j, r in enumerate(relevant[:k])) / ideal
    values[f"recall@{k}"] = sum(relevant[:k]) / min(k, total)
  return values | {"mrr": 1 / (1 + list(relevant).index(True))}


def test_three_positives_by_hand():
  # Ranks 1, 4 and 12.
  value = metrics.compute(np.array([[0, 3, 11]]), np.zeros((1, 3), int), np.ones((1, 3), bool), KS)
  ideal = 1 + 1 / math.log2(3) + 1 / 2
  expected = {"ndcg@1": 1, "ndcg@3": 1 / ideal, "ndcg@10": (1 + 1 / math.log2(5)) / ideal,
              "recall@1": 1, "recall@2": 1 / 2, "recall@3": 1 / 3, "recall@5": 2 / 3, "mrr": 1}
  for name, number in expected.items():
    assert value[name][0] == pytest.approx(number), name


def test_agrees_with_ir_measures_without_ties():
  rng = np.random.default_rng(0)
  qrels, run, parts = {}, {}, []
  for user in range(30):
    scores, relevant = rng.permutation(60).astype(float), np.zeros(60, bool)
    relevant[rng.choice(60, rng.integers(1, 5), replace=False)] = True
    parts.append(metrics.compute(*_counts(scores, relevant), (5, 10, 20)))
    qrels[str(user)] = {f"d{i}": int(r) for i, r in enumerate(relevant)}
    run[str(user)] = {f"d{i}": s for i, s in enumerate(scores)}
  names = {"nDCG@5": "ndcg@5", "nDCG@20": "ndcg@20", "R@5": "recall@5", "R@10": "recall@10",
           "RR": "mrr"}  # Their recall divides by all positives: the same while k is not less.
  theirs = ir_measures.iter_calc([ir_measures.parse_measure(n) for n in names], qrels, run)
  rows = list(theirs)
  assert len(rows) == 30 * len(names)
  for row in rows:
    ours = parts[int(row.query_id)][names[str(row.measure)]][0]
    assert ours == pytest.approx(row.value, abs=1e-9), (row, ours)


@pytest.mark.parametrize("scores", [
  [1, 1, 1, 1, 1], [2, 2, 1, 1, 1], [3, 2, 2, 2, 1], [1, 3, 2, 3, 3], [2, 2, 1, 3, 3]])
@pytest.mark.parametrize("positives", [1, 2, 3, 5])
def test_ties_are_the_mean_over_all_orders(scores, positives):
  for chosen in itertools.combinations(range(5), positives):
    relevant = np.isin(np.arange(5), chosen)
    orders = [sorted(p, key=lambda i: -scores[i]) for p in itertools.permutations(range(5))]
    each = [_by_definition([bool(relevant[i]) for i in order], KS) for order in orders]
    value = metrics.compute(*_counts(scores, relevant), KS)
    for name in value:
      mean = np.mean([e[name] for e in each])
      assert value[name][0] == pytest.approx(mean, abs=1e-12), (name, chosen)


def test_large_tie_groups_match_simulation():
  rng = np.random.default_rng(0)
  above, size, hits = 40, 500, 4
  first = np.array([rng.choice(size, hits, replace=False).min() for _ in range(20000)])
  shape = (1, hits)
  value = metrics.mrr(np.full(shape, above), np.full(shape, size - 1), np.ones(shape, bool))
  assert value[0] == pytest.approx(np.mean(1 / (above + 1 + first)), rel=5e-3)


def test_one_positive_in_a_tie_group_is_the_mean_reciprocal():
  for above, size in ((0, 2), (7, 1), (7, 103), (100_000, 50_000)):
    value = metrics.mrr(np.array([[above]]), np.array([[size - 1]]), np.ones((1, 1), bool))
    assert value[0] == pytest.approx(np.mean(1 / (above + 1 + np.arange(size))), rel=1e-9)


def test_constant_scorer_is_chance():
  value = metrics.compute(np.zeros((1, 3), int), np.full((1, 3), 102), np.ones((1, 3), bool), KS)
  assert value["recall@10"][0] == pytest.approx(10 / 103)
  assert value["recall@1"][0] == pytest.approx(3 / 103)
  assert value["ndcg@10"][0] == pytest.approx(.0621, abs=5e-5)


def test_padding_changes_nothing():
  rng = np.random.default_rng(0)
  greater, equal = rng.integers(0, 30, (6, 3)), rng.integers(0, 4, (6, 3))
  mask = np.ones((6, 3), bool)
  wide = [np.concatenate([a, np.full((6, 2), fill, a.dtype)], axis=1)
          for a, fill in ((greater, 0), (equal, -1), (mask, False))]
  # Counts come from the device as int32.
  wide = [a.astype(np.int32) if a.dtype != bool else a for a in wide]
  plain, padded = metrics.compute(greater, equal, mask, KS), metrics.compute(*wide, KS)
  for name in plain:
    np.testing.assert_array_equal(plain[name], padded[name])


def test_fewer_positives_than_k_can_still_be_perfect():
  mask = np.array([[True, False, False], [True, True, False], [True, True, True]])
  value = metrics.compute(np.tile(np.arange(3), (3, 1)), np.zeros((3, 3), int), mask, KS)
  for name, perfect in value.items():
    np.testing.assert_allclose(perfect, 1, err_msg=name)
