"""All answers of a query against candidates drawn from the other entities (Shi & Weninger 2017)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax import hashing
from recjax.objectives import links

CRITERIA = ("pointwise", "listwise", "wlistwise")
ABSENT = -1e9  # finite: a compiler may rearrange gradients in which infinity times 0 is no number


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateSoftmax(links.OfTriples):
  """Each triple asks for its head or its tail; all answers that train has are positives.

  Every other entity is a candidate with chance `rate`, apart for each query. Criteria of ProjE:

    pointwise  sigmoid cross-entropy, summed over positives and candidates
    listwise   softmax cross-entropy with a target of 1 / positives for each
    wlistwise  listwise, weighed by the number of positives
  """
  criterion: str = "listwise"
  rate: float = 0.25

  def __post_init__(self):
    super().__post_init__()
    errors.choose(dict.fromkeys(CRITERIA), self.criterion, "config.objective: criterion")
    if not 0 < self.rate <= 1:
      raise errors.UserError("config.objective: rate must be more than 0 and at most 1, not "
                             f"{self.rate}")

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs, "answers" int32 [B, W], "there" bool [B, W], "key" [B]."""
    side, draw = jax.random.split(rng)
    inputs, _, queries = self.ask(side, batch, resident)
    answers, there = links.answers_of(queries, resident)
    return {**inputs, "answers": answers, "there": there,
            "key": jax.random.bits(draw, queries.shape, jnp.uint32)}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, queries, {"dropped": 0})."""
    del shards, capacity
    scores, penalty = self.scores(apply_fn, params, inputs, rng, None)  # [B, E]
    answers, there = inputs["answers"], inputs["there"]
    rows = jnp.arange(len(scores))[:, None]
    outside = jnp.where(there, answers, self.num_entities)
    positive = jnp.zeros(scores.shape, bool).at[rows, outside].set(True, mode="drop")
    drawn = _kept(inputs["key"], self.num_entities, self.rate) & ~positive
    picked = jnp.where(there, jnp.take_along_axis(scores, answers, axis=1), 0)
    if self.criterion == "pointwise":
      losses = (jnp.sum(jnp.where(there, jax.nn.softplus(-picked), 0), axis=1)
                + jnp.sum(jnp.where(drawn, jax.nn.softplus(scores), 0), axis=1))
    else:
      number = jnp.sum(there, axis=1)
      everything = jax.nn.logsumexp(jnp.where(drawn | positive, scores, ABSENT), axis=1)
      losses = number * everything - jnp.sum(picked, axis=1)
      if self.criterion == "listwise":
        losses = losses / number
    return links.total(losses + penalty, inputs["mask"])


def _kept(keys, count, rate):
  """Returns bool [B, count], True with chance `rate`: a hash of uint32 keys [B] and place."""
  places = jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
  return hashing.mix(keys[:, None] + places) <= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
