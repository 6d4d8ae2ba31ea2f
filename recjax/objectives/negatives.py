"""Negative items: drawn from the pool, uniformly or by popularity, or taken from the batch.

`unseen` is uniform over what a user has not trained on, without rejection.
Let s_0 < s_1 < ... be the places in the pool of what a user has seen. The r-th unseen item stands
at place r + j, where j counts the i with s_i - i <= r. `batches.resident` keeps these differences,
which ascend: a draw is one random number and one binary search.
"""

import jax
import jax.numpy as jnp

# Up to so many items, ordering all of them is a quick way to draw some without repeats.
ORDERED = 2**14


def unseen(rng, users, resident, count):
  """Returns int32 [B, count] items, drawn apart from one another: repeats are possible.

  A user who has seen the whole pool gets 0, which is no item.

  Args:
    rng: key of this draw.
    users: int32 [B]; 0, an unknown user, has seen nothing.
    resident: of `batches.resident` with the column "seen".
    count: items a row.
  """
  pool, gaps = resident["pool"], resident["seen_gaps"]
  begin, end = resident["seen_begin"][users][:, None], resident["seen_end"][users][:, None]
  unseen = len(pool) - (end - begin)  # [B, 1]
  rank = jax.random.randint(rng, (len(users), count), 0, jnp.maximum(unseen, 1))

  def halve(_, edges):
    low, high = edges
    middle = (low + high) // 2
    right = (low < high) & (gaps[middle] <= rank)
    return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

  # Also where low and high have met: halving goes on there without moving them.
  start = jnp.broadcast_to(begin, rank.shape), jnp.broadcast_to(end, rank.shape)
  low, _ = jax.lax.fori_loop(0, len(pool).bit_length(), halve, start)
  place = rank + low - begin
  return jnp.where(unseen > 0, pool[jnp.minimum(place, len(pool) - 1)], 0)


def uniform(rng, pool, shape, *, distinct=False):
  """Returns int32 items of `shape`, uniform over the pool.

  Args:
    rng: key of this draw.
    pool: int32 [M].
    shape: of what comes back.
    distinct: no repeats along the last axis, while the pool has at most `ORDERED` items; in a
      larger one they are rare and do no harm.
  """
  if distinct and len(pool) <= ORDERED:
    order = jax.random.bits(rng, (*shape[:-1], len(pool)), jnp.uint32)
    return pool[jnp.argsort(order, axis=-1)[..., :shape[-1]]]
  return pool[_places(rng, pool, shape)]


def by_popularity(rng, resident, shape):
  """Returns int32 items of `shape` out of the distribution of `proposals.popularity`."""
  which, stay = jax.random.split(rng)
  place = _places(which, resident["pool"], shape)
  stays = jax.random.uniform(stay, shape) < resident["chance"][place]
  return resident["pool"][jnp.where(stays, place, resident["alias"][place])]


def of_batch(rng, labels, count):
  """Returns int32 [count]: the labels at positions drawn without repeats, 0 where there are fewer.

  Args:
    rng: key of this draw.
    labels: int32 [B, T], 0 where there is none.
    count: at most B T.
  """
  labels = labels.ravel()
  order = jnp.where(labels > 0, jax.random.bits(rng, labels.shape, jnp.uint32) | 1, 0)
  return labels[jax.lax.top_k(order, count)[1]]


def _places(rng, pool, shape):
  # Modulo of 32 bits: no item is preferred by more than one in 2^32 / M.
  return jax.random.bits(rng, shape, jnp.uint32) % jnp.uint32(len(pool))
