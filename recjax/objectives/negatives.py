"""Negative items: uniform over those of the pool that a user has not trained on, without rejection.

Let s_0 < s_1 < ... be the places in the pool of what a user has seen. The r-th unseen item stands
at place r + j, where j counts the i with s_i - i <= r. `batches.resident` keeps these differences,
which ascend: a draw is one random number and one binary search.
"""

import jax
import jax.numpy as jnp


def sample(rng, users, resident, count):
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
