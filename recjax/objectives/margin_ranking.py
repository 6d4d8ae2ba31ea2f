"""True triples should score higher than corrupted ones, by a margin (Bordes et al. 2013)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax.objectives import links


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarginRanking(links.OfTriples):
  """max(0, margin + d(true) - d(corrupted)), each true triple with one corruption.

  Its head or its tail is replaced by an entity such that train does not hold the triple.
  """
  margin: float = 1.0

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs and "candidates" int32 [B, 2]: true, corrupted."""
    side, draw = jax.random.split(rng)
    inputs, answers, queries = self.ask(side, batch, resident)
    drawn, possible = self.corrupt(draw, queries, resident, 1)
    return {**inputs, "mask": inputs["mask"] & possible,
            "candidates": jnp.concatenate([answers[:, None], drawn], axis=1)}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, triples, {"dropped": 0})."""
    del shards, capacity
    scores, penalty = self.scores(apply_fn, params, inputs, rng, inputs["candidates"])
    losses = jax.nn.relu(self.margin - scores[:, 0] + scores[:, 1]) + penalty
    return links.total(losses, inputs["mask"])
