"""Losses as (sum, weight): only the caller divides, after summing over batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(scores, labels, weights):
  """Returns (sum of weighted softmax cross-entropies, sum of weights), both float32.

  Args:
    scores: [..., N + 1] logits in any float type.
    labels: int32 [...].
    weights: [...], 0 where there is no label.
  """
  scores = scores.astype(jnp.float32)
  picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
  losses = jax.nn.logsumexp(scores, axis=-1) - picked
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


def capacity(mean, variance, most, *, rows):
  """Returns room for the labels of `rows` random rows: their mean and 8 standard deviations.

  A normal tail leaves 1e-15 a step beyond that. Where one long row among short ones is no normal
  tail, the room is at least that row's; steps count what found no room all the same.

  Args:
    mean: labels of a row, on average.
    variance: their variance.
    most: the largest number of labels of a row.
    rows: rows searched together.
  """
  likely = rows * mean + max(8 * np.sqrt(rows * variance), most)
  return int(min(rows * most, -(-int(np.ceil(likely)) // 8) * 8))
