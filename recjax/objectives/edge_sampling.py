"""The two ends of an edge predict each other: LINE (Tang et al. 2015)."""

import dataclasses

import jax.numpy as jnp

from recjax.objectives import edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeSampling(edges.Edges):
  """Every directed edge once an epoch; an edge without direction is two of them."""
  examples = "triples"

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs and "mask" bool [B]."""
    ends = resident["triples"][batch["rows"]]
    return {**self.inputs(rng, ends[:, :1], ends[:, 2:], resident), "mask": batch["mask"]}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, edges, {"dropped": 0})."""
    del shards, capacity
    mask = inputs["mask"]
    return (edges.pair_losses(apply_fn, params, inputs, rng, mask[:, None, None]),
            jnp.sum(mask).astype(jnp.float32), {"dropped": jnp.int32(0)})
