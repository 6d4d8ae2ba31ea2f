"""Ranking metrics as their exact expectation under random tie-breaking, one value per user.

A positive enters as two counts over the user's candidates: `greater`, how many score higher (other
positives included), and `equal`, how many others score the same. Its rank is then uniform over
greater + 1 .. greater + equal + 1, so the order in which candidates are listed decides nothing and
a constant scorer gets exactly chance. All arrays are [n users, P positives]; `mask` marks the
positives that exist. Everything is computed in float64.
"""

import numpy as np

HEADLINE = ("ndcg@10", "recall@10", "mrr")  # what is shown of a ranking where nobody says more


def compute(greater, equal, mask, ks):
  """Returns {"ndcg@k": [n], "recall@k": [n] for each k, "mrr": [n]}, float64."""
  values = [metric(greater, equal, mask, k) for metric in (ndcg, recall) for k in ks]
  return dict(zip(names(ks), [*values, mrr(greater, equal, mask)], strict=True))


def compute_sets(greater, equal, mask, ks):
  """Returns {"f1@k", "hit@k" for each k}, float64 [n]: of a set to be found whole, as a basket."""
  values = [metric(greater, equal, mask, k) for metric in (f1, hit) for k in ks]
  return dict(zip(set_names(ks), values, strict=True))


def set_names(ks):
  """Returns the names of what `compute_sets` returns, in its order."""
  return [f"{name}@{k}" for name in ("f1", "hit") for k in ks]


def names(ks):
  """Returns the names of what `compute` returns, in its order."""
  return [f"{name}@{k}" for name in ("ndcg", "recall") for k in ks] + ["mrr"]


def per_positive(greater, equal, k):
  """Returns {"hit@k", "dcg@k", "rr"}, float64 of the shape of the counts: each positive by itself.

  Recall@k, NDCG@k and reciprocal rank as if a positive were its user's only one (DCG and NDCG are
  then the same), in the rank that it has among all candidates, other positives included.
  """
  top = int(np.max(greater + equal, initial=0)) + 1
  harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, top + 1))])
  return {f"hit@{k}": _mean_gain(greater, equal, np.arange(k + 1, dtype=np.float64)),
          f"dcg@{k}": _mean_gain(greater, equal, _discounts(k)),
          "rr": (harmonic[greater + equal + 1] - harmonic[greater]) / (equal + 1)}


def is_error(metric):
  """Returns whether a metric is no share and better where it is smaller: an error or mean rank."""
  return metric.endswith(("rmse", "mae", "mse")) or metric.rpartition("/")[2] == "mr"


def ndcg(greater, equal, mask, k):
  """Returns NDCG@k [n]: binary gains, discount 1 / log2(rank + 1), ideal over min(k, positives)."""
  gains = _discounts(k)
  best = gains[np.minimum(mask.sum(axis=1), k)]
  return _ratio(_expected_gain(greater, equal, mask, gains), best)


def recall(greater, equal, mask, k):
  """Returns Recall@k [n]: positives in the first k, divided by min(k, positives)."""
  gains = np.arange(k + 1, dtype=np.float64)
  return _ratio(_expected_gain(greater, equal, mask, gains), np.minimum(mask.sum(axis=1), k))


def f1(greater, equal, mask, k):
  """Returns F1@k [n]: 2 hits / (k + positives), of precision hits / k and recall hits / positives.
  """
  gains = np.arange(k + 1, dtype=np.float64)
  return 2 * _expected_gain(greater, equal, mask, gains) / (k + mask.sum(axis=1))


def hit(greater, equal, mask, k):
  """Returns the chance [n] that a positive is among the first k."""
  best, size, hits = _first_group(greater, equal, mask)
  left = np.clip(k - best, 0, size)  # places of the group within the first k
  # None of the m positives among them: prod over i < m of (size - left - i) / (size - i).
  turn = np.arange(int(hits.max(initial=0)))[None]
  taken = turn < hits[:, None]
  missed = np.maximum(size - left, 0)[:, None] - turn
  odds = np.where(taken, np.maximum(missed, 0) / np.maximum(size[:, None] - turn, 1), 1.0)
  return np.where(hits > 0, 1 - odds.prod(axis=1), 0.0)


def mrr(greater, equal, mask):
  """Returns the reciprocal rank [n] of the first positive."""
  best, size, hits = _first_group(greater, equal, mask)
  values = np.where(hits > 0, 1 / (best + 1.0), 0.0)  # Right as it stands without ties.
  single = (hits == 1) & (size > 1)
  if single.any():  # The mean of 1 / rank over the group, from harmonic numbers.
    top = int((best + size)[single].max())
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, top + 1))])
    low = best[single]
    values[single] = (harmonic[low + size[single]] - harmonic[low]) / size[single]
  several = (hits > 1) & (size > hits)
  if several.any():
    groups = np.stack([best, size, hits], axis=1)[several]
    groups, member = np.unique(groups, axis=0, return_inverse=True)
    values[several] = np.array([_first_hit(*group) for group in groups])[member.reshape(-1)]
  return values


def _first_group(greater, equal, mask):
  """Returns int64 [n] thrice, of the best tie group that holds a positive: candidates above it, its
  size, and how many positives it holds.
  """
  last = np.iinfo(np.int64).max
  above = np.where(mask, greater, np.int64(last))
  best = above.min(axis=1, initial=last)
  first = mask & (above == best[:, None])
  hits = first.sum(axis=1)
  size = np.where(first, equal, np.int64(0)).max(axis=1, initial=0) + 1
  return np.where(hits > 0, best, 0), size, hits


def _expected_gain(greater, equal, mask, gains):
  """Returns the expected sum over positives of gain(rank); gains[r] adds ranks 1..r, up to k."""
  return np.where(mask, _mean_gain(greater, np.where(mask, equal, 0), gains), 0.0).sum(axis=1)


def _mean_gain(greater, equal, gains):
  """Returns the mean gain over the ranks that each positive may have."""
  k = len(gains) - 1
  low, high = np.minimum(greater, k), np.minimum(greater + equal + 1, k)
  return (gains[high] - gains[low]) / (equal + 1)


def _discounts(k):
  return np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])


def _first_hit(above, size, hits):
  """Returns E[1 / (above + J)]: J is the first of `hits` positives among `size` tied candidates.

  P(J = j) = C(size - j, hits - 1) / C(size, hits), built up from P(J > j) to stay in range.
  """
  place = np.arange(size - hits + 1)  # j - 1
  missed = (size - hits - place[:-1]) / (size - place[:-1])
  alive = np.concatenate([[1.0], np.cumprod(missed)])
  return np.sum(alive * hits / (size - place) / (above + place + 1))


def _ratio(value, best):
  return np.divide(value, best, out=np.zeros(len(value)), where=best > 0)
