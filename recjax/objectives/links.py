"""What the objectives of graphs share: queries made of triples, and scores of all entities.

Letters: B queries, K candidates, E entities, W answers of a query at most.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import negatives as negatives_lib
from recjax.objectives import objective

CORRUPTION = ("unif", "bern")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Links(objective.OfRows):
  """An objective of a graph; `graphs.resident` is what it samples from.

  `examples` names the resident array whose rows an epoch visits. `penalty` weighs what the model
  calls so.
  """
  num_entities: int  # E
  penalty: float = 0.0
  task = "links"

  def predict(self, apply_fn, params, given, relations, asks_head):
    """Returns float32 [B, E]: scores of all entities for the asked side.

    Args:
      apply_fn: of `step.make_apply`.
      params: the model's parameters.
      given: int32 [B].
      relations: int32 [B].
      asks_head: bool [B], whether `given` is the tail.
    """
    inputs = {"given": given, "relations": relations, "asks_head": asks_head,
              "mask": jnp.ones(given.shape, bool)}
    return apply_fn(params, inputs, None).astype(jnp.float32)

  def scores(self, apply_fn, params, inputs, rng, candidates):
    """Returns (scores [B, K], penalty [B], already weighed)."""
    seen = {name: inputs[name] for name in ("given", "relations", "asks_head", "mask")}
    if not self.penalty:
      return apply_fn(params, seen, rng, candidates=candidates), 0.0
    scores, penalty = apply_fn(params, seen, rng, candidates=candidates, penalize=True)
    return scores, self.penalty * penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfTriples(Links):
  """An objective that asks each triple for its head or its tail.

  `corruption` says how often for the head: "unif" half the time, "bern" with tph / (tph + hpt) of
  the relation (Wang et al. 2014).
  """
  corruption: str = "unif"
  examples = "triples"

  def __post_init__(self):
    errors.choose(dict.fromkeys(CORRUPTION), self.corruption, "config.objective: corruption")

  def ask(self, rng, batch, resident):
    """Returns (inputs, answers int32 [B], queries int32 [B]): one side of each triple is asked.

    Args:
      rng: key of this draw.
      batch: {"rows" int32 [B] of "triples", "mask" bool [B]}.
      resident: of `graphs.resident`.
    """
    head, relation, tail = resident["triples"][batch["rows"]].T
    share = resident["head_share"][relation] if self.corruption == "bern" else 0.5
    asks_head = jax.random.uniform(rng, head.shape) < share
    queries = jnp.take_along_axis(
      resident["queries"][batch["rows"]], asks_head[:, None].astype(jnp.int32), axis=1)[:, 0]
    inputs = {"given": jnp.where(asks_head, tail, head), "relations": relation,
              "asks_head": asks_head, "mask": batch["mask"]}
    return inputs, jnp.where(asks_head, head, tail), queries

  def corrupt(self, rng, queries, resident, count):
    """Returns (int32 [B, count], bool [B]): entities that are no answer in train, if there are any.

    They are uniform over all that make a triple that train does not hold: the law of drawing again
    until one is found, in one draw.
    """
    drawn = negatives_lib.unseen(rng, queries, resident, count)
    known = resident["seen_end"][queries] - resident["seen_begin"][queries]
    return drawn, known < self.num_entities


def answers_of(queries, resident):
  """Returns (int32 [B, W], bool [B, W]): every query's answers in train, and which are there.

  `seen_gaps` holds the i-th answer less i.
  """
  place = resident["places"]
  at = resident["seen_begin"][queries][:, None] + place
  there = at < resident["seen_end"][queries][:, None]
  return jnp.where(there, resident["seen_gaps"][jnp.where(there, at, 0)] + place, 0), there


def total(losses, mask):
  """Returns (sum of [B] where `mask`, how many, {"dropped": 0})."""
  return (jnp.sum(jnp.where(mask, losses, 0)), jnp.sum(mask.astype(jnp.float32)),
          {"dropped": jnp.int32(0)})
