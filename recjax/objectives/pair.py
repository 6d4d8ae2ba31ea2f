"""Pairs of a user and an item: what a recommendation function f(u, v) is trained on."""

import dataclasses

import jax.numpy as jnp

from recjax.objectives import item_loss
from recjax.objectives import masked_item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(item_loss.ItemLoss):
  """Tells the items that a user has chosen from others, by the user alone: no history is read.

  A batch is so many training interactions of all users, in an order of its own every epoch that
  visits each of them once. Negatives are drawn anew each time. By default four of the user's unseen
  items and binary cross-entropy, as He et al. 2017; their batch counts negatives, ours does not.
  """
  num_items: int
  criterion: str = "bce"
  num_negatives: int = 4
  unseen: bool = True
  window: str = "last"  # of the one item of an example
  slide = True  # windows as long as a model of pairs reads, 1: every interaction is an example

  def prepare(self, rng, batch, resident):
    """Returns {"items" [B, 1] of padding, "users", "labels" [B, 1]}, and negatives if need be."""
    items = batch["items"]
    inputs = {"items": jnp.zeros_like(items), "users": batch["users"], "labels": items}
    return self.with_negatives(rng, inputs, resident)

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns scores [B, N + 1] for each user, whatever the history."""
    return masked_item.predict_at_end(apply_fn, params, users, histories, readout)
