"""The layers of a transformer and their stack, in rows: activations are [B, T, W].

Letters: B batch, T positions, W width, H heads, d width of a head.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax.models import flash
from recjax.models import layers
from recjax.models import patches

KERNELS = ("written_out", "flash", "fused")


class Attention(nn.Module):
  """Multi-head scaled dot-product attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017).

  With a `source`, keys and values come from there and nothing is projected afterwards, as in the
  released code of Kang & McAuley 2018. The kernel "flash" computes what "written_out" does, see
  `recjax.models.flash`, which also takes sequences behind each other; "fused" is cuDNN's on a GPU
  and XLA's elsewhere, without dropout on the weights.
  """
  heads: int
  dropout: float
  initializer: str
  dtype: jnp.dtype
  causal: bool = False
  patch: patches.Patch = patches.NONE
  kernel: str = "written_out"

  @nn.compact
  def __call__(self, x, keep, *, source=None, pick=None, train):
    """Returns [B, T, W] of x [B, T, W], or what `pick` makes of such.

    Args:
      x: [B, T, W].
      keep: bool [B, T], False at what nobody reads; or int32, the groups of `flash.attention`.
      source: optional [B, T, W].
      pick: optional function, which positions are to be projected; all attend.
      train: whether dropout is on.
    """
    batch, length, width = x.shape
    assert width % self.heads == 0, f"width {width} does not split into {self.heads} heads"
    project = functools.partial(
      patches.dense, patch=self.patch, initializer=self.initializer, dtype=self.dtype)
    if source is None:
      qkv = project(x, width, name="qkv", parts=3)
    else:
      qkv = jnp.concatenate([project(x, width, name="query"), project(source, width, name="key"),
                             project(source, width, name="value")], axis=-1)
    qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
    query, key, value = jnp.moveaxis(qkv, 2, 0)  # [B, T, H, d]
    dropout = layers.Dropout(self.dropout)
    if self.kernel == "flash":
      drops = train and self.dropout > 0
      seeds = dropout.seeds() if drops else jnp.zeros(2, jnp.uint32)
      mixed = flash.attention(qkv, keep.astype(jnp.int32), seeds, self.causal,
                              self.dropout if drops else 0.0,
                              None if keep.dtype == bool else flash.PERIOD)
    elif self.kernel == "fused":
      mixed = jax.nn.dot_product_attention(
        query, key, value, mask=jnp.broadcast_to(self._mask(keep), (batch, 1, length, length)),
        implementation="cudnn" if jax.default_backend() == "gpu" else "xla")
    else:
      scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(width // self.heads)
      scores = jnp.where(self._mask(keep), scores.astype(jnp.float32), layers.MASKED_SCORE)
      weights = dropout(nn.softmax(scores).astype(self.dtype), train=train)
      mixed = jnp.einsum("bhts,bshd->bthd", weights, value)
    if self.patch.kind == "prefix":
      mixed = mixed + patches.Prefix(self.patch.size, self.dtype, name="patch_prefix")(query)
    mixed = mixed.reshape(batch, length, width)
    mixed = pick(mixed) if pick else mixed
    return project(mixed, width, name="out") if source is None else mixed

  def _mask(self, keep):
    """Returns bool [B, 1, 1 or T, T], which positions (last) are read by which."""
    mask = keep[:, None, None, :]
    return mask & jnp.tril(jnp.ones((keep.shape[1],) * 2, bool)) if self.causal else mask


class FeedForward(nn.Module):
  """W -> hidden -> W with one nonlinearity."""
  hidden: int
  act: str
  dropout: float
  initializer: str
  dtype: jnp.dtype
  patch: patches.Patch = patches.NONE

  @nn.compact
  def __call__(self, x, *, train):
    project = functools.partial(
      patches.dense, patch=self.patch, initializer=self.initializer, dtype=self.dtype)
    hidden = layers.Dropout(self.dropout, self.act)(project(x, self.hidden, name="up"), train=train)
    return project(hidden, x.shape[-1], name="down")


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
  patch: patches.Patch = patches.NONE
  attention_kernel: str = "written_out"  # one of `KERNELS`
  causal: bool = False

  @nn.compact
  def __call__(self, x, keep, *, pick=None, train):
    """Returns [B, T, W] of x [B, T, W], `keep` [B, T] and `pick`, see `Attention`."""
    x = self._attend("attention", x, keep, train, pick)
    feed = lambda y: self._adapted("mlp", FeedForward(
      self.hidden, self.act, self.hidden_dropout, **self._start(), name="mlp")(y, train=train))
    x = self._add("mlp", x, feed, train)
    return layers.Dropout(self.output_dropout)(x, train=train)

  def _attend(self, name, x, keep, train, pick=None):
    """Returns x and what its positions read of each other; of those that `pick` takes alone."""
    attention = Attention(self.heads, self.attention_dropout, kernel=self.attention_kernel,
                          causal=self.causal, name=name, **self._start())
    attend = lambda y, source=None: self._adapted(
      name, attention(y, keep, source=source, pick=pick, train=train))
    return self._add(name, x, attend, train, sourced=True, pick=pick)

  def _add(self, name, x, part, train, *, sourced=False, pick=None):
    """Returns x and what `part` makes of it; if `sourced` that also reads x as it came.

    Where `part` returns what `pick` takes, that of x is returned as well.
    """
    norm, drop, pick = self._norm(name), layers.Dropout(self.dropout), pick or (lambda x: x)
    if self.norm == "pre":
      return pick(x) + drop(part(norm(x)), train=train)
    if self.norm == "post":
      return norm(pick(x) + drop(part(x), train=train))
    y = norm(x)
    return pick(y) + (part(y, x) if sourced else drop(part(y), train=train))

  def _start(self):
    return dict(initializer=self.initializer, dtype=self.dtype, patch=self.patch)

  def _norm(self, name):
    # "pre" norms are read by products alone; what others give is part of the sum.
    dtype = self.dtype if self.norm == "pre" else jnp.float32
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=f"{name}_norm")

  def _adapted(self, name, y):
    if self.patch.kind != "adapter":
      return y
    return y + patches.Bottleneck(self.patch.size, self.dtype, name=f"patch_{name}")(y)


class FusionBlock(Block):
  """A layer that fuses a sequence with what is known of its positions (ERNIE, Zhang et al. 2019).

  Both streams attend, each among itself, and meet inside the feed-forward part, out of which each
  goes on: h = act(W x + W_e e + b), x' = W_x h + b_x, e' = W_k h + b_k (Eq. 4). Of a position of
  which nothing is known, h = act(W x + b), and nothing attends to its e (Eq. 5). Norms, residual
  sums and dropout are those of `Block`, "pre" or "post".
  """
  last: bool = False  # nobody asks for e', which then has no parameters

  @nn.compact
  def __call__(self, x, keep, entities, known, *, train):
    """Returns (x' [B, T, W], e' [B, T, E] or None).

    Args:
      x: [B, T, W].
      keep: bool [B, T], False at padding.
      entities: [B, T, E], what is known of the positions.
      known: bool [B, T], of which of them something is.
      train: whether dropout is on.
    """
    start = self._start()
    x = self._attend("attention", x, keep, train)
    entities = self._attend("entity_attention", entities, keep & known, train)
    streams = {"mlp": x} if self.last else {"mlp": x, "entity_mlp": entities}
    norms = {name: self._norm(name) for name in ("mlp", "entity_mlp")}
    read = lambda name, y: norms[name](y) if self.norm == "pre" else y
    said = patches.dense(read("entity_mlp", entities), self.hidden, name="entity_up", **start)
    hidden = (patches.dense(read("mlp", x), self.hidden, name="up", **start)
              + jnp.where(known[..., None], said, 0))
    hidden = layers.Dropout(self.hidden_dropout, self.act)(hidden, train=train)
    out = {}
    for name, stream in streams.items():
      y = self._adapted(name, patches.dense(
        hidden, stream.shape[-1], name=name.replace("mlp", "down"), **start))
      y = stream + layers.Dropout(self.dropout)(y, train=train)
      y = y if self.norm == "pre" else norms[name](y)
      out[name] = layers.Dropout(self.output_dropout)(y, train=train)
    return out["mlp"], out.get("entity_mlp")


class Encoder(nn.Module):
  """Blocks over non-padding positions, each attending to all of them or, if causal, to the past.

  What they add up, from the first to the last, is float32, whatever products read: added up in
  bfloat16, a model of 8 layers is more than a step behind after 40 (launch/bench/README.md).
  """
  num_layers: int
  block: dict
  causal: bool = False
  final_norm: bool = False
  patch: patches.Patch = patches.NONE
  remat: bool = False  # keep the input of a block alone, and compute the block again backward
  fused: int = 0  # so many of the blocks, the last, are `FusionBlock`s where there are entities

  @nn.compact
  def __call__(self, x, keep, *, entities=None, pick=None, train):
    """Returns (float32 [B, T, W], {"block_i": of each block}); the last is what `pick` makes of it.

    Args:
      x: [B, T, W].
      keep: bool [B, T], False at padding; or int32, see `Attention`.
      entities: optional ([B, T, E], bool [B, T]), see `FusionBlock`.
      pick: optional function, which positions are asked for; without entities. The last block
        projects these alone.
      train: whether dropout is on.
    """
    out = {}
    vectors, known = entities or (None, None)
    x, vectors = jax.tree.map(lambda value: value.astype(jnp.float32), (x, vectors))
    plain = self.num_layers - (self.fused if entities else 0)
    for index in range(self.num_layers):  # A python loop keeps block_i addressable by name.
      start = dict(self.block, causal=self.causal, patch=self.patch, name=f"block_{index}")
      last = index == self.num_layers - 1
      kinds = {"pick": pick} if pick and last else {}
      apply = lambda block, *inputs, kinds=kinds: block(*inputs, train=train, **kinds)
      if self.remat:
        apply = nn.remat(apply)
      if index < plain:
        x = apply(Block(**start), x, keep)
      else:
        x, vectors = apply(FusionBlock(**start, last=last), x, keep, vectors, known)
      out[f"block_{index}"] = x
    if self.final_norm:
      x = nn.LayerNorm(epsilon=1e-6, dtype=x.dtype, name="final_norm")(x)
    return x, out
