"""Contrastive learning over views of a user's sequence (Xie et al. 2022, CL4SRec)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import masked_item
from recjax.objectives import objective

OPERATORS = ("crop", "mask", "reorder")


@dataclasses.dataclass(frozen=True)
class Contrast(objective.Objective):
  """Tells the two views of a user from all views of others, by InfoNCE.

  Each view is the user's window under one of `operators`, drawn anew (their Section 3.2.2): a crop
  keeps a run of `crop_share` of the items, a mask hides `mask_share` of them, a reordering shuffles
  a run of `reorder_share`. A view is represented by the vector that the model would compare with
  items at its end, or with `append_mask` at a MASK after it, where a bidirectional model predicts.

  The loss of a view is -log exp(s+ / t) / (exp(s+ / t) + sum exp(s- / t)): s+ is its similarity to
  the other view of its row, s- to the views of other users (a user with two rows is no negative of
  itself). Negatives come from `group` rows that lie together, so that cutting the batch at their
  ends changes nothing; None is the whole batch, which then cannot be cut. The paper takes inner
  products (normalize=False, temperature=1); cosines need a temperature below 1.
  """
  num_items: int
  operators: tuple = OPERATORS
  crop_share: float = 0.6
  mask_share: float = 0.3
  reorder_share: float = 0.6
  temperature: float = 0.1
  normalize: bool = True
  append_mask: bool = False
  group: int | None = None
  window: str = "last"
  item_inputs = ("items", "others")

  def __post_init__(self):
    for name in self.operators or ("",):
      errors.choose(dict.fromkeys(OPERATORS), name, "objective.contrast.operators")
    shares = (self.crop_share, self.mask_share, self.reorder_share)
    if not all(0 < share <= 1 for share in shares) or not self.temperature > 0:
      raise errors.UserError("objective.contrast: shares are in 0..1 and temperature is above 0, "
                             f"not {shares} and {self.temperature}")
    if self.group is not None and self.group < 2:
      raise errors.UserError("objective.contrast.group: two rows at least, or None for the batch")

  @property
  def rows_together(self):
    """Returns how many rows the loss must see at once, None for all."""
    return self.group

  def prepare(self, rng, batch, resident):
    """Returns {"items", "others" int32 [B, T], "users"}: two views of each window."""
    del resident
    one, two = (self.view(key, batch["items"]) for key in jax.random.split(rng))
    return {"items": one, "others": two, "users": batch["users"]}

  def view(self, rng, items):
    """Returns int32 [B, T]: every row of left-padded `items` under an operator of its own."""
    which, *keys = jax.random.split(rng, 1 + len(self.operators))
    apply = {"crop": lambda key: crop(key, items, self.crop_share),
             "mask": lambda key: mask(key, items, self.mask_share, self.num_items + 1),
             "reorder": lambda key: reorder(key, items, self.reorder_share)}
    views = jnp.stack([apply[name](key) for name, key in zip(self.operators, keys, strict=True)])
    chosen = jax.random.randint(which, items.shape[:1], 0, len(views))
    found = jnp.take_along_axis(views, chosen[None, :, None], axis=0)[0]
    if not self.append_mask:
      return found
    end = jnp.where(items[:, -1:] > 0, self.num_items + 1, 0)
    return jnp.concatenate([found[:, 1:], end], axis=1)

  def item_ids(self, inputs):
    """Returns arrays that hold the items of `item_inputs`."""
    return [inputs[name] for name in self.item_inputs]

  def labels(self, inputs):
    """Returns int32 [B]: two views of each user."""
    return 2 * (inputs["users"] > 0)

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum over views, number of views, {"dropped": 0})."""
    del shards, capacity
    rows, length = inputs["items"].shape
    group = self.group or rows
    views = jnp.concatenate([inputs["items"], inputs["others"]])
    users = jnp.tile(inputs["users"], 2)
    ends = jnp.arange(1, 2 * rows + 1, dtype=jnp.int32)[None] * length - 1
    x = apply_fn(params, {"items": views, "users": users}, rng, positions=ends,
                 readout=lambda scores: scores.x)[0].astype(jnp.float32)
    if self.normalize:
      x = x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)
    gather = lambda value: jnp.swapaxes(value.reshape(2, rows // group, group, -1), 0, 1).reshape(
      rows // group, 2 * group, -1)
    total = info_nce(gather(x), gather(users)[..., 0], self.temperature)
    weight = jnp.sum(self.labels(inputs)).astype(jnp.float32)
    return total, weight, {"dropped": jnp.int32(0)}

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns scores [B, N + 1] after each history, where a view is represented."""
    if self.append_mask:
      return masked_item.predict_at_mask(apply_fn, params, users, histories, self.num_items,
                                         readout)
    return masked_item.predict_at_end(apply_fn, params, users, histories, readout)

  def room(self, max_len):
    """Returns how many past items fit `max_len` positions."""
    return max_len - self.append_mask


def info_nce(x, users, temperature, near=None):
  """Returns the summed loss of all views that are somebody's.

  Args:
    x: float32 [G, 2 g, W]; of each group view i and view g + i are of one row.
    users: int32 [G, 2 g], 0 where a row is nobody's.
    temperature: divides the similarities.
    near: bool [G, 2 g, 2 g], or None: views that are no negatives of each other.
  """
  count = x.shape[1]
  partner = jnp.roll(jnp.arange(count), count // 2)
  scores = jnp.einsum("gaw,gbw->gab", x, x) / temperature
  mine = jnp.take_along_axis(scores, jnp.broadcast_to(partner[:, None], (*x.shape[:2], 1)), 2)
  others = (users[:, :, None] != users[:, None, :]) & (users[:, None, :] > 0)
  if near is not None:
    others &= ~near
  rivals = jnp.where(others, scores, -jnp.inf)
  losses = jax.nn.logsumexp(jnp.concatenate([mine, rivals], -1), -1) - mine[..., 0]
  return jnp.sum(jnp.where(users > 0, losses, 0))


def crop(rng, items, share):
  """Returns a run of floor(share n) items of each row (one at least), left-padded again."""
  length = items.shape[1]
  count, size = _sizes(items, share)
  begin = length - count + _start(rng, count, size)
  column = jnp.arange(length)
  place = begin[:, None] + column - (length - size)[:, None]
  kept = jnp.take_along_axis(items, jnp.clip(place, 0, length - 1), axis=1)
  return jnp.where(column >= (length - size)[:, None], kept, 0)


def mask(rng, items, share, token):
  """Returns each row with floor(share n) of its items, anywhere, turned into `token`."""
  size = jnp.floor(jnp.sum(items > 0, axis=1) * share).astype(jnp.int32)
  noise = jnp.where(items > 0, jax.random.uniform(rng, items.shape), jnp.inf)
  rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
  return jnp.where((rank < size[:, None]) & (items > 0), token, items)


def reorder(rng, items, share):
  """Returns each row with a run of floor(share n) of its items shuffled."""
  where, how = jax.random.split(rng)
  count, size = _sizes(items, share)
  begin = (items.shape[1] - count + _start(where, count, size))[:, None]
  column = jnp.arange(items.shape[1], dtype=jnp.float32)
  inside = (column >= begin) & (column < begin + size[:, None])
  drawn = begin + jax.random.uniform(how, items.shape) * size[:, None]
  order = jnp.argsort(jnp.where(inside, jnp.minimum(drawn, begin + size[:, None] - 0.5), column),
                      axis=1, stable=True)
  return jnp.take_along_axis(items, order, axis=1)


def _sizes(items, share):
  """Returns int32 [B] twice: items of each row, and how many a run has."""
  count = jnp.sum(items > 0, axis=1)
  return count, jnp.clip(jnp.floor(count * share).astype(jnp.int32), jnp.minimum(count, 1), count)


def _start(rng, count, size):
  """Returns int32 [B]: where a run of `size` of `count` items begins."""
  return jax.random.randint(rng, count.shape, 0, count - size + 1)
