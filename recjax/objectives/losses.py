"""Losses as (sum, weight): only the caller divides, after summing over batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(picked, partition, weights):
  """Returns (sum of weighted softmax cross-entropies, sum of weights), both float32.

  Args:
    picked: float32 [...], scores of the labels.
    partition: float32 [...], log of the sum of exp(score) over all ids.
    weights: [...], 0 where there is no label.
  """
  weights = jnp.asarray(weights, jnp.float32)
  return jnp.sum((partition - picked) * weights), jnp.sum(weights)


def binary_cross_entropy(positive, negatives, keep, weights, *, beta=1.0):
  """Returns (sum, weight) of -log sigmoid(s+)^beta - sum log(1 - sigmoid(s-)), over 1 + K.

  With beta = 1 that is the usual binary cross-entropy, with `calibrated_beta` that of gSASRec: its
  sigmoid(s)^beta is written as beta softplus(-s), which neither under- nor overflows.

  Args:
    positive: [..., 1] scores of the labels.
    negatives: [..., K].
    keep: bool, broadcasts to `negatives`: False where a negative is none.
    weights: [...], 0 where there is no label.
    beta: scalar.
  """
  positive, negatives = positive.astype(jnp.float32), negatives.astype(jnp.float32)
  against = jnp.sum(jnp.where(keep, jax.nn.softplus(negatives), 0), axis=-1)
  losses = (beta * jax.nn.softplus(-positive[..., 0]) + against) / (1 + negatives.shape[-1])
  weights = weights.astype(jnp.float32)
  return jnp.sum(losses * weights), jnp.sum(weights)


def set_cross_entropy(scores, held, weights):
  """Returns (sum, weight) of -sum log sigmoid(s of held ids) - sum log(1 - sigmoid(s of others)).

  Args:
    scores: [..., A] of ids 1..A.
    held: int32 [..., K] distinct ids, and 0.
    weights: [...], 0 where there is no set.
  """
  scores = scores.astype(jnp.float32)
  true = jnp.take_along_axis(scores, jnp.maximum(held - 1, 0), axis=-1)
  found = jnp.sum(jax.nn.softplus(scores), -1) - jnp.sum(jnp.where(held > 0, true, 0), -1)
  weights = weights.astype(jnp.float32)
  return jnp.sum(found * weights), jnp.sum(weights)


def bayesian_ranking(positive, negatives, keep, weights):
  """Returns (sum, weight) of -log sigmoid(s+ - s-), the mean over a label's kept negatives.

  BPR (Rendle et al. 2009) without its regularization, which is the optimizer's weight decay.

  Args:
    positive: [..., 1] scores of the labels.
    negatives: [..., K].
    keep: bool [..., K], False where a negative is none.
    weights: [...], 0 where there is no label.
  """
  lead = positive.astype(jnp.float32) - negatives.astype(jnp.float32)
  losses = jnp.sum(jnp.where(keep, jax.nn.softplus(-lead), 0), axis=-1)
  losses = losses / jnp.maximum(jnp.sum(keep, axis=-1), 1)
  weights = weights.astype(jnp.float32)
  return jnp.sum(losses * weights), jnp.sum(weights)


def calibrated_beta(calibration, *, num_negatives, offered):
  """Returns beta of gBCE (Petrov & Macdonald 2023): 1 at calibration t = 0, alpha at t = 1.

  alpha = K / (M - 1) is the share of an item's competitors that are drawn;
  beta = alpha (t (1 - 1 / alpha) + 1 / alpha) = 1 - t (1 - alpha).

  Args:
    calibration: t in [0, 1]; at 1, sigmoid(score) estimates the probability of the item.
    num_negatives: K.
    offered: M, items that negatives are drawn from.
  """
  return 1 - calibration * (1 - num_negatives / (offered - 1))


def sampled_cross_entropy(positive, negatives, keep, weights, *, offered, log_expected=None):
  """Returns (sum, weight) of the softmax cross-entropy against drawn negatives.

  Each kept negative stands for as many items as the log Q correction (Bengio & Senecal 2008) says,
  so that their sum of exp(score) is in expectation that over all competitors of the label.
  Uniformly drawn, those kept share the M - 1 competitors: with all of them it is the softmax over
  the M items.

  Args:
    positive: [..., 1] scores of the labels.
    negatives: [..., K].
    keep: bool [..., K], False where a negative is the label itself, or none.
    weights: [...], 0 where there is no label.
    offered: M.
    log_expected: [..., K], where they are not drawn uniformly: log of how often each is drawn in
      expectation, K q.
  """
  positive, negatives = positive.astype(jnp.float32), negatives.astype(jnp.float32)
  if log_expected is None:
    kept = jnp.sum(keep, axis=-1, keepdims=True)
    negatives = negatives + jnp.log((offered - 1) / jnp.maximum(kept, 1))
  else:
    negatives = negatives - log_expected
  others = jnp.where(keep, negatives, -jnp.inf)
  scores = jnp.concatenate([positive, others], axis=-1)
  losses = jax.nn.logsumexp(scores, axis=-1) - positive[..., 0]
  weights = weights.astype(jnp.float32)
  return jnp.sum(losses * weights), jnp.sum(weights)


def labeled_positions(labels, *, shards, capacity):
  """Returns where the labels are, so that only those positions are scored.

  Args:
    labels: int32 [B, T], 0 where there is none.
    shards: S, equal runs of rows that are searched apart, so that no device reads another's.
    capacity: C, room for labels in a shard.

  Returns:
    positions: int32 [S, C] flat in the shard, 0 in unused places.
    picked: int32 [S, C] labels there.
    weights: float32 [S, C], 1 for a label.
    dropped: int32, labels that found no room (see `capacity`).
  """
  flat = labels.reshape(shards, -1)
  find = lambda row: jnp.nonzero(row, size=capacity, fill_value=0)[0]
  positions = jax.vmap(find)(flat).astype(jnp.int32)
  found = jnp.sum(flat > 0, axis=1)
  weights = (jnp.arange(capacity) < found[:, None]).astype(jnp.float32)
  picked = jnp.take_along_axis(flat, positions, axis=1)
  return positions, picked, weights, jnp.sum(jnp.maximum(found - capacity, 0))


def capacity(mean, variance, most, *, rows, deviations=8, multiple=8):
  """Returns room for the labels of `rows` random rows: their mean and 8 standard deviations.

  A normal tail leaves 1e-15 a step beyond that. Where one long row among short ones is no normal
  tail, the room is at least that row's; steps count what found no room all the same.

  Args:
    mean: labels of a row, on average.
    variance: their variance.
    most: the largest number of labels of a row.
    rows: rows searched together.
    deviations: other than 8.
    multiple: what the room is one of, unless every row finds its most.
  """
  likely = rows * mean + max(deviations * np.sqrt(rows * variance), most)
  return int(min(rows * most, -(-int(np.ceil(likely)) // multiple) * multiple))
