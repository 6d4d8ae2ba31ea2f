"""Attributes of items as what is predicted: MAP and AAP of S3-Rec (Zhou et al. 2020).

Both are a binary cross-entropy for each value of a vocabulary that joins several attributes. Items
without any value, and padding, have nothing to be predicted.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import losses
from recjax.objectives import masked_item
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class OfAttributes(objective.Objective):
  """Predicts the values of `attributes` that at least `min_count` items have.

  Of a window's items `rate` are asked, by chance. The loss of an item is summed over all values.
  """
  num_items: int
  attributes: tuple = ("genre",)
  min_count: int = 5
  value_width: int = 32  # of their vectors
  rate: float = 0.2
  window: str = "last"
  predicts = False
  side = ""  # which vectors are compared with those of the values

  def __post_init__(self):
    if not 0 < self.rate <= 1 or self.value_width < 1 or not self.attributes:
      raise errors.UserError("config.objective: attributes names some, value_width is at least 1 "
                             f"and rate in 0..1, not {self.attributes}, {self.value_width} and "
                             f"{self.rate}")

  @property
  def auxiliary(self):
    """Returns the module that scores values, and which."""
    return (("attributes", {"attributes": tuple(self.attributes), "min_count": self.min_count,
                            "width": self.value_width, "sides": {self.side: None}}),)

  def prepare(self, rng, batch, resident):
    """Returns {"items", "users", "labels"}: items that are asked for their values, else 0."""
    items = batch["items"]
    chosen = ((jax.random.uniform(rng, items.shape) < self.rate)
              & resident["attributes"]["described"][items])
    return {"items": self.seen(items, chosen), "users": batch["users"],
            "labels": jnp.where(chosen, items, 0)}

  def seen(self, items, chosen):
    """Returns what the model reads."""
    del chosen
    return items

  def labels(self, inputs):
    """Returns int32 [B]: how many items of each row are asked."""
    return jnp.sum(inputs["labels"] > 0, axis=1)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row, if all items had values."""
    return masked_item.chosen(self.rate, lengths)

  @staticmethod
  def trim(inputs, columns):
    """Returns `inputs` without all but the last columns."""
    return {name: x[:, -columns:] if x.ndim > 1 else x for name, x in inputs.items()}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, items, {"dropped": items without room})."""
    positions, picked, weights, dropped = losses.labeled_positions(
      inputs["labels"], shards=shards, capacity=capacity)
    asked = {"items": picked, **self.vectors(apply_fn, params, inputs, positions, rng)}
    scores, held = apply_fn(params, asked, None, auxiliary="attributes", side=self.side)
    return (*losses.set_cross_entropy(scores, held, weights), {"dropped": dropped})

  def vectors(self, apply_fn, params, inputs, positions, rng):
    """Returns {"x": [S, C, W]} where it is not the items' rows that are compared."""
    del apply_fn, params, inputs, positions, rng
    return {}


@dataclasses.dataclass(frozen=True)
class MaskedAttribute(OfAttributes):
  """Predicts a hidden item's values from what surrounds it (MAP); it is always a MASK."""
  side = "masked"

  def seen(self, items, chosen):
    return jnp.where(chosen, self.num_items + 1, items)

  def vectors(self, apply_fn, params, inputs, positions, rng):
    seen = {name: inputs[name] for name in ("items", "users")}
    return {"x": apply_fn(params, seen, rng, positions=positions, readout=lambda scores: scores.x)}


@dataclasses.dataclass(frozen=True)
class ItemAttribute(OfAttributes):
  """Predicts the values of an item from its own row (AAP)."""
  side = "item"
