"""What the objectives of social graphs share: negatives ~ degree^0.75, cosines of nodes.

Letters: B rows, L nodes of a row, K negatives, C candidates.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import negatives as negatives_lib
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges(objective.OfRows):
  """Tells a node's contexts from `num_negatives` others (Mikolov et al. 2013, Eq. 4)."""
  num_entities: int
  num_negatives: int = 5  # K
  task = "edges"
  columns = ("adjacency",)

  def __post_init__(self):
    if self.num_negatives < 1:
      raise errors.UserError("config.objective: num_negatives must be at least 1, not "
                             f"{self.num_negatives}")

  def inputs(self, rng, given, contexts, resident):
    """Returns the model's inputs for nodes [B, L] and contexts [B, M]."""
    shape = (*given.shape, self.num_negatives)
    return {"given": given, "contexts": contexts,
            "negatives": negatives_lib.by_popularity(rng, resident, shape)}

  def predict(self, apply_fn, params, given, candidates):
    """Returns float32 [B, C]: how alike nodes [B] are to candidates [B, C]."""
    inputs = {"given": given[:, None], "contexts": candidates,
              "negatives": jnp.zeros((*given.shape, 1, 1), jnp.int32)}
    return apply_fn(params, inputs, None, compare=True)[:, 0].astype(jnp.float32)


def pair_losses(apply_fn, params, inputs, rng, pairs):
  """Returns the sum over orders and over `pairs` (bool [B, L, M]) of a pair and its negatives.

  The K negatives of a node serve all of its pairs, and count for each: the expected gradient is
  that of drawing K for every pair.
  """
  seen = {name: inputs[name] for name in ("given", "contexts", "negatives")}
  number = jnp.sum(pairs, axis=2)  # [B, L]
  total = 0.0
  for true, drawn in apply_fn(params, seen, rng):
    total += jnp.sum(jnp.where(pairs, jax.nn.softplus(-true), 0))
    total += jnp.sum(number * jnp.sum(jax.nn.softplus(drawn), axis=2))
  return total
