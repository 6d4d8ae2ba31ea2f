"""Layers that several models share: initializers, dropout, row tables, heads.

Letters: B batch, T positions, W width, H heads, N items, S shards, C labeled positions a shard.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {
  "relu": nn.relu,
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "gelu_erf": functools.partial(nn.gelu, approximate=False),
}


def table_init(name):
  """Returns a table's initializer: "torch" N(0, 1), "bert" N(0, 0.02) cut at 2 sigma."""
  return {"torch": nn.initializers.normal(1.0),
          "bert": nn.initializers.truncated_normal(0.02)}[name]


def dense(features, *, initializer, name, fan_in, dtype):
  """Returns a Dense layer whose start follows `initializer`.

  "torch": kernel and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch.nn.Linear's default.
  "bert": kernel N(0, 0.02) cut at 2 sigma, bias 0 (Devlin et al. 2019).
  """
  if initializer == "torch":
    bound = 1 / math.sqrt(fan_in)
    uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)
    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name, dtype=dtype)
  return nn.Dense(features, kernel_init=table_init("bert"), name=name, dtype=dtype)


class Dropout(nn.Module):
  """Inverted dropout whose mask is a hash of (key, position).

  A counter hashed by two rounds of multiply-xorshift is fused into its use, costs no memory and is
  the same on any number of devices; the default generator costs several times more on a CPU.
  """
  rate: float

  @nn.compact
  def __call__(self, x, *, train):
    if not train or self.rate == 0.0:
      return x
    seeds = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
    counter = _linear_index(x.shape) * jnp.uint32(0x9E3779B1) + seeds[0]
    bits = _mix(_mix(counter) ^ seeds[1])
    keep = bits >= jnp.uint32(min(round(self.rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype)).astype(x.dtype)


class RowTable(nn.Module):
  """A table of vectors for ids 1..rows; id 0 (padding, unknown) gives zeros and owns no row."""
  rows: int
  width: int
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids):
    table = self.param("embedding", table_init(self.initializer), (self.rows, self.width))
    found = jnp.take(table, jnp.maximum(ids - 1, 0), axis=0).astype(self.dtype)
    return found * (ids > 0)[..., None].astype(self.dtype)


class LinearHead(nn.Module):
  """Scores of ids 0..N from a Dense layer of its own (an untied head)."""
  num_items: int
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    return dense(self.num_items + 1, initializer=self.initializer, fan_in=x.shape[-1],
                 name="scores", dtype=self.dtype)(x)


class TiedHead(nn.Module):
  """Scores of ids 0..N against the item table itself, after an optional Dense-GELU-norm.

  With `transform` and `bias` it is the head of Sun et al. 2019 (bias over the whole vocabulary).
  """
  num_items: int
  initializer: str
  dtype: jnp.dtype
  transform: bool = True
  bias: bool = True

  @nn.compact
  def __call__(self, x, table):
    if self.transform:
      x = dense(table.shape[1], initializer=self.initializer, fan_in=x.shape[-1], name="transform",
                dtype=self.dtype)(x)
      x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(ACTIVATIONS["gelu_erf"](x))
    scores = x @ table[:self.num_items + 1].T.astype(self.dtype)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros_init(), (table.shape[0],))
      scores = scores + bias[:self.num_items + 1].astype(self.dtype)
    return scores


def select(x, positions):
  """Returns the vectors at flat `positions` of every shard: [B, T, W], int32 [S, C] -> [S, C, W].

  The batch is cut into S runs of rows, one (or more) a device, so that nothing crosses devices.
  """
  shards = positions.shape[0]
  assert x.shape[0] % shards == 0, f"{x.shape[0]} rows do not split into {shards} shards"
  flat = x.reshape(shards, -1, x.shape[-1])
  return jnp.take_along_axis(flat, positions[..., None], axis=1)


def _linear_index(shape):
  index = jnp.zeros(shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(len(shape))):
    index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    stride = (stride * shape[axis]) % 2**32
  return index


def _mix(x):
  """Returns a bijection of uint32 that scatters neighboring inputs (xorshift-multiply)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
  return x ^ (x >> 15)
