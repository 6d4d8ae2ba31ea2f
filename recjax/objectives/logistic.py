"""True triples against drawn ones, each a logistic regression (Trouillon et al. 2016)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import links


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(links.OfTriples):
  """softplus(-y score) over a true triple (y = 1) and its corruptions (y = -1).

  With adversarial = 0 the mean over all of them, as in ComplEx. Else the mean of the true triple
  and of the corruptions weighed by softmax(adversarial * score), the negatives that the model finds
  hardest: self-adversarial sampling of Sun et al. 2019 (RotatE), who shift distances by `margin`:
  score = margin - distance.
  """
  num_negatives: int = 1
  margin: float = 0.0
  adversarial: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.num_negatives < 1 or self.adversarial < 0:
      raise errors.UserError("config.objective: logistic needs num_negatives of at least 1 and "
                             f"adversarial of at least 0, not {self.num_negatives} and "
                             f"{self.adversarial}")

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs and "candidates" int32 [B, 1 + negatives], true ones first."""
    side, draw = jax.random.split(rng)
    inputs, answers, queries = self.ask(side, batch, resident)
    drawn, possible = self.corrupt(draw, queries, resident, self.num_negatives)
    return {**inputs, "mask": inputs["mask"] & possible,
            "candidates": jnp.concatenate([answers[:, None], drawn], axis=1)}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, triples, {"dropped": 0})."""
    del shards, capacity
    scores, penalty = self.scores(apply_fn, params, inputs, rng, inputs["candidates"])
    scores = scores + self.margin
    true, drawn = jax.nn.softplus(-scores[:, 0]), jax.nn.softplus(scores[:, 1:])
    if self.adversarial:
      weights = jax.nn.softmax(self.adversarial * jax.lax.stop_gradient(scores[:, 1:]), axis=1)
      losses = (true + jnp.sum(weights * drawn, axis=1)) / 2
    else:
      losses = (true + jnp.sum(drawn, axis=1)) / (1 + self.num_negatives)
    return links.total(losses + penalty, inputs["mask"])
