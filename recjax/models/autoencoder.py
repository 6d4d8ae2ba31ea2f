"""Autoencoders of a user's vector of ratings.

Letters: B batch, L ratings of a user, N items, S ratings of another data set.
"""

import re

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import layers

ACTIVATIONS = {"sigmoid": nn.sigmoid, "selu": nn.selu, "relu": nn.relu}
STARTS = {"normal": nn.initializers.normal(0.2), "xavier": nn.initializers.xavier_uniform()}
VARIANTS = {
  # The survey's DACF: A. Oppermann's "Deep Autoencoders for Collaborative Filtering", as released.
  "oppermann": dict(widths=(256, 128, 256), act="sigmoid", initializer="normal"),
  # Kuchaiev & Ginsburg 2017, "Training Deep AutoEncoders for Collaborative Filtering": the network
  # that they release a command for, n-512-512-1024-512-512-n; dropout on the code alone.
  "nvidia": dict(widths=(512, 512, 1024, 512, 512), act="selu", last_act=True, head_bias=True,
                 initializer="xavier", dropout=0.8),
  # Ours: the network explains what item and user biases leave.
  "recjax": dict(widths=(256,), act="selu", head_bias=False, initializer="xavier", dropout=0.5,
                 biases=True, clip=True),
}


class Affine(nn.Module):
  """x W + b; W is another layer's, transposed, where it is given."""
  rows: int
  columns: int
  initializer: str
  bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, kernel=None):
    """Returns (output, W)."""
    if kernel is None:
      kernel = self.param("kernel", STARTS[self.initializer], (self.rows, self.columns))
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    if self.bias:
      y = y + self.param("bias", nn.initializers.zeros_init(), (self.columns,)).astype(self.dtype)
    return y, kernel


class Biases(nn.Module):
  """What the means of items and users say of ratings, and what they leave to explain.

  An item's is a parameter that starts at its shrunk mean. A user's is the shrunk mean of residuals:
  those of the extra ratings first, then those of the others from there.
  """
  num_items: int

  @nn.compact
  def __call__(self, x, rated, extra, also, tables):
    """Returns (residuals [B, N], 0 where unknown, scaled to a norm of about one; biases [B, N]).

    Args:
      x: float32 [B, N] ratings, where `rated`.
      rated: bool [B, N].
      extra: float32 [B, N] ratings of the other data set, where `also`.
      also: bool [B, N].
      tables: of `data.ratings.item_table`.
    """
    item = self.param("item", lambda _: tables["item_rating"])
    shrink = jnp.exp(self.param("log_shrink", nn.initializers.constant(jnp.log(5.0)), (2,)))
    total = lambda values: jnp.sum(values, axis=1, keepdims=True)
    left, more = jnp.where(rated, x - item, 0), jnp.where(also, extra - item, 0)
    user = total(more) / (total(also) + shrink[0])
    user = user + total(jnp.where(rated, left - user, 0)) / (total(rated) + shrink[1])
    known = rated | also
    left = jnp.where(known, left + more - user, 0)
    return left / jnp.sqrt(jnp.maximum(total(known), 1)), item + user


class Autoencoder(nn.Module):
  """Ratings of all items from a vector of the known ones, through dense layers.

  Parameters: embed (N rows), hidden_1, ..., head (N columns), and bias/item.
  """
  num_items: int  # N
  num_users: int  # U
  widths: tuple = (256, 128, 256)  # of the hidden layers; the middle one is the code
  act: str = "sigmoid"
  last_act: bool = False  # also on the output
  head_bias: bool = False
  tied: bool = False  # the second half uses the transposed kernels of the first
  initializer: str = "normal"
  dropout: float = 0.0  # on the code
  biases: bool = False  # the network sees and predicts what item and user biases leave
  clip: bool = False  # predictions into the range of ratings
  extra_ratings: str = ""  # data set whose ratings by the same users are read, too
  extra_len: int = 1024  # the most recent of those
  max_len: int = 4096  # ratings of a user that are read
  rating_range: tuple = ()
  dtype: str = "float32"
  fields = ()
  extra_tokens = 0
  objectives = ("autoencode", "masked_rating")
  choices = {"act": tuple(ACTIVATIONS), "initializer": tuple(STARTS),
             "dtype": ("float32", "bfloat16")}

  @nn.compact
  def __call__(self, users, tables, *, items=None, ratings=None, hidden=None, dense=None,
               rated=None, full=False, train=False):
    """Returns (ratings of `items` [B, L], or of all items [B, N] if `full`, intermediates).

    Args:
      users: int32 [B].
      tables: of `data.ratings.extra_tables`, where `extra_ratings` is set.
      items: int32 [B, L], 0 is padding.
      ratings: float32 [B, L].
      hidden: optional bool [B, L]: these ratings are not read.
      dense: float32 [B, N], the vector itself instead of items and ratings.
      rated: bool [B, N], its known entries.
      full: what to return.
      train: whether dropout is on.
    """
    if dense is None:
      known = items > 0 if hidden is None else (items > 0) & ~hidden
      dense, rated = self._vector(items, ratings, known)
    x, base = dense, 0.0
    if self.extra_ratings:
      more = self._vector(*_extra(users, tables, self.extra_len))
      x = jnp.where(rated, x, more[0])
    else:
      more = x, jnp.zeros_like(rated)
    if self.biases:
      x, base = Biases(self.num_items, name="bias")(dense, rated, *more, tables)
    y = self._network(x, train).astype(jnp.float32) + base
    if self.clip and not train:
      y = jnp.clip(y, *self.rating_range)
    out = {"vector": dense, "full": y}
    return (y if full else jnp.take_along_axis(y, jnp.maximum(items - 1, 0), axis=1)), out

  def _vector(self, items, ratings, known):
    """Returns (float32 [B, N], bool [B, N]): the ratings of a row by item, and where there are any.

    An item that a user rated twice has the mean.
    """
    rows = jnp.arange(len(items))[:, None]
    scatter = lambda values: jnp.zeros((len(items), self.num_items + 1)).at[rows, items].add(
      jnp.where(known, values, 0))[:, 1:]
    count = scatter(jnp.ones_like(ratings))
    return scatter(ratings) / jnp.maximum(count, 1), count > 0

  def _network(self, x, train):
    sizes = (self.num_items, *self.widths, self.num_items)
    last, kernels = len(sizes) - 2, []
    for layer in range(last + 1):
      name = {0: "embed", last: "head"}.get(layer, f"hidden_{layer}")
      mirror = last - layer
      x, kernel = Affine(
        sizes[layer], sizes[layer + 1], self.initializer, layer < last or self.head_bias,
        jnp.dtype(self.dtype), name=name)(
          x, kernels[mirror].T if self.tied and mirror < layer else None)
      kernels.append(kernel)
      if layer < last or self.last_act:
        x = ACTIVATIONS[self.act](x)
      if layer == len(self.widths) // 2:
        x = layers.Dropout(self.dropout)(x, train=train)
    return x

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if not len(self.widths) % 2:
      raise errors.UserError(f"model.widths={self.widths}: an odd number of hidden layers has a "
                             "code in the middle")
    if self.tied and self.widths != self.widths[::-1]:
      raise errors.UserError(f"model.widths={self.widths} is not symmetric, as model.tied needs")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    items = jnp.zeros((1, 1), jnp.int32)
    return {"users": jnp.zeros(1, jnp.int32), "items": items, "ratings": jnp.zeros((1, 1))}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for items."""
    names = {"embed/kernel": ("rated", 0)}
    if not self.tied:
      names["head/kernel"] = ("rated", 1)
    if self.head_bias:
      names["head/bias"] = ("rated", 0)
    if self.biases:
      names["bias/item"] = ("rated", 0)
    return names

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the rows of items, "model" everything; items are matched by name, so that
    those which the source never trained start fresh.
    """
    rows = "|".join(map(re.escape, self.row_tables()))
    return {"none": (), "embedding": ((rows, r"\g<0>"),), "model": ((r".*", r"\g<0>"),)}.get(mode)


def _extra(users, tables, length):
  """Returns what `users` rated in the other data, [B, S] each: items, ratings, which are real."""
  begin, end = tables["extra_offsets"][users], tables["extra_offsets"][users + 1]
  index = end[:, None] - length + jnp.arange(length)
  inside = index >= begin[:, None]
  take = lambda name: jnp.where(inside, tables[name][jnp.maximum(index, 0)], 0)
  return take("extra_items"), take("extra_ratings"), inside
