"""Sequences behind each other, without their padding: what a transformer computes on a GPU.

All but attention looks at each position by itself, and attention is told whose it is.

Letters: B batch, T columns, N room for positions, W width, S shards, C labeled positions a shard.
"""

import jax.numpy as jnp

from recjax.models import layers


class Stream:
  """Where the positions of a batch stand that hold something.

  Its `groups`, int32 [1, N], say whose each is, from 1 on; 0 behind the last.
  """

  def __init__(self, keep, room):
    """Takes bool [B, T], of which at most `room`, N, are True."""
    flat, slots = keep.ravel(), jnp.arange(room)
    self._ranks = jnp.cumsum(flat) - 1  # of places in the stream
    places, = jnp.nonzero(flat, size=room)
    there = slots < jnp.sum(flat)
    # What is behind the last, here and in `select`, is each at another place outside: a GPU needs
    # no atomic additions for a gradient whose places are told to be different.
    self._places = jnp.where(there, places, flat.size + slots)
    self.groups = jnp.where(there, places // keep.shape[1] + 1, 0)[None].astype(jnp.int32)

  def take(self, x):
    """Returns [1, N, W] of x [B, T, W]; zeros behind the last."""
    return _pick(x.reshape(-1, x.shape[-1]), self._places, ascending=True)[None]

  def select(self, x, positions):
    """Returns what `layers.select_labeled` does of a batch: [S, C, W] of x [1, N, W].

    All of `positions`, int32 [S, C], flat in each of S runs of rows, hold something.
    """
    shards = len(positions)
    begins = jnp.arange(shards)[:, None] * (len(self._ranks) // shards)
    outside = x.shape[1] + jnp.arange(positions.size).reshape(positions.shape)
    ranks = jnp.where(layers.unused(positions), outside, self._ranks[begins + positions])
    return _pick(x[0], ranks, ascending=False)


def _pick(x, places, *, ascending):
  return x.at[places].get(mode="fill", fill_value=0, unique_indices=True,
                          indices_are_sorted=ascending)
