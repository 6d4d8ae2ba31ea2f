"""All entities at once are told from the answers of a query (Dettmers et al. 2018: 1-N scoring)."""

import dataclasses

import jax.numpy as jnp

from recjax import errors
from recjax.objectives import links

SMOOTHINGS = ("released", "standard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneToAll(links.Links):
  """Binary cross-entropy of every entity, averaged over them; an example is a distinct query.

  Queries ask for heads as well as for tails: that is what adding reciprocal triples amounts to. The
  labels are smoothed as TuckER's released code does, y' = (1 - s) y + 1 / E, or as usual, s / E.
  """
  smoothing: float = 0.0  # s
  smoothing_kind: str = "released"
  examples = "given"

  def __post_init__(self):
    errors.choose(dict.fromkeys(SMOOTHINGS), self.smoothing_kind,
                  "config.objective: smoothing_kind")
    if not 0 <= self.smoothing < 1:
      raise errors.UserError("config.objective: smoothing must be at least 0 and below 1, not "
                             f"{self.smoothing}")

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs, "answers" int32 [B, W] and "there" bool [B, W]."""
    del rng
    rows = batch["rows"]
    answers, there = links.answers_of(rows, resident)
    return {**{name: resident[name][rows] for name in ("given", "relations", "asks_head")},
            "mask": batch["mask"], "answers": answers, "there": there}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, queries, {"dropped": 0}).

    sum_e softplus(s_e) - y'_e s_e needs the scores of answers alone beside two plain sums, and no
    matrix of labels.
    """
    del shards, capacity
    scores, penalty = self.scores(apply_fn, params, inputs, rng, None)  # [B, E]
    picked = jnp.take_along_axis(scores, inputs["answers"], axis=1)
    picked = jnp.sum(jnp.where(inputs["there"], picked, 0), axis=1)
    floor = (1.0 if self.smoothing_kind == "released" else self.smoothing) / self.num_entities
    floor = floor if self.smoothing else 0.0
    # With jax.nn's, products and gradients take a fifth longer on a CPU.
    softplus = jnp.maximum(scores, 0) + jnp.log1p(jnp.exp(-jnp.abs(scores)))
    losses = (jnp.sum(softplus, axis=1) - (1 - self.smoothing) * picked
              - floor * jnp.sum(scores, axis=1)) / self.num_entities
    return links.total(losses + penalty, inputs["mask"])
