"""Pairs of two domains that share users, learned together: CoNet's task (Hu et al. 2018)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossPair(pair.Pair):
  """An interaction of the run's domain beside a random one that the same user has in the other.

  Either is told from unseen items of its domain; each is the other's companion, as is so for its
  negatives. An epoch visits every interaction of the run's domain once. By default one negative, as
  the paper. Users without any interaction in the other domain train the run's domain alone.
  """
  num_negatives: int = 1
  sparsity: float = 0.0  # lambda of SCoNet: times the sum of |H|, H the parameters below cross/
  item_inputs = ()  # the rows of a second domain's items are not in them
  model_inputs = ("items", "users", "companions")

  def __post_init__(self):
    super().__post_init__()
    if self.proposal != "uniform" or self.criterion == "softmax":
      raise errors.UserError("config.objective: cross_pair draws negatives of each domain: set "
                             "proposal=uniform and criterion=bce, bpr or sampled_softmax")

  def prepare(self, rng, batch, resident):
    """Returns the inputs of `pair.Pair`, "companions" [B], and those of the other domain, "there".

    Args:
      rng: key of this step.
      batch: {"items" [B, 1], "users" [B]}.
      resident: of `batches.resident`, with those of the other domain in "beside".
    """
    users, beside = batch["users"], resident["beside"]
    here, choose, there = jax.random.split(rng, 3)
    begin, end = beside["begin"][users], beside["end"][users]
    place = begin + jax.random.randint(choose, users.shape, 0, jnp.maximum(end - begin, 1))
    has = (end > begin) & (batch["items"][:, 0] > 0)
    companions = jnp.where(has, beside["items"][jnp.minimum(place, len(beside["items"]) - 1)], 0)
    inputs = super().prepare(here, batch, resident)
    other = super().prepare(there, {"users": users, "items": companions[:, None]}, beside)
    return {**inputs, "companions": companions,
            "there": {**other, "companions": batch["items"][:, 0]}}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of both domains and of the penalty, weight of the run's own, metrics)."""
    where = dict(shards=shards, capacity=capacity, rng=rng)
    total, weight, metrics = super().loss(apply_fn, params, inputs, **where)
    there = functools.partial(apply_fn, there=True)
    more, _, _ = super().loss(there, params, inputs["there"], **where)
    penalty = sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(params.get("cross", {})))
    return total + more + self.sparsity * weight * penalty, weight, metrics
