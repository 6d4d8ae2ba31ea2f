"""Nodes of a random walk predict those nearby: DeepWalk and node2vec."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import edges, walks


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkipGram(edges.Edges):
  """A walk from each node an epoch; every two nodes at most `window` steps apart are a pair.

  DeepWalk's softmax over a tree is replaced by negative sampling, as in node2vec.
  """
  length: int = 40  # nodes of a walk
  window: int = 10
  p: float = 1.0  # see `walks`
  q: float = 1.0
  examples = "pool"

  def __post_init__(self):
    super().__post_init__()
    if self.length < 2 or self.window < 1 or self.p <= 0 or self.q <= 0:
      raise errors.UserError("config.objective: skip_gram needs a length of at least 2, a window "
                             "of at least 1 and positive p and q, not "
                             f"{(self.length, self.window, self.p, self.q)}")

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs and "walks" int32 [B, L], -1 after the end of one."""
    step, draw = jax.random.split(rng)
    walked = walks.walk(step, resident["pool"][batch["rows"]], resident, length=self.length,
                        p=self.p, q=self.q)
    walked = jnp.where(batch["mask"][:, None], walked, -1)
    nodes = jnp.maximum(walked, 0)
    return {**self.inputs(draw, nodes, nodes, resident), "walks": walked}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, pairs, {"dropped": 0})."""
    del shards, capacity
    there = inputs["walks"] >= 0
    place = jnp.arange(self.length)
    apart = jnp.abs(place[:, None] - place)
    pairs = there[:, :, None] & there[:, None] & (apart > 0) & (apart <= self.window)
    return (edges.pair_losses(apply_fn, params, inputs, rng, pairs),
            jnp.sum(pairs).astype(jnp.float32), {"dropped": jnp.int32(0)})
