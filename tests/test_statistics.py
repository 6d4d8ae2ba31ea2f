"""Tests of paired differences against hand values, scipy and their own error rates."""

import numpy as np
import pytest
from scipy import stats

from recjax import statistics


def test_holm_by_hand():
  # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; the last is raised to .06.
  np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1.0, 1.0])
  assert len(statistics.holm([])) == 0


def test_paired_ttest_is_scipys():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 40)) + [[0.3], [0.0]]
  expected = stats.ttest_rel(a, b)
  np.testing.assert_allclose(statistics.paired_ttest(a - b), (expected.statistic, expected.pvalue))


@pytest.mark.parametrize("diff, expected", [
  (np.zeros(10), (0.0, 1.0)),
  (np.full(10, 0.1), (np.inf, 0.0)),  # the standard deviation of these is 1e-17, not 0
  (np.full(10, -0.1), (-np.inf, 0.0)),
  (np.array([0.3]), (0.0, 1.0)),
])
def test_paired_ttest_without_variance(diff, expected):
  assert statistics.paired_ttest(diff) == expected


def test_bootstrap_interval_covers_the_mean():
  rng = np.random.default_rng(1)
  diff = rng.normal(0.5, 1.0, (60, 400))
  low, high, p = statistics.paired_bootstrap(diff, 1000, 0)
  # 400 draws of a 95 % interval (slightly narrow at n = 60) cover 0.5 within 4 standard errors.
  assert 0.89 < np.mean((low < 0.5) & (high > 0.5)) < 0.985
  np.testing.assert_allclose(np.mean(high - low), 2 * 1.96 / np.sqrt(60), rtol=0.05)
  reference = np.array([statistics.paired_ttest(column)[1] for column in diff.T])
  assert np.corrcoef(p, reference)[0, 1] > 0.98


def test_bootstrap_rejects_a_true_null_rarely():
  diff = np.random.default_rng(2).normal(0.0, 1.0, (80, 500))
  _, _, p = statistics.paired_bootstrap(diff, 1000, 0)
  assert 0.02 < np.mean(p < 0.05) < 0.1


def test_bootstrap_is_symmetric_seeded_and_the_same_in_any_blocks():
  diff = np.random.default_rng(3).normal(0.1, 1.0, 50)
  low, high, p = statistics.paired_bootstrap(diff, 999, 7)
  np.testing.assert_allclose(statistics.paired_bootstrap(-diff, 999, 7), (-high, -low, p))
  np.testing.assert_allclose(
    statistics.paired_bootstrap(diff, 999, 7, max_entries=1), (low, high, p))
  assert statistics.paired_bootstrap(diff, 999, 8) != (low, high, p)


def test_bootstrap_without_variance():
  assert statistics.paired_bootstrap(np.zeros(20), 99, 0) == (0.0, 0.0, 1.0)
  low, high, p = statistics.paired_bootstrap(np.full(20, 0.25), 99, 0)
  assert low == high == 0.25 and p == pytest.approx(0.02)


def test_verdict_needs_both_tests_and_all_seeds():
  assert statistics.verdict((0.01, 0.02), [0.1, 0.2]) == "better"
  assert statistics.verdict((0.01, 0.02), [-0.1]) == "worse"
  assert statistics.verdict((0.01, 0.06), [0.1, 0.2]) == "undecided"
  assert statistics.verdict((0.01, 0.02), [0.3, -0.1]) == "undecided"
  assert statistics.verdict((0.0, 0.0), [0.0, 0.0]) == "undecided"


def test_verdict_of_errors_is_the_other_way_round():
  assert statistics.verdict((0.01,), [-0.1, -0.2], smaller_is_better=True) == "better"
  assert statistics.verdict((0.01,), [0.1], smaller_is_better=True) == "worse"
  assert statistics.verdict((0.2,), [-0.1], smaller_is_better=True) == "undecided"


def test_columns_share_resamples_and_do_not_see_each_other():
  diff = np.random.default_rng(4).normal(0.1, 1.0, (50, 3))
  together = np.array(statistics.paired_bootstrap(diff, 500, 1))
  alone = [statistics.paired_bootstrap(column, 500, 1) for column in diff.T]
  np.testing.assert_allclose(together.T, alone)
