"""What is known of every position of a sequence, as a model of sequences reads it.

Letters: B batch, T positions, W width, N items.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from recjax.models import features as features_lib
from recjax.models import layers


class SequenceEmbed(nn.Module):
  """Concatenates what is known of every position: item, item attributes, user; each with positions.

  Survey, Section 4.2 and the released code: every table has a position table of its own.
  """
  num_items: int
  num_users: int
  max_len: int
  item_width: int
  user_width: int  # 0: no user embedding
  fields: tuple = ()  # (name, rows, width, slots): attribute tables, ids 1..rows
  extra_tokens: int = 0  # rows after MASK, for CLS and SEP
  segments: int = 0  # token-type rows, 0: none
  places: bool = True  # position tables beside the others
  scale_items: bool = False  # item vectors times sqrt(item_width), as Vaswani et al. 2017
  norm: bool = False  # layer norm after the sum, as Devlin et al. 2019
  dropout: float = 0.1
  initializer: str = "torch"
  dtype: jnp.dtype = jnp.float32
  schema: tuple = ()  # `features.Spec`s that are aggregated with the item's own vector
  aggregate: str = "concat"
  item_dropout: float = 0.0
  user_schema: tuple = ()  # `features.Spec`s that are aggregated with the user's own vector
  user_aggregate: str = "sum"

  def setup(self):
    start = layers.table_init(self.initializer)
    width = features_lib.width(self.item_width, self.schema, self.aggregate)
    if self.schema:
      self.features = features_lib.Features(
        self.schema, self.aggregate, self.num_items, self.initializer, self.dtype,
        self.item_dropout)
    self.item = layers.ItemTable(self.num_items + 2 + self.extra_tokens, self.item_width,
                                 self.initializer, self.dtype, often=(0, self.num_items + 1))
    def position(name, width):
      if self.places:
        setattr(self, f"{name}_pos", nn.Embed(self.max_len, width, embedding_init=start,
                                              dtype=self.dtype))
    position("item", width)
    if self.user_width:
      self.user = layers.RowTable(self.num_users, self.user_width, self.initializer, self.dtype)
      position("user", self.user_width)
      if self.user_schema:
        self.user_features = features_lib.UserFeatures(
          self.user_schema, self.user_aggregate, self.num_users, self.initializer, self.dtype)
    if self.segments:
      self.segment = nn.Embed(self.segments, width, embedding_init=start, dtype=self.dtype)
    for field, rows, width, _ in self.fields:
      setattr(self, field, layers.RowTable(rows, width, self.initializer, self.dtype))
      position(field, width)
    if self.norm:
      self.layer_norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.drop = layers.Dropout(self.dropout)

  def vectors(self, items, tables, *, whole, train):
    """Returns (vectors of `items` with their features, table of all rows or None)."""
    if not self.schema or self.aggregate == features_lib.FUSION:
      return self.item(items), self.item.embedding
    return self.features(items, self.item.embedding, tables, whole=whole, train=train)

  def entities(self, items, tables):
    """Returns what is known of `items`, for "fusion": ([B, T, item_width], bool [B, T] of which).

    Of padding, MASK and other tokens nothing is, so that a masked item does not leak.
    """
    said, _ = self.features(items, self.item.embedding, tables)
    return said, (items > 0) & (items <= self.num_items)

  def __call__(self, items, users, tables, *, vectors=None, segments=None, ages=None,
               train=False):
    """Returns [B, T, W].

    Args:
      items: int32 [B, T], left-padded ids; N + 1 is MASK.
      users: int32 [B], 0 for an unknown user.
      tables: {field: int32 [N + 2 + extra_tokens, slots]}, attribute ids of every item id. The rows
        of MASK say "unknown", so a masked item does not leak through its attributes.
      vectors: [B, T, width] of the items, where somebody has them already.
      segments: optional int32 [B, T] token types.
      ages: optional int32 [B, T], which row of the position tables a position reads, counted from
        the last; by default its column's. Those with the same age are not ordered.
      train: whether dropout is on.
    """
    batch, length = items.shape
    assert length <= self.max_len, f"{length} columns, but position tables have {self.max_len} rows"
    place = jnp.arange(self.max_len - length, self.max_len)
    if ages is not None:
      place = jnp.maximum(self.max_len - 1 - ages, 0)
    position = lambda name: getattr(self, f"{name}_pos")(place) if self.places else 0.0
    x = self.vectors(items, tables, whole=False, train=train)[0] if vectors is None else vectors
    if self.scale_items:
      x = x * math.sqrt(self.item_width)
    x = x + position("item")
    if self.segments:
      x = x + self.segment(jnp.zeros_like(items) if segments is None else segments)
    parts = [x]
    for field, _, width, slots in self.fields:
      ids = jnp.take(tables[field], items, axis=0)  # [B, T, slots]
      values = getattr(self, field)(ids)
      if self.places:
        values = values + position(field)[..., None, :]
      parts.append(values.reshape(batch, length, slots * width))
    if self.user_width:
      user = self.user(users)
      if self.user_schema:
        user = self.user_features(users, user, tables)
      user = user[:, None] + position("user")
      parts.append(jnp.broadcast_to(user, (batch, length, self.user_width)))
    x = jnp.concatenate(parts, -1) if len(parts) > 1 else x
    if self.norm:
      x = self.layer_norm(x)
    return self.drop(x, train=train)
