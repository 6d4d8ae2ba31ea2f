"""BERT4Rec for rating prediction: the survey's variant that reads ratings beside items.

Every position concatenates item, rating and user (and attributes), each with positions. Ratings
enter as tags, an embedding for each level, and leave by regression. With `item_head` the model also
scores items, for item tasks beside rating in a mix; these know no ratings, whose tags then say
"unknown".
"""

import re

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import blocks
from recjax.models import layers
from recjax.models import sequence_embed
from recjax.models import transformer

VARIANTS = {
  # The survey's sizes, with the transformer of its released code (which has no rating model).
  "survey_code": dict(norm="pre", act="gelu_tanh", initializer="torch", num_layers=6,
                      item_width=128, rating_width=128, user_width=32, heads=4, hidden=512,
                      max_len=100),
  # The survey's text (Eq. 3-6): post-norm and ReLU.
  "survey_text": dict(norm="post", act="relu", initializer="torch", num_layers=6, item_width=128,
                      rating_width=128, user_width=32, heads=4, hidden=512, max_len=100),
  # Ours: small tables to start with and a final norm, so that the start predicts the mean.
  "recjax": dict(norm="pre", act="gelu_tanh", initializer="bert", num_layers=2, item_width=64,
                 rating_width=64, user_width=0, heads=4, hidden=256, max_len=100, dropout=0.2,
                 final_norm=True, clip=True),
}


class RatedEmbed(sequence_embed.SequenceEmbed):
  """The inputs of the transformer, and beside them the rating of every position."""
  rating_width: int = 0
  num_levels: int = 0  # K; ids 1..K, MASK K + 1, unknown K + 2

  def setup(self):
    super().setup()
    self.rating = layers.RowTable(self.num_levels + 2, self.rating_width, self.initializer,
                                  self.dtype)
    self.rating_pos = nn.Embed(self.max_len, self.rating_width, dtype=self.dtype,
                               embedding_init=layers.table_init(self.initializer))

  def __call__(self, items, users, tables, *, levels, train=False):
    """Returns [B, T, W]; `levels` int32 [B, T] are the ids of ratings, 0 at padding."""
    x = super().__call__(items, users, tables, train=train)
    place = jnp.arange(self.max_len - items.shape[1], self.max_len)
    rated = self.drop(self.rating(levels) + self.rating_pos(place), train=train)
    return jnp.concatenate([x, rated], axis=-1)


class BERT4RecRating(nn.Module):
  """The rating of every position of left-padded sequences, some of which are hidden."""
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  item_width: int = 128
  rating_width: int = 128
  user_width: int = 32  # 0: no user embedding
  num_layers: int = 6
  heads: int = 4
  hidden: int = 512  # width inside the feed-forward part
  max_len: int = 100
  dropout: float = 0.1
  act: str = "gelu_tanh"
  norm: str = "pre"
  final_norm: bool = False
  initializer: str = "torch"
  rating_levels: tuple = ()
  rating_range: tuple = ()
  rating_mean: float = 0.0
  mean_bias: bool = True  # the head's bias starts at the mean of the training ratings
  clip: bool = False  # predictions into the range of ratings
  item_head: bool = False  # scores items as well
  dtype: str = "float32"
  extra_tokens = 0
  choices = {"act": tuple(layers.ACTIVATIONS), "norm": ("pre", "post"),
             "initializer": ("torch", "bert"), "dtype": ("float32", "bfloat16")}

  @property
  def objectives(self):
    """Returns the names of the objectives that fit: items are scored where there is a head."""
    return ("masked_rating", *(("masked_item", "next_item") if self.item_head else ()))

  @nn.compact
  def __call__(self, items, users, tables, *, ratings=None, hidden=None, positions=None,
               candidates=None, readout=None, train=False):
    """Returns (ratings [B, T] of every position, dict of intermediates).

    Without `ratings` it returns the scores of items at `positions` instead.

    Args:
      items: int32 [B, T] left-padded ids, 0 padding.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 2, slots]} attribute ids of every item id.
      ratings: float32 [B, T]; a value that the training data do not have counts as unknown.
      hidden: bool [B, T], where the model sees MASK instead.
      positions: int32 [S, C], where items are scored, as `transformer.SequenceTransformer` has it,
      candidates: likewise,
      readout: likewise.
      train: whether dropout is on.
    """
    common = dict(initializer=self.initializer, dtype=jnp.dtype(self.dtype))
    levels = jnp.where(items > 0, len(self.rating_levels) + 2, 0) if ratings is None else (
      self._levels(ratings, hidden & (items > 0), items > 0))
    x = RatedEmbed(
      num_items=self.num_items, num_users=self.num_users, max_len=self.max_len,
      item_width=self.item_width, user_width=self.user_width, fields=self.fields,
      rating_width=self.rating_width, num_levels=len(self.rating_levels), dropout=self.dropout,
      **common, name="embed")(items, users, tables, levels=levels, train=train)
    out = {"levels": levels, "embedded": x}
    block = dict(heads=self.heads, hidden=self.hidden, act=self.act, norm=self.norm,
                 dropout=self.dropout, attention_dropout=self.dropout,
                 hidden_dropout=self.dropout, output_dropout=self.dropout, **common)
    x, out["encoder"] = blocks.Encoder(
      self.num_layers, block, final_norm=self.final_norm, name="encoder")(
        x, items > 0, train=train)
    out["encoded"] = x
    if self.item_head and (ratings is None or self.is_initializing()):
      where = x if positions is None else layers.select(x, positions)
      scores = layers.LinearHead(self.num_items, **common, name="item_head")(
        where, candidates, readout)
      if ratings is None:
        return scores, out
    # "torch" as layers.dense: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    kernel = (nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
              if self.initializer == "torch" else layers.table_init("bert"))
    bias = nn.initializers.constant(self.rating_mean if self.mean_bias else 0.0)
    rated = nn.Dense(1, kernel_init=kernel, bias_init=bias, name="head")(
      x.astype(jnp.float32))[..., 0]
    if self.clip and not train:
      rated = jnp.clip(rated, *self.rating_range)
    return rated, out

  def _levels(self, ratings, hidden, real):
    known = jnp.asarray(self.rating_levels, jnp.float32)
    same = ratings[..., None] == known
    ids = jnp.where(same.any(-1), jnp.argmax(same, -1) + 1, len(known) + 2)
    return jnp.where(real, jnp.where(hidden, len(known) + 1, ids), 0).astype(jnp.int32)

  def check(self):
    """Raises UserError where sizes do not fit together."""
    width = self.item_width + self.rating_width + self.user_width + sum(
      slots * wide for *_, wide, slots in self.fields)
    if width % self.heads:
      raise errors.UserError(f"config.model: the width {width} (item, rating, user and attributes "
                             f"together) does not split into {self.heads} heads")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    items = jnp.zeros((1, min(self.max_len, 2)), jnp.int32)
    return {"items": items, "users": jnp.zeros(1, jnp.int32),
            "ratings": jnp.zeros(items.shape), "hidden": jnp.zeros(items.shape, bool)}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    heads = {"item_head/scores/kernel": ("output", 1), "item_head/scores/bias": ("output", 0)}
    return {**layers.embed_rows(self.user_width, self.fields), **(heads if self.item_head else {}),
            "embed/rating/embedding": ("rating", 0)}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries user, rating and attribute tables with their positions, "model" all but the
    heads, "model_head" all: the source's task is the target's.
    """
    names = ["rating"] + ["user"] * bool(self.user_width) + [re.escape(f) for f, *_ in self.fields]
    if mode == "model_head":
      return ((r".*", r"\g<0>"),)
    return transformer.transfer_rules(mode, names)
