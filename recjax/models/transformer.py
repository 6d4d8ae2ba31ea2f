"""The transformer over item sequences that BERT4Rec and SASRec share.

Letters: B batch, T positions, W width, H heads, N items, S shards, C labeled positions a shard.
Sequences are left-padded, so the last position is always the most recent one, and position tables
are aligned to the right: a batch of T columns uses the last T rows. Cutting columns that hold only
padding therefore changes nothing.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import blocks
from recjax.models import columns
from recjax.models import features as features_lib
from recjax.models import flash
from recjax.models import layers
from recjax.models import patches
from recjax.models import sequence_embed
from recjax.models import stream


class SequenceTransformer(nn.Module):
  """Scores of every item at (selected) positions of left-padded sequences.

  Parameters live under embed/, encoder/block_i/ and head/: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "concat"  # or "fusion": features go beside the items into the last blocks
  fusion_blocks: int = 2  # so many
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
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
  head_bias: float | None = None  # where biases of an untied head start; None: see `initializer`
  causal: bool = False
  labels: int = 0  # classes that are scored in place of items; 0: items
  patch: str = "none"
  patch_width: int = 0  # of an adapter, rank of LoRA, number of prefixes; 0: `patches.size`
  patch_scale: float = 1.0  # of LoRA, its a / r
  dtype: str = "float32"
  layout: str = "auto"  # of activations: rows, columns (faster on a CPU) or stream (on a GPU)
  attention_kernel: str = "auto"  # written_out, flash, or fused: no dropout on its weights
  remat: bool = False  # keep only the inputs of blocks for the backward pass
  splits_items = True
  choices = {"act": tuple(layers.ACTIVATIONS), "norm": ("pre", "post", "query"),
             "output": layers.OUTPUTS, "initializer": layers.INITIALIZERS,
             "patch": patches.TRANSFORMER,
             "aggregate": (*features_lib.AGGREGATES, features_lib.FUSION),
             "user_aggregate": features_lib.OF_USERS, "dtype": ("float32", "bfloat16"),
             "layout": ("auto", "rows", "columns", "stream"),
             "attention_kernel": ("auto", *blocks.KERNELS)}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               segments=None, ages=None, pool=False, room=None, train=False):
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
      ages: see `sequence_embed.SequenceEmbed`.
      pool: whether the vectors at a run's `positions` are added up and scored as one, C = 1.
      room: how many positions hold something, at most. Where it is given blocks compute these
        alone; see `streams`.
      train: whether dropout is on.

    Scores have shape [S, C, N + 1], or [B, T, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, C, K].
    """
    x, table, out = self._encode(items, users, tables, positions, train=train, room=room,
                                 segments=segments, ages=ages)
    if pool:
      x = x.sum(1, keepdims=True)
    return self._score(x, table, candidates, readout), out

  def _encode(self, items, users, tables, positions, *, train, room=None, **kinds):
    """Returns ([S, C, W] or, without `positions`, [B, T, W]; the item table; intermediates)."""
    common = dict(initializer=self.initializer, dtype=jnp.dtype(self.dtype))
    embed = sequence_embed.SequenceEmbed(
      num_items=self.num_items, num_users=self.num_users, max_len=self.max_len,
      item_width=self.item_width, user_width=self.user_width, fields=self.fields,
      extra_tokens=self.extra_tokens, segments=self.segments, norm=self.embed_norm,
      dropout=self.dropout, scale_items=self.scale_items, schema=self.features,
      aggregate=self.aggregate, item_dropout=self.item_dropout, user_schema=self.user_features,
      user_aggregate=self.user_aggregate, **common, name="embed")
    block = dict(
      heads=self.heads, hidden=self.hidden, act=self.act, norm=self.norm, dropout=self.dropout,
      attention_dropout=self.dropout, hidden_dropout=self.dropout * self.hidden_dropout,
      output_dropout=self.dropout * self.output_dropout,
      attention_kernel=self._kernel() if room is None else "flash", **common)
    vectors, table = embed.vectors(items, tables, whole=self.output != "untied", train=train)
    x = embed(items, users, tables, vectors=vectors, train=train, **kinds)
    out = {"embedded": x}
    patch = patches.Patch(
      self.patch, patches.size(self.patch, self.patch_width, x.shape[-1]), self.patch_scale)
    encoder = blocks.Encoder(
      self.num_layers, block, causal=self.causal, final_norm=self.final_norm, patch=patch,
      remat=self.remat, fused=self.fusion_blocks, name="encoder")
    if positions is not None and self._in_columns() and not self.is_initializing():
      x = columns.encode(
        patches.merge(self.variables["params"]["encoder"], self.patch_scale), x, items > 0,
        positions, rng=self.make_rng("dropout") if train and self.dropout else None, settings=dict(
          num_layers=self.num_layers, causal=self.causal, final_norm=self.final_norm,
          remat=self.remat, block=block))
    elif room is not None:
      kept = stream.Stream(items > 0, room)
      # Where labels are no fewer, all positions are computed as quickly.
      pick = functools.partial(kept.select, positions=positions) if positions.size < room else None
      x, out["encoder"] = encoder(kept.take(x), kept.groups, pick=pick, train=train)
      x = x if pick else kept.select(x, positions)
    else:
      entities = embed.entities(items, tables) if self.aggregate == features_lib.FUSION else None
      x, out["encoder"] = encoder(x, items > 0, entities=entities, train=train)
      out["encoded"] = x
      if positions is not None:
        x = layers.select_labeled(x, positions)
    return x, table, out

  def _score(self, x, table, candidates, readout):
    return layers.score_items(
      x, table, output=self.output, num_items=self.num_items, labels=self.labels,
      bias=self.head_bias, candidates=candidates, readout=readout, initializer=self.initializer,
      dtype=jnp.dtype(self.dtype))

  @property
  def streams(self):
    """Returns whether steps of training are to say how much `room` they need."""
    if self.layout == "auto":
      return jax.default_backend() == "gpu" and self._cannot_stream() is None
    return self.layout == "stream"

  def _cannot_stream(self):
    """Returns why blocks cannot compute sequences behind each other, or None."""
    if self.aggregate == features_lib.FUSION:
      return f"aggregate={self.aggregate} is not there in a stream"
    if self.attention_kernel not in ("auto", "flash"):
      return f"attention_kernel={self.attention_kernel} is not there in a stream"
    why = self._no_flash()
    return why and f"attention in a stream is not there: {why}"

  def _kernel(self):
    """Returns how rows attend."""
    if self.attention_kernel != "auto":
      return self.attention_kernel
    there = jax.default_backend() == "gpu" and self._no_flash() is None
    return "flash" if there else "written_out"

  def _no_flash(self):
    """Returns why there is no attention in one kernel, or None."""
    return flash.missing(self._width() // self.heads)

  def _width(self):
    """Returns W."""
    return (features_lib.width(self.item_width, self.features, self.aggregate) + self.user_width
            + sum(slots * wide for *_, wide, slots in self.fields))

  def _in_columns(self):
    return self.layout == "columns" or (
      self.layout == "auto" and not self._wants_rows() and jax.default_backend() == "cpu")

  def _wants_rows(self):
    """Returns the field and value that columns have not, or None."""
    if self.patch in patches.ROWS_ONLY:
      return f"patch={self.patch}"
    if self.aggregate == features_lib.FUSION:
      return f"aggregate={self.aggregate}"
    kernel = self.attention_kernel
    return None if kernel in ("auto", "written_out") else f"attention_kernel={kernel}"

  def check(self):
    """Raises UserError where sizes do not fit together."""
    width = self._width()
    features_lib.check(self)
    features_lib.check_users(self, self.user_width)
    if width % self.heads:
      raise errors.UserError(f"config.model: the width {width} (item, user and attributes "
                             f"together) does not split into {self.heads} heads")
    if self.aggregate == features_lib.FUSION:
      self._check_fusion()
    if self.layout == "columns" and self._wants_rows():
      raise errors.UserError(f"config.model: {self._wants_rows()} is not there in columns; set "
                             "layout=rows or auto")
    if self.layout == "stream" and (why := self._cannot_stream()):
      raise errors.UserError(f"config.model: {why}; set layout=rows or auto")
    if (self.attention_kernel == "fused" and self.dtype != "bfloat16"
        and jax.default_backend() == "gpu"):
      raise errors.UserError("config.model: attention_kernel=fused is cuDNN's on a GPU, which "
                             "wants dtype=bfloat16")
    if self.attention_kernel == "flash" and (why := self._no_flash()):
      raise errors.UserError(f"config.model: attention_kernel=flash is not there: {why}")

  def _check_fusion(self):
    if not self.features or self.item_dropout or self.norm == "query":
      raise errors.UserError("config.model: aggregate=fusion wants model.features, norm=pre or "
                             "post, and no item_dropout: items keep vectors of their own")
    if not 0 < self.fusion_blocks <= self.num_layers or self.item_width % self.heads:
      raise errors.UserError("config.model: aggregate=fusion wants fusion_blocks from 1 to "
                             f"num_layers={self.num_layers}, and an item_width that splits into "
                             f"{self.heads} heads")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    items = jnp.zeros((1, min(self.max_len, 2)), jnp.int32)
    return {"items": items, "users": jnp.zeros(1, jnp.int32)}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    names = (layers.embed_rows(self.user_width, self.fields)
             | features_lib.known_rows(self))
    if self.labels or self.output == "untied":
      scored = "label" if self.labels else "output"
      names.update({"head/scores/kernel": (scored, 1), "head/scores/bias": (scored, 0)})
    elif self.output == "tied_transform":
      names["head/bias"] = ("item", 0)
    return names

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode (survey, Section 4.3), or None for an unknown mode.

    "embedding" carries user and attribute tables with their positions, "model" and "patch" all but
    the head and the patches.
    """
    names = ["user"] * bool(self.user_width) + [re.escape(field) for field, *_ in self.fields]
    if mode in ("model", "patch"):
      return patches.transfer_rules(self.patch)
    return transfer_rules(mode, names, features_lib.known_leaves(self))

  def optim_rules(self, mode):
    """Returns rules of `recjax.optim` that a transfer mode adds: "patch" freezes the backbone.

    What scores is the task's own and trains: the head, or the item table where that is tied.
    """
    if mode != "patch":
      return ()
    scores = {"untied": patches.HEAD, "tied": "embed/item/embedding",
              "tied_transform": f"embed/item/embedding|{patches.HEAD}"}
    return patches.optim_rules(self.patch, scores["untied" if self.labels else self.output])


def transfer_rules(mode, names, provided=()):
  """Returns the rules of a mode whose "embedding" carries the tables `names` with positions.

  Args:
    mode: none, embedding, model; of others None comes back.
    names: of tables.
    provided: a regex each of leaves that "embedding" carries as well.
  """
  tables = "|".join(f"{name}|{name}_pos" for name in names)
  carried = [rf"embed/({tables})/embedding"] * bool(names) + list(provided)
  return {
    "none": (),
    "embedding": tuple((leaf, r"\g<0>") for leaf in carried),
    "model": ((r"(embed|encoder)/.*", r"\g<0>"),),
  }.get(mode)
