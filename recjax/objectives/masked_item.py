"""Masked item prediction (MIP), the cloze task of BERT4Rec (Sun et al. 2019, Section 3.5)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax.objectives import item_loss


@dataclasses.dataclass(frozen=True)
class MaskedItem(item_loss.ItemLoss):
  """Hides items at random and predicts them from both sides.

  Of the chosen positions `mask_share` become MASK, `random_share` another item of the domain, and
  the rest stay as they are (Devlin et al. 2019: 80/10/10).
  """
  num_items: int
  rate: float = 0.15
  mask_share: float = 0.8
  random_share: float = 0.1
  window: str = "last"

  def prepare(self, rng, batch, resident):
    """Returns {"items", "users", "labels"} from sampled windows, and negatives if need be.

    Args:
      rng: key of this step.
      batch: {"items": int32 [B, T], "users": int32 [B]}.
      resident: of `batches.resident`; random replacement draws from its "pool".
    """
    items = batch["items"]
    choose, *hiding = jax.random.split(rng, 3)
    chosen = (jax.random.uniform(choose, items.shape) < self.rate) & (items > 0)
    inputs = hide(self, hiding, batch, chosen, resident["pool"])
    return self.with_negatives(jax.random.fold_in(rng, 3), inputs, resident)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row, from windows of these lengths."""
    return chosen(self.rate, lengths)

  def room(self, max_len):
    """Returns how many past items fit `max_len` positions: the MASK takes one."""
    return max_len - 1

  def fit(self, inputs, positions):
    """Returns `inputs` [B, T] that fill no more `positions`, and how many labels that took."""
    filled = jnp.sum(inputs["items"] > 0, axis=0)
    keep = jnp.cumsum(filled[::-1])[::-1] <= positions  # whole columns, the last ones
    some = {name: jnp.where(keep, inputs[name], 0) for name in ("items", "labels")}
    count = lambda inputs: jnp.sum(inputs["labels"] > 0)
    return {**inputs, **some}, count(inputs) - count(some)

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns scores [B, N + 1] of the item after each history; see `predict_at_mask`."""
    return predict_at_mask(apply_fn, params, users, histories, self.num_items, readout)


def chosen(rate, lengths):
  """Returns (mean, variance, most) of how many items of a row are chosen, each with chance `rate`.

  Args:
    rate: in 0..1.
    lengths: int [n], items of the rows.
  """
  mean, spread = lengths.mean(), lengths.var()
  return rate * mean, rate * (1 - rate) * mean + rate**2 * spread, lengths.max()


def hide(objective, keys, batch, chosen, pool):
  """Returns {"items", "users", "labels"}: the chosen items as labels, hidden 80/10/10 or so.

  Args:
    objective: has `num_items`, `mask_share` and `random_share`, see `MaskedItem`.
    keys: two keys.
    batch: {"items": int32 [B, T], "users": int32 [B]}.
    chosen: bool [B, T], none of them padding.
    pool: int32 [M] items that replace others.
  """
  items, (how, which) = batch["items"], keys
  fate = jax.random.uniform(how, items.shape)
  other = pool[jax.random.randint(which, items.shape, 0, len(pool))]
  replaced = fate < objective.mask_share + objective.random_share
  changed = jnp.where(fate < objective.mask_share, objective.num_items + 1,
                      jnp.where(replaced, other, items))
  return {"items": jnp.where(chosen, changed, items), "users": batch["users"],
          "labels": jnp.where(chosen, items, 0)}


def predict_at_mask(apply_fn, params, users, histories, num_items, readout=None):
  """Returns float32 [B, N + 1]: scores at a MASK appended to left-padded histories [B, T].

  With a `readout` of the `catalog.Scores` [B, 1], its answer.
  """
  items = jnp.concatenate([histories, jnp.full_like(histories[:, :1], num_items + 1)], axis=1)
  return predict_at_end(apply_fn, params, users, items, readout)


def predict_at_end(apply_fn, params, users, items, readout=None):
  """Returns what `predict_at_mask` does, at the last column of `items` [B, T]."""
  seen = {"items": items, "users": users}
  last = jnp.full((items.shape[0], 1), items.shape[1] - 1, jnp.int32)
  if readout is not None:
    return apply_fn(params, seen, None, positions=last, readout=readout)
  return apply_fn(params, seen, None, positions=last)[:, 0].astype(jnp.float32)
