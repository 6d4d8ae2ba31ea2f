"""Learning from pairs of baskets: masked items, whether the second follows, what it will hold.

Inputs are rows "[CLS] b1 [SEP] b2 [SEP]", left-padded, as in Yang et al. 2019 (after Devlin et al.
2019): b2 is one basket and b1 the `context` baskets before it. Segments are 0 up to the first SEP
and 1 after it. Ids after the items are MASK, CLS and SEP.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.objectives import item_loss
from recjax.objectives import masked_item
from recjax.objectives import objective

TOKENS = 3  # CLS and two SEP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baskets(objective.Objective):
  """What the objectives over pairs share: how a row is laid out.

    context          how many baskets b1 holds; 0: as many as fit
    length           columns of a row, at most the model's positions
    look_back        how many more of a user's items than those a pair is chosen from
    shared_position  items of a basket have no order: they share a row of the position tables
  """
  num_items: int
  context: int = 0
  length: int = 64
  look_back: int = 192
  shared_position: bool = True
  window = "last"  # ends where a basket does
  columns = ("baskets",)

  def __post_init__(self):
    if self.context < 0 or self.length < 8 or self.look_back < 0:
      raise errors.UserError("config.objective: context and look_back are at least 0 and length 8, "
                             f"not {(self.context, self.look_back, self.length)}")

  @property
  def extra_columns(self):
    return self.look_back

  def width(self, length):
    """Returns the columns of a row, however long the windows are."""
    del length
    return self.length

  def capacity(self, lengths, *, rows, columns=None):
    """Returns the room for labels in `rows` rows together."""
    if columns is not None:
      lengths = np.array([columns - TOKENS])
    return super().capacity(lengths, rows=rows)

  def pair(self, rng, batch):
    """Returns (b1, b2, follows): which baskets of its window each row is about.

    b2 is drawn from all but the first of a window's baskets; where there is but one, b1 is that and
    b2 is empty.

    Args:
      rng: key of this draw.
      batch: {"items", "baskets" int32 [B, L]}.

    Returns:
      first: int32 [B, length - TOKENS] left-padded items of b1.
      ages: int32, like `first`: how many baskets before b2 each is.
      second: int32 [B, (length - TOKENS) // 2], likewise, of b2 (its last items, where it is long).
      whole: bool [B], whether there are two.
    """
    items, numbers = batch["items"], batch["baskets"]
    last = jnp.max(numbers, axis=1)
    oldest = jnp.min(jnp.where(items > 0, numbers, jnp.iinfo(jnp.int32).max), axis=1)
    whole = last > oldest
    chosen = oldest + 1 + jax.random.randint(rng, last.shape, 0, jnp.maximum(last - oldest, 1))
    age = jnp.where(items > 0, chosen[:, None] - numbers, 0)
    first = (age > 0) & ((age <= self.context) | (self.context == 0))
    width = self.length - TOKENS
    first, ages = compact(first, width, items, age)
    second, = compact((age == 0) & (items > 0), width // 2, items)
    return first, ages, second, whole

  def row(self, first, ages, second):
    """Returns {"items", "segments"[, "ages"]}, int32 [B, length]: "[CLS] b1 [SEP] b2 [SEP]".

    The oldest items of b1 are left out where there is no room. Rows without b1 are padding.
    """
    room = self.length - TOKENS - jnp.sum(second > 0, axis=1, keepdims=True)
    first = jnp.where(jnp.arange(first.shape[1]) >= first.shape[1] - room, first, 0)
    some = jnp.any(first > 0, axis=1, keepdims=True)
    token = lambda which: jnp.where(some, self.num_items + 1 + which, 0)
    like = lambda value, array: jnp.full_like(array, value)
    items = jnp.concatenate([token(1), first, token(2), jnp.where(some, second, 0), token(2)], 1)
    parts = (some, first, some, second, some)
    segments = jnp.concatenate([like(n, x) for n, x in zip((0, 0, 0, 1, 1), parts, strict=True)], 1)
    oldest = like(jnp.iinfo(jnp.int32).max, token(1))
    places = jnp.concatenate([oldest, ages + 2, like(2, token(1)), like(1, second),
                              like(0, token(1))], 1)
    items, segments, places = compact(items > 0, self.length, items, segments, places)
    row = {"items": items, "segments": segments}
    return {**row, "ages": places} if self.shared_position else row

  def room(self, max_len):
    """Returns how many past items fit, beside CLS, MASK and two SEP."""
    self.check(max_len)
    return self.length - TOKENS - 1

  def check(self, max_len):
    """Raises UserError where rows do not fit the model."""
    if self.length > max_len:
      raise errors.UserError(f"config.objective: rows of length {self.length} do not fit "
                             f"model.max_len={max_len}")

  def ask(self, first, ages, users):
    """Returns the inputs that ask for the next basket: b2 is a MASK."""
    mask = jnp.full((first.shape[0], 1), self.num_items + 1, jnp.int32)
    return {**self.row(first, ages, mask), "users": users}

  def predict(self, apply_fn, params, users, histories, baskets, readout=None):
    """Returns scores [B, N + 1] of the items of the basket after each history.

    Args:
      apply_fn: of `step.make_apply`.
      params: the model's parameters.
      users: int32 [B].
      histories: int32 [B, T] items, left-padded.
      baskets: int32 [B, T], in which basket each is.
      readout: see `masked_item.predict_at_mask`.
    """
    age = jnp.where(histories > 0, jnp.max(baskets, axis=1, keepdims=True) + 1 - baskets, 0)
    chosen = (age > 0) & ((age <= self.context) | (self.context == 0))
    first, ages = compact(chosen, self.length - TOKENS, histories, age)
    seen = self.ask(first, ages, users)
    # Nobody's rows, and those of users without a history, hold nothing to ask.
    where = jnp.full((len(users), 1), self.length - 2, jnp.int32)
    if readout is not None:
      return apply_fn(params, seen, None, positions=where, readout=readout)
    return apply_fn(params, seen, None, positions=where)[:, 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedBasket(Baskets, item_loss.ItemLoss):
  """Hides items of both baskets at random and predicts them; never CLS or SEP."""
  rate: float = 0.15
  mask_share: float = 0.8
  random_share: float = 0.1
  context: int = 1

  def __post_init__(self):
    Baskets.__post_init__(self)
    item_loss.ItemLoss.__post_init__(self)

  @property
  def columns(self):
    return ("baskets", *item_loss.ItemLoss.columns.fget(self))

  def prepare(self, rng, batch, resident):
    """Returns the row of each window's pair with hidden items, "users", "labels"; negatives."""
    which, choose, *hiding = jax.random.split(rng, 4)
    first, ages, second, whole = self.pair(which, batch)
    row = self.row(first, ages, jnp.where(whole[:, None], second, 0))
    real = (row["items"] > 0) & (row["items"] <= self.num_items)
    chosen = (jax.random.uniform(choose, real.shape) < self.rate) & real
    hidden = masked_item.hide(self, hiding, {**row, "users": batch["users"]}, chosen,
                              resident["pool"])
    return self.with_negatives(jax.random.fold_in(rng, 4), {**row, **hidden}, resident)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row: bounds, as if it held the window."""
    return masked_item.MaskedItem.label_statistics(
      self, np.minimum(lengths, self.length - TOKENS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextBasket(Baskets):
  """Tells whether b2 is the basket after b1, or one of another user's (next-basket prediction).

  Each with a chance of one half; a basket that holds what the true one does is never the other.
  """
  context: int = 1

  def prepare(self, rng, batch, resident):
    """Returns the row of each pair, "users" and "follows": int32 [B], 1, 0, or -1 without a pair.
    """
    del resident
    which, whose, how = jax.random.split(rng, 3)
    first, ages, second, whole = self.pair(which, batch)
    other, found = another(whose, second, batch["users"], whole)
    true = jax.random.bernoulli(how, 0.5, whole.shape) | ~found
    # Where nobody else in the batch has another basket, there is nothing to be told apart.
    follows = jnp.where(whole & found, true, -1).astype(jnp.int32)
    row = self.row(first, ages, jnp.where(true[:, None], second, other))
    return {**row, "users": batch["users"], "follows": follows}

  def labels(self, inputs):
    """Returns bool [B]: whether a row is a pair."""
    return inputs["follows"] >= 0

  def trim(self, inputs, columns):
    """Returns `inputs` without all but the last columns."""
    return cut(inputs, columns)

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of cross-entropies, pairs, {"dropped": 0, "right": pairs told right})."""
    del capacity
    rows, length = inputs["items"].shape
    begin = jnp.argmax(inputs["items"] > 0, axis=1)  # where CLS is, 0 in a row of padding
    flat = (jnp.arange(rows) % (rows // shards) * length + begin).reshape(shards, -1)
    seen = {name: x for name, x in inputs.items() if name != "follows"}
    logits = apply_fn(params, seen, rng, positions=flat.astype(jnp.int32), pairs=True)
    follows, real = inputs["follows"].reshape(flat.shape), self.labels(inputs).reshape(flat.shape)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(follows, 0)[..., None], -1)
    right = jnp.sum(real & (jnp.argmax(logits, -1) == follows)).astype(jnp.float32)
    return (-jnp.sum(jnp.where(real, picked[..., 0], 0)), jnp.sum(real.astype(jnp.float32)),
            {"dropped": jnp.int32(0), "right": right})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BasketItems(Baskets):
  """Ranks the items of the next basket at a MASK in its place: softmax over all items.

  All items of the basket are positives: the loss of a row is the mean of their cross-entropies.
  """

  def prepare(self, rng, batch, resident):
    """Returns the row that asks for a basket of the window, "users" and "targets" [B, P]."""
    del resident
    first, ages, second, whole = self.pair(rng, batch)
    return {**self.ask(first, ages, batch["users"]),
            "targets": jnp.where(whole[:, None], second, 0)}

  def labels(self, inputs):
    """Returns bool [B]: whether a row has a basket to predict."""
    return jnp.any(inputs["targets"] > 0, axis=1)

  def trim(self, inputs, columns):
    """Returns `inputs` without all but the last columns."""
    return cut(inputs, columns)

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum over rows of the mean cross-entropy of their items, rows, {"dropped": 0})."""
    del capacity
    rows, length = inputs["items"].shape
    where = (jnp.arange(rows // shards, dtype=jnp.int32) + 1) * length - 2
    targets = inputs["targets"].reshape(shards, rows // shards, -1)
    seen = {name: x for name, x in inputs.items() if name != "targets"}
    picked, partition = apply_fn(
      params, seen, rng, positions=jnp.broadcast_to(where, targets.shape[:2]),
      readout=lambda scores: (scores.of(targets), scores.against_all(targets[..., 0])[1]))
    real = targets > 0
    count = jnp.sum(real, -1)
    losses = jnp.where(real, partition[..., None] - picked.astype(jnp.float32), 0)
    total = jnp.sum(jnp.sum(losses, -1) / jnp.maximum(count, 1))
    return total, jnp.sum((count > 0).astype(jnp.float32)), {"dropped": jnp.int32(0)}


def another(rng, baskets, users, whole):
  """Returns (int32 [B, P], bool [B]): a random basket of another user for each row, and whether.

  It is that of another row of the batch, and never one with the same items as the row's own.

  Args:
    rng: key of this draw.
    baskets: int32 [B, P], left-padded.
    users: int32 [B].
    whole: bool [B], rows that have one.
  """
  content = jnp.sort(baskets, axis=1)
  same = jnp.all(content[:, None] == content[None], axis=-1)
  allowed = whole[None] & ~same & (users[:, None] != users[None])
  noise = jnp.where(allowed, jax.random.uniform(rng, allowed.shape), -1)
  return baskets[jnp.argmax(noise, axis=1)], jnp.any(allowed, axis=1)


def compact(keep, width, *arrays):
  """Returns the kept places of [B, L] arrays in [B, width], left-padded with 0; the last ones, if
  there are more.
  """
  order = jnp.argsort(keep, axis=1, stable=True)[:, -width:]
  missing = max(width - keep.shape[1], 0)
  kept = jnp.take_along_axis(keep, order, axis=1)
  return tuple(jnp.pad(jnp.where(kept, jnp.take_along_axis(x, order, axis=1), 0),
                       ((0, 0), (missing, 0))) for x in arrays)


def cut(inputs, columns):
  """Returns a row's arrays without all but the last columns, the others as they are."""
  return {name: x[:, -columns:] if name in ("items", "segments", "ages") else x
          for name, x in inputs.items()}
