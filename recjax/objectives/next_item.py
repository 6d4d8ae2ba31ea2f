"""Next item prediction (NIP), in the two forms that the survey's systems use."""

import dataclasses

import jax.numpy as jnp

from recjax.objectives import item_loss
from recjax.objectives import masked_item


@dataclasses.dataclass(frozen=True)
class NextItem(item_loss.ItemLoss):
  """Predicts the item after a random prefix, from the prefix and an appended MASK.

  As released with the survey: a bidirectional model, one target a user and epoch, prefix length
  uniform over 2..n-1 items (shorter sequences: as long as they allow).
  """
  num_items: int
  window: str = "prefix"  # the window's last column is the target

  def prepare(self, rng, batch, resident):
    """Returns {"items", "users", "labels"}: the window with its last item turned into MASK."""
    items = batch["items"]
    real = items[:, -1:] > 0
    mask = jnp.where(real, self.num_items + 1, 0)
    labels = jnp.zeros_like(items).at[:, -1].set(items[:, -1])
    inputs = {"items": jnp.concatenate([items[:, :-1], mask], axis=1), "users": batch["users"],
              "labels": labels}
    return self.with_negatives(rng, inputs, resident)

  fit = masked_item.MaskedItem.fit
  room = masked_item.MaskedItem.room
  predict = masked_item.MaskedItem.predict


@dataclasses.dataclass(frozen=True)
class CausalNextItem(item_loss.ItemLoss):
  """Predicts the next item at every position of a causal model (Kang & McAuley 2018)."""
  num_items: int
  window: str = "last"
  min_length = 2
  extra_columns = 1  # inputs and labels are the same window, one column apart

  def prepare(self, rng, batch, resident):
    """Returns {"items", "users", "labels"}: windows [B, T + 1] shifted against themselves."""
    items = batch["items"]
    inputs = {"items": items[:, :-1], "users": batch["users"],
              "labels": jnp.where(items[:, :-1] > 0, items[:, 1:], 0)}
    return self.with_negatives(rng, inputs, resident)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row: one less than its items."""
    labels = lengths - 1
    return labels.mean(), labels.var(), labels.max()

  fit = masked_item.MaskedItem.fit

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns scores [B, N + 1] at the last position of each history."""
    return masked_item.predict_at_end(apply_fn, params, users, histories, readout)
