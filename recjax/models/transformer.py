"""The transformer over item sequences that BERT4Rec and SASRec share.

Letters: B batch, T positions, W width, H heads, N items, S shards, C labeled positions a shard.
Sequences are left-padded, so the last position is always the most recent one, and position tables
are aligned to the right: a batch of T columns uses the last T rows. Cutting columns that hold only
padding therefore changes nothing.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import columns
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

  def setup(self):
    start = layers.table_init(self.initializer)
    self.item = nn.Embed(self.num_items + 2 + self.extra_tokens, self.item_width,
                         embedding_init=start, dtype=self.dtype)
    def position(name, width):
      if self.places:
        setattr(self, f"{name}_pos", nn.Embed(self.max_len, width, embedding_init=start,
                                              dtype=self.dtype))
    position("item", self.item_width)
    if self.user_width:
      self.user = layers.RowTable(self.num_users, self.user_width, self.initializer, self.dtype)
      position("user", self.user_width)
    if self.segments:
      self.segment = nn.Embed(self.segments, self.item_width, embedding_init=start,
                              dtype=self.dtype)
    for field, rows, width, _ in self.fields:
      setattr(self, field, layers.RowTable(rows, width, self.initializer, self.dtype))
      position(field, width)
    if self.norm:
      self.layer_norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    self.drop = layers.Dropout(self.dropout)

  def __call__(self, items, users, tables, *, segments=None, ages=None, train=False):
    """Returns [B, T, W].

    Args:
      items: int32 [B, T], left-padded ids; N + 1 is MASK.
      users: int32 [B], 0 for an unknown user.
      tables: {field: int32 [N + 2 + extra_tokens, slots]}, attribute ids of every item id. The rows
        of MASK say "unknown", so a masked item does not leak through its attributes.
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
    x = self.item(items)
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
      user = self.user(users)[:, None] + position("user")
      parts.append(jnp.broadcast_to(user, (batch, length, self.user_width)))
    x = jnp.concatenate(parts, -1) if len(parts) > 1 else x
    if self.norm:
      x = self.layer_norm(x)
    return self.drop(x, train=train)


class Attention(nn.Module):
  """Multi-head scaled dot-product attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017).

  With a `source`, keys and values come from there and nothing is projected afterwards, as in the
  released code of Kang & McAuley 2018.
  """
  heads: int
  dropout: float
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, mask, *, source=None, train):
    batch, length, width = x.shape
    assert width % self.heads == 0, f"width {width} does not split into {self.heads} heads"
    project = functools.partial(
      layers.dense, initializer=self.initializer, fan_in=width, dtype=self.dtype)
    if source is None:
      qkv = project(3 * width, name="qkv")(x)
    else:
      qkv = jnp.concatenate([project(width, name="query")(x), project(width, name="key")(source),
                             project(width, name="value")(source)], axis=-1)
    query, key, value = jnp.moveaxis(
      qkv.reshape(batch, length, 3, self.heads, width // self.heads), 2, 0)  # [B, T, H, d]
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(width // self.heads)
    scores = jnp.where(mask, scores.astype(jnp.float32), layers.MASKED_SCORE)
    weights = nn.softmax(scores).astype(self.dtype)
    weights = layers.Dropout(self.dropout)(weights, train=train)
    mixed = jnp.einsum("bhts,bshd->bthd", weights, value).reshape(batch, length, width)
    return project(width, name="out")(mixed) if source is None else mixed


class FeedForward(nn.Module):
  """W -> hidden -> W with one nonlinearity."""
  hidden: int
  act: str
  dropout: float
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, *, train):
    width = x.shape[-1]
    project = functools.partial(layers.dense, initializer=self.initializer, dtype=self.dtype)
    hidden = layers.ACTIVATIONS[self.act](project(self.hidden, fan_in=width, name="up")(x))
    hidden = layers.Dropout(self.dropout)(hidden, train=train)
    return project(width, fan_in=self.hidden, name="down")(hidden)


class Block(nn.Module):
  """One transformer layer.

  The norm stands before each part ("pre"), after each residual sum ("post"), or as in the released
  code of Kang & McAuley 2018 ("query"): keys and values are not normed, the residual is the normed
  input, and what attention adds has neither an output projection nor dropout.
  """
  heads: int
  hidden: int
  act: str = "gelu_tanh"
  norm: str = "pre"
  dropout: float = 0.1
  attention_dropout: float = 0.1
  hidden_dropout: float = 0.1  # inside the feed-forward part
  output_dropout: float = 0.1  # after the whole layer, as the code the survey built on
  initializer: str = "torch"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, mask, *, train):
    start = dict(initializer=self.initializer, dtype=self.dtype)
    attend = lambda y, source=None: Attention(
      self.heads, self.attention_dropout, **start, name="attention")(
        y, mask, source=source, train=train)
    feed = lambda y: FeedForward(self.hidden, self.act, self.hidden_dropout, **start, name="mlp")(
      y, train=train)
    for name, part in (("attention_norm", attend), ("mlp_norm", feed)):
      norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)
      drop = layers.Dropout(self.dropout)
      if self.norm == "pre":
        x = x + drop(part(norm(x)), train=train)
      elif self.norm == "post":
        x = norm(x + drop(part(x), train=train))
      elif part is attend:
        y = norm(x)
        x = y + attend(y, x)
      else:
        y = norm(x)
        x = y + drop(feed(y), train=train)
    return layers.Dropout(self.output_dropout)(x, train=train)


class Encoder(nn.Module):
  """Blocks over non-padding positions, each attending to all of them or, if causal, to the past."""
  num_layers: int
  block: dict
  causal: bool = False
  final_norm: bool = False

  @nn.compact
  def __call__(self, x, keep, *, train):
    """Returns ([B, T, W], {"block_i": [B, T, W]}).

    Args:
      x: [B, T, W].
      keep: bool [B, T], False at padding.
      train: whether dropout is on.
    """
    mask = keep[:, None, None, :]  # [B, 1, 1, T]
    if self.causal:
      mask = mask & jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    out = {}
    for index in range(self.num_layers):  # A python loop keeps block_i addressable by name.
      x = Block(**self.block, name=f"block_{index}")(x, mask, train=train)
      out[f"block_{index}"] = x
    if self.final_norm:
      x = nn.LayerNorm(epsilon=1e-6, dtype=x.dtype, name="final_norm")(x)
    return x, out


class SequenceTransformer(nn.Module):
  """Scores of every item at (selected) positions of left-padded sequences.

  Parameters live under embed/, encoder/block_i/ and head/: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  item_width: int = 128
  user_width: int = 32  # 0: no user embedding
  num_layers: int = 6
  heads: int = 4
  hidden: int = 512  # width inside the feed-forward part
  max_len: int = 100
  dropout: float = 0.1
  hidden_dropout: bool = True  # also inside the feed-forward part
  output_dropout: bool = True  # also after every block, as the code the survey built on
  act: str = "gelu_tanh"
  norm: str = "pre"
  final_norm: bool = False
  embed_norm: bool = False
  scale_items: bool = False  # item vectors times sqrt(item_width) where they are read
  segments: int = 0
  extra_tokens: int = 0
  output: str = "untied"  # untied, tied (bare dot product) or tied_transform
  initializer: str = "torch"
  causal: bool = False
  dtype: str = "float32"
  layout: str = "auto"  # of activations: rows, or columns, which are faster on a CPU
  choices = {"act": tuple(layers.ACTIVATIONS), "norm": ("pre", "post", "query"),
             "output": layers.OUTPUTS, "initializer": layers.INITIALIZERS,
             "dtype": ("float32", "bfloat16"), "layout": ("auto", "rows", "columns")}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               segments=None, ages=None, train=False):
    """Returns (scores of ids 0..N, dict of intermediates).

    Args:
      items: int32 [B, T] left-padded ids; 0 padding, N + 1 MASK.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 2 + extra_tokens, slots]} attribute ids of every item id.
      positions: int32 [S, C], where to score: flat positions in each of S equal runs of rows. They
        ascend; what follows the last one is 0 and is scored anyhow. None scores all positions.
      candidates: tuple of int32 [S, C or 1, K], ids to score there; None scores all.
      readout: a function of `catalog.Scores` [S, C], whose answer comes back instead.
      segments: optional int32 [B, T] token types.
      ages: see `SequenceEmbed`.
      train: whether dropout is on.

    Scores have shape [S, C, N + 1], or [B, T, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, C, K].
    """
    x, table, out = self._encode(items, users, tables, positions, train=train, segments=segments,
                                 ages=ages)
    return self._score(x, table, candidates, readout), out

  def _encode(self, items, users, tables, positions, *, train, **kinds):
    """Returns ([S, C, W] or, without `positions`, [B, T, W]; the item table; intermediates)."""
    common = dict(initializer=self.initializer, dtype=jnp.dtype(self.dtype))
    embed = SequenceEmbed(
      num_items=self.num_items, num_users=self.num_users, max_len=self.max_len,
      item_width=self.item_width, user_width=self.user_width, fields=self.fields,
      extra_tokens=self.extra_tokens, segments=self.segments, norm=self.embed_norm,
      dropout=self.dropout, scale_items=self.scale_items, **common, name="embed")
    block = dict(
      heads=self.heads, hidden=self.hidden, act=self.act, norm=self.norm, dropout=self.dropout,
      attention_dropout=self.dropout, hidden_dropout=self.dropout * self.hidden_dropout,
      output_dropout=self.dropout * self.output_dropout, **common)
    x = embed(items, users, tables, train=train, **kinds)
    out = {"embedded": x}
    encoder = Encoder(self.num_layers, block, causal=self.causal, final_norm=self.final_norm,
                      name="encoder")
    if positions is not None and self._in_columns() and not self.is_initializing():
      x = columns.encode(
        self.variables["params"]["encoder"], x, items > 0, positions, rng=self.make_rng("dropout")
        if train and self.dropout else None, settings=dict(
          num_layers=self.num_layers, causal=self.causal, final_norm=self.final_norm, block=block))
    else:
      x, out["encoder"] = encoder(x, items > 0, train=train)
      out["encoded"] = x
      if positions is not None:
        x = layers.select(x, positions)
    return x, embed.item.embedding, out

  def _score(self, x, table, candidates, readout):
    return layers.score_items(
      x, table, output=self.output, num_items=self.num_items, candidates=candidates,
      readout=readout, initializer=self.initializer, dtype=jnp.dtype(self.dtype))

  def _in_columns(self):
    return self.layout == "columns" or self.layout == "auto" and jax.default_backend() == "cpu"

  def check(self):
    """Raises UserError where sizes do not fit together."""
    width = self.item_width + self.user_width + sum(slots * wide
                                                    for *_, wide, slots in self.fields)
    if width % self.heads:
      raise errors.UserError(f"config.model: the width {width} (item, user and attributes "
                             f"together) does not split into {self.heads} heads")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    items = jnp.zeros((1, min(self.max_len, 2)), jnp.int32)
    return {"items": items, "users": jnp.zeros(1, jnp.int32)}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    names = layers.embed_rows(self.user_width, self.fields)
    if self.output == "untied":
      names.update({"head/scores/kernel": ("output", 1), "head/scores/bias": ("output", 0)})
    elif self.output == "tied_transform":
      names["head/bias"] = ("item", 0)
    return names

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode (survey, Section 4.3), or None for an unknown mode.

    "embedding" carries user and attribute tables with their positions, "model" all but the head.
    """
    names = ["user"] * bool(self.user_width) + [re.escape(field) for field, *_ in self.fields]
    return transfer_rules(mode, names)


def transfer_rules(mode, names):
  """Returns the rules of a mode whose "embedding" carries the tables `names` with positions."""
  tables = "|".join(f"{name}|{name}_pos" for name in names)
  return {
    "none": (),
    "embedding": ((rf"embed/({tables})/embedding", r"\g<0>"),) if names else (),
    "model": ((r"(embed|encoder)/.*", r"\g<0>"),),
  }.get(mode)
