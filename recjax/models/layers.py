"""Layers that several models share: initializers, dropout, row tables, heads.

Letters: B batch, T positions, W width, H heads, N items, S shards, C labeled positions a shard, K
candidates.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import catalog
from recjax import collective
from recjax import hashing
from recjax import loops
from recjax.models import rows as rows_lib

GELU = math.sqrt(2 / math.pi)
GELU_CUBED = GELU * 0.044715


@jax.custom_jvp
def gelu_tanh(x):
  """Returns x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016)."""
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + _tanh(wide * (GELU + GELU_CUBED * (wide * wide))))).astype(x.dtype)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals, tangents):
  # By hand: shorter than what differentiation makes of it, which counts where it is all of a loop.
  (x,), (change,) = primals, tangents
  wide = x.astype(jnp.float32)
  square = wide * wide
  tanh = _tanh(wide * (GELU + GELU_CUBED * square))
  slope = 0.5 * (1 + tanh + wide * (1 - tanh * tanh) * (GELU + 3 * GELU_CUBED * square))
  return gelu_tanh(x), (slope * change.astype(jnp.float32)).astype(x.dtype)


def _tanh(x):
  """Returns tanh(x) of float32, whose sum with 1 is exact up to rounding."""
  if jax.default_backend() != "gpu":
    return jnp.tanh(x)
  # XLA's own is a quotient of polynomials there, and takes longer than the memory does.
  root = jax.lax.rsqrt(1 + jnp.exp(-2 * x))
  return 2 * root * root - 1


ACTIVATIONS = {
  "relu": nn.relu,
  "gelu_tanh": gelu_tanh,
  "gelu_erf": functools.partial(nn.gelu, approximate=False),
}
INITIALIZERS = ("torch", "bert", "glorot")
OUTPUTS = ("untied", "tied", "tied_transform")
MASKED_SCORE = -1e9  # finite, so that a row of padding alone still has a finite softmax


def table_init(name):
  """Returns a table's initializer, by whose code starts it so.

  "torch" N(0, 1), "bert" N(0, 0.02) cut at 2 sigma, "caser" N(0, 1 / width), "glorot" U(-b, b) with
  b^2 = 6 / (rows + width).
  """
  narrow = lambda key, shape, dtype=jnp.float32: jax.random.normal(key, shape, dtype) / shape[-1]
  return {"torch": nn.initializers.normal(1.0), "bert": nn.initializers.truncated_normal(0.02),
          "glorot": nn.initializers.glorot_uniform(), "caser": narrow}[name]


def dense(features, *, initializer, name, fan_in, dtype, bias=None):
  """Returns a Dense layer whose start follows `initializer`, or whose biases all start at `bias`.

  "torch": kernel and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch.nn.Linear's default.
  "bert": kernel N(0, 0.02) cut at 2 sigma, bias 0 (Devlin et al. 2019).
  "glorot": kernel U(-b, b), b^2 = 6 / (fan_in + features), bias 0 (Glorot & Bengio 2010).
  "peterrec": kernel N(0, 0.01), bias 0.1 (the softmax of Yuan et al. 2020).
  """
  if initializer == "peterrec":
    kernel, start = nn.initializers.normal(0.01), nn.initializers.constant(0.1)
  elif initializer == "torch":
    bound = 1 / math.sqrt(fan_in)
    kernel = start = lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound)
  else:
    kernel, start = table_init(initializer), nn.initializers.zeros_init()
  if bias is not None:
    start = nn.initializers.constant(bias)
  return nn.Dense(features, kernel_init=kernel, bias_init=start, name=name, dtype=dtype)


class Dropout(nn.Module):
  """Inverted dropout after an optional nonlinearity; see `draws` for what is dropped.

  It is fused into its use and costs no memory; the default generator costs several times more on a
  CPU.
  """
  rate: float
  act: str | None = None  # of ACTIVATIONS

  @nn.compact
  def __call__(self, x, *, train):
    act = ACTIVATIONS[self.act] if self.act else lambda x: x
    if not train or self.rate == 0.0:
      return act(x)

    def drop(x, drawn):
      return jnp.where(kept(x.shape, drawn, self.rate), act(x) / (1 - self.rate),
                       jnp.zeros((), x.dtype)).astype(x.dtype)
    if self.act and jax.default_backend() != "cpu":
      drop = jax.checkpoint(drop)  # Computing it twice is quicker than keeping its derivative.
    return drop(x, draws(self.seeds(), x.shape))

  @nn.nowrap
  def seeds(self):
    """Returns uint32 [2], what `draws` is told."""
    return jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)


class Draws(NamedTuple):
  """What the rows and columns of an array draw, odd numbers uint32 [..., R] and [..., C].

  The product of a row's and a column's, modulo 2^32, is large or small enough for the place where
  they meet to be kept or dropped: multiply-shift hashing (Dietzfelbinger et al. 1997) whose factor
  is the row's own. So a place costs one multiplication, and is the same on any number of devices.
  """
  rows: jax.Array
  columns: jax.Array


def draws(seeds, shape):
  """Returns the `Draws` of an array, whose last axis are columns and whose others are its rows.

  Args:
    seeds: uint32 [..., 2].
    shape: of the array; likewise of those that have fewer rows or columns.
  """
  def draw(seeds):
    one, other = seeds[..., 0, None], seeds[..., 1, None]
    return Draws(odd_hash(jnp.arange(math.prod(shape[:-1])), one, other),
                 odd_hash(jnp.arange(shape[-1]), other, one))
  found = loops.apart(draw, seeds)
  # Else each place would draw for itself.
  return found if jax.default_backend() == "cpu" else jax.lax.optimization_barrier(found)


def odd_hash(ids, one, other):
  """Returns odd uint32 like `ids`, a hash of each with two seeds."""
  return hashing.mix(ids.astype(jnp.uint32) * (one | 1) + other) | 1


def kept(shape, drawn, rate):
  """Returns bool `shape`, False with probability `rate`, by `Draws` [R], [C] of as many or more."""
  rows = drawn.rows[:math.prod(shape[:-1])].reshape(*shape[:-1], 1)
  return kept_where(rows, drawn.columns[:shape[-1]], rate)


def kept_where(rows, columns, rate):
  """Returns bool, False with probability `rate`: what is kept where odd draws meet."""
  least = min(round(rate * 2**32), 2**32 - 1) - 2**31  # signed: some CPUs compare nothing else
  return (rows * columns).astype(jnp.int32) >= least


class ItemTable(nn.Module):
  """A table of vectors for ids 0..rows-1, of which a device may hold a share (see `held`)."""
  rows: int
  width: int
  initializer: str
  dtype: jnp.dtype
  often: tuple = ()  # see `rows.take`

  def setup(self):
    self.embedding = held(self, "embedding", table_init(self.initializer), (self.rows, self.width))

  def __call__(self, ids):
    if len(self.embedding) == self.rows:
      return rows_lib.take(self.embedding, ids, self.dtype, self.often)
    return collective.look_up(self.embedding.astype(self.dtype), ids)


def held(module, name, init, shape):
  """Returns a parameter of `module`, or this device's share of its rows; see recjax/collective.py.

  Flax itself insists on the shape that a parameter starts with.
  """
  if module.has_variable("params", name):
    return module.get_variable("params", name)
  return module.param(name, init, shape, jnp.float32)


class RowTable(nn.Module):
  """A table of vectors for ids 1..rows; id 0 (padding, unknown) gives zeros and owns no row."""
  rows: int
  width: int
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids):
    table = self.param("embedding", table_init(self.initializer), (self.rows, self.width))
    found = rows_lib.take(table, jnp.maximum(ids - 1, 0), self.dtype, (0,))
    return found * (ids > 0)[..., None].astype(self.dtype)


class Convolution(nn.Module):
  """`nn.Conv` over positions, W -> W, as one product with the shifted inputs side by side.

  Position t reads k inputs, d apart, from t - before on; outside of what is given all is zero. In a
  loop, as steps are, XLA's own takes 3.7 s on a CPU for the gradient of three of them over 1,050
  texts of 64 words, and this 0.1 s.
  """
  kernel: int  # k
  before: int
  kernel_init: nn.initializers.Initializer
  dtype: jnp.dtype
  dilation: int = 1  # d

  @nn.compact
  def __call__(self, x):
    """Returns [B, T, W] of x [B, T, W]."""
    length, width = x.shape[1:]
    kernel = self.param("kernel", self.kernel_init, (self.kernel, width, width))
    bias = self.param("bias", nn.initializers.zeros_init(), (width,))
    reach = (self.kernel - 1) * self.dilation
    x = jnp.pad(x, ((0, 0), (self.before, reach - self.before), (0, 0)))
    shifted = jnp.concatenate([x[:, tap * self.dilation:][:, :length]
                               for tap in range(self.kernel)], axis=-1)
    return shifted @ kernel.reshape(-1, width).astype(self.dtype) + bias.astype(self.dtype)


class LinearHead(nn.Module):
  """Scores of ids 0..N from a Dense layer of its own (an untied head)."""
  num_items: int
  initializer: str
  dtype: jnp.dtype
  bias: float | None = None  # where its biases start, if not as `initializer` says

  @nn.compact
  def __call__(self, x, candidates=None, readout=None):
    """Returns [..., N + 1], or what `catalog.read` says."""
    layer = dense(self.num_items + 1, initializer=self.initializer, fan_in=x.shape[-1],
                  name="scores", dtype=self.dtype, bias=self.bias)
    if self.is_initializing():
      return layer(x)
    weights = layer.variables["params"]
    scores = catalog.Scores(x, weights["kernel"], weights["bias"], axis=1, count=self.num_items + 1,
                            operand=self.dtype)
    if candidates is None and readout is None and not scores.shared:
      return layer(x)
    return catalog.read(scores, candidates, readout)


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
  def __call__(self, x, table, candidates=None, readout=None):
    """Returns [..., N + 1], or what `catalog.read` says."""
    if self.transform:
      x = dense(table.shape[1], initializer=self.initializer, fan_in=x.shape[-1], name="transform",
                dtype=self.dtype)(x)
      x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(ACTIVATIONS["gelu_erf"](x))
    bias = None
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros_init(), (table.shape[0],))
    scores = catalog.Scores(x, table, bias, count=self.num_items + 1, operand=self.dtype)
    return catalog.read(scores, candidates, readout)


class MLP(nn.Module):
  """Hidden layers `layer_i` with ReLU and dropout, and the outputs of a last layer, `scores`."""
  widths: tuple
  outputs: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, *, train):
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform(),
                              dtype=self.dtype)
    for index, width in enumerate(self.widths):
      x = Dropout(self.dropout)(nn.relu(dense(width, name=f"layer_{index}")(x)), train=train)
    return dense(self.outputs, name="scores")(x)


class Heads(nn.Module):
  """An `MLP` for each question, which are named in `responses`: (name, classes)."""
  responses: tuple
  widths: tuple
  dropout: float
  dtype: jnp.dtype

  def setup(self):
    for name, classes in self.responses:
      setattr(self, name, MLP(self.widths, max(classes, 1), self.dropout, self.dtype))

  def __call__(self, name, x, *, train):
    """Returns [..., classes] of a preference, or [...] of a click (0 classes)."""
    scores = getattr(self, name)(x, train=train)
    return scores if dict(self.responses)[name] else scores[..., 0]


def score_items(x, table, *, output, num_items, initializer, dtype, labels=0, bias=None,
                candidates=None, readout=None):
  """Returns scores of ids 0..N, or what `catalog.read` says, from a head named "head".

  Inside a model's compact method only: the head is a submodule of the caller.

  Args:
    x: [..., W].
    table: [rows, W], the item table of a tied head.
    output: of OUTPUTS; "tied" is the bare dot product.
    num_items: N.
    initializer: of INITIALIZERS.
    dtype: what is computed in.
    labels: L, if classes 1..L are scored in place of items, by an untied head.
    bias: where the biases of an untied head of items start, if not as `initializer` says.
    candidates: see `catalog.read`.
    readout: likewise.
  """
  if labels:
    output, num_items, bias = "untied", labels, None
  common = dict(initializer=initializer, dtype=dtype, name="head")
  if output == "untied":
    return LinearHead(num_items, **common, bias=bias)(x, candidates, readout)
  full = output == "tied_transform"
  return TiedHead(num_items, **common, transform=full, bias=full)(x, table, candidates, readout)


def embed_rows(user_width, fields):
  """Returns the `row_tables` of embed/: items, users (width 0: none) and attributes."""
  names = {"embed/item/embedding": ("item", 0)}
  if user_width:
    names["embed/user/embedding"] = ("user", 0)
  return names | {f"embed/{field}/embedding": (field, 0) for field, *_ in fields}


def select(x, positions):
  """Returns the vectors at flat `positions` of every shard: [B, T, W], int32 [S, C] -> [S, C, W].

  The batch is cut into S runs of rows, one (or more) a device, so that nothing crosses devices.
  """
  return jnp.take_along_axis(_runs(x, positions), positions[..., None], axis=1)


def select_labeled(x, positions):
  """Returns what `select` does of positions that ascend; behind the last both are 0.

  As nothing is asked for twice, a GPU needs no atomic additions for the gradient.
  """
  flat = _runs(x, positions)
  outside = flat.shape[1] + jnp.arange(positions.shape[1])
  positions = jnp.where(unused(positions), outside, positions)
  return flat.at[jnp.arange(len(positions))[:, None], positions].get(
    mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True)


def unused(positions):
  """Returns bool [S, C]: which of ascending `positions` are behind the last, where all are 0."""
  return (positions == 0) & (jnp.arange(positions.shape[1]) > 0)


def _runs(x, positions):
  shards = positions.shape[0]
  assert x.shape[0] % shards == 0, f"{x.shape[0]} rows do not split into {shards} shards"
  return x.reshape(shards, -1, x.shape[-1])
