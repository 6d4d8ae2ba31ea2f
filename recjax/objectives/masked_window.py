"""Masked item prediction on short windows, the survey's second pre-training task for Caser."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax.objectives import item_loss
from recjax.objectives import masked_item


@dataclasses.dataclass(frozen=True)
class MaskedWindow(item_loss.ItemLoss):
  """Hides exactly one item, at a random place, of every window of a user and predicts it.

  As released with the survey: windows of as many items as the model reads, softmax cross-entropy
  over all items. Masked items become MASK, another item or stay, as in `MaskedItem`.
  """
  num_items: int
  mask_share: float = 0.8
  random_share: float = 0.1
  window: str = "last"
  slide = True

  def prepare(self, rng, batch, resident):
    """Returns {"items", "users", "labels"}: one label a row, none where a row is padding alone."""
    items = batch["items"]
    choose, *hiding = jax.random.split(rng, 3)
    length = jnp.sum(items > 0, axis=1)
    back = jax.random.randint(choose, length.shape, 0, jnp.maximum(length, 1))
    column = jnp.arange(items.shape[1])
    chosen = (column == items.shape[1] - 1 - back[:, None]) & (items > 0)
    inputs = masked_item.hide(self, hiding, batch, chosen, resident["pool"])
    return self.with_negatives(jax.random.fold_in(rng, 3), inputs, resident)

  room = masked_item.MaskedItem.room
  predict = masked_item.MaskedItem.predict
