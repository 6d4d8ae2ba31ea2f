"""Tests of paired differences, and what they decide together."""

import numpy as np
from scipy import stats

LEVEL = 0.05


def holm(p):
  """Returns Holm's (1979) step-down adjusted p-values, in the order given.

  Sorted ascending, p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1.
  """
  p = np.asarray(p, np.float64)
  order = np.argsort(p, kind="stable")
  stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  adjusted = np.empty_like(p)
  adjusted[order] = np.minimum(stepped, 1.0)
  return adjusted


def paired_ttest(diff):
  """Returns (t, two-sided p) of the mean of paired differences [n] against zero.

  Without variance the test says what the data says: (0, 1) where every difference is zero and
  (±inf, 0) where all are equal but not zero. Fewer than two pairs decide nothing: (0, 1).
  """
  diff = np.asarray(diff, np.float64)
  if len(diff) < 2 or not diff.any():
    return 0.0, 1.0
  mean, std = diff.mean(), diff.std(ddof=1)
  if std <= 1e-12 * np.abs(diff).max():  # equal up to rounding, as np.std does not return 0 exactly
    return float(np.copysign(np.inf, mean)), 0.0
  t = mean / (std / np.sqrt(len(diff)))
  return float(t), float(2 * stats.t.sf(abs(t), len(diff) - 1))


def paired_bootstrap(diff, draws=10_000, seed=0, *, level=LEVEL, max_entries=1 << 22):
  """Returns (low, high, p) for the mean of paired differences, resampling pairs.

  The interval is the percentile interval of 1 - `level`; p = 2 min(P(mean* <= 0), P(mean* >= 0))
  with one added to both counts and to `draws`, so it is never zero, and at most 1.

  Args:
    diff: [n] or [n, m]; the m columns share their resamples and give arrays [m].
    draws: how many resamples.
    seed: of the resamples, which depend on it, `draws` and n alone.
    level: 0.05 for a 95 % interval.
    max_entries: bounds memory; resamples are drawn in blocks of about this many indices.
  """
  diff = np.asarray(diff, np.float64)
  columns = diff.reshape(len(diff), -1)
  means = _resampled_means(columns, draws, np.random.default_rng(seed), max_entries)
  low, high = np.quantile(means, [level / 2, 1 - level / 2], axis=0)
  tail = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
  p = np.minimum(2 * (tail + 1) / (draws + 1), 1.0)
  return (low, high, p) if diff.ndim > 1 else (float(low[0]), float(high[0]), float(p[0]))


def _resampled_means(columns, draws, rng, max_entries):
  # As a matrix of counts: one product serves all columns, where a gather would need [draws, n, m].
  n = len(columns)
  block = max(1, min(draws, max_entries // n))
  means = np.empty((draws, columns.shape[1]))
  for first in range(0, draws, block):
    size = min(block, draws - first)
    index = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(index.ravel(), minlength=size * n).reshape(size, n)
    means[first:first + size] = counts.astype(np.float64) @ columns / n
  return means


def verdict(p_values, by_seed, *, level=LEVEL, smaller_is_better=False):
  """Returns "better" or "worse" where all p-values are below `level` and all seeds agree.

  Otherwise "undecided": a difference that changes its sign with the seed is one of these trained
  models, not of the methods, however many users it was measured on.
  """
  signs = {np.sign(d) for d in by_seed}
  if max(p_values) >= level or signs not in ({1}, {-1}):
    return "undecided"
  return "better" if (signs == {1}) != smaller_is_better else "worse"
