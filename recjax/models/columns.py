"""The encoder of `blocks` as a CPU computes it fastest: one column a position.

The same parameters and the same mathematics as `blocks.Encoder`, for training and prediction.
What differs, and what each is worth on two cores is in launch/bench/README.md:

- Activations are [W, columns]. All products of a step, backward too, then read their operands in
  the order in which they lie in memory; only weights have to be transposed.
- bfloat16 is what products read. They add up in float32, and everything else stays float32.
- Backward passes are written by hand where the automatic one keeps or recomputes too much.
- The last block asks, projects and feeds forward only at the positions that are scored. The others
  are read as keys and values.

Letters: B rows, T positions, W width, H heads, d width of a head, N columns, n = H * B. S runs of
rows with C scored positions each, as `layers.select` has them.
"""

import functools
import math

import jax
import jax.numpy as jnp

from recjax.models import layers

SITES = 5  # of dropout in a block
ELSEWHERE = ("dtype", "initializer", "attention_kernel")  # what a block has, and columns have not


def encode(params, x, keep, positions, *, settings, rng=None):
  """Returns what the encoder makes of the scored positions: float32 [S, C, W].

  Args:
    params: of `blocks.Encoder`.
    x: [B, T, W], what the positions hold.
    keep: bool [B, T], False at padding.
    positions: int32 [S, C], flat in each of S equal runs of rows. They ascend; places after the
      last one hold 0 and get anything finite.
    settings: dict of num_layers, causal, final_norm, remat, and `block`, what `blocks.Block`
      takes.
    rng: key of dropout, None without.
  """
  block = settings["block"]
  operand = jnp.dtype(block["dtype"])
  rows, length, width = x.shape
  total, (runs, room) = settings["num_layers"], positions.shape
  scored = _Scored(positions, rows, length)
  narrow = room * 2 < rows // runs * length  # else restricting costs more than it saves
  x = _transposed(x.astype(jnp.float32).reshape(-1, width))
  for index in range(total):
    seeds = [None] * SITES if rng is None else jax.random.bits(
      jax.random.fold_in(rng, index), (SITES, 2), jnp.uint32)
    last = narrow and index == total - 1
    apply = functools.partial(_block, keep=keep, scored=scored if last else None, operand=operand,
                              causal=settings["causal"], **{k: v for k, v in block.items()
                                                            if k not in ELSEWHERE})
    if settings["remat"]:
      apply = jax.checkpoint(apply)
    x = apply(params[f"block_{index}"], x, seeds=seeds)
  if not narrow:
    x = scored.take(x)
  if settings["final_norm"]:
    x = _norm(params["final_norm"], x)
  return x.T.reshape(runs, room, width)


def _block(params, x, *, keep, scored, seeds, operand, causal, heads, hidden, act, norm, dropout,
           attention_dropout, hidden_dropout, output_dropout):
  """Returns `blocks.Block` of x [W, N], [W, N] or at the `scored` positions alone [W, S C]."""
  del hidden
  drop = lambda value, site, rate: _drop(value, seeds[site], rate)
  here = (lambda value: value) if scored is None else scored.take
  weights = params["attention"]
  project = lambda name, value: _dense(weights[name], value, operand)

  def attend(query, source):
    """Returns [W, ...]: `query` are columns that ask, `source` [W, N] all that may be asked."""
    if "qkv" in weights:
      kernel, bias = weights["qkv"]["kernel"], weights["qkv"]["bias"]
      part = lambda at: {"kernel": kernel[:, at], "bias": bias[at]}
      if scored is None:
        asks, keys, values = jnp.split(_dense(weights["qkv"], source, operand), 3)
      else:
        width = x.shape[0]
        asks = _dense(part(slice(0, width)), query, operand)
        keys, values = jnp.split(_dense(part(slice(width, None)), source, operand), 2)
    else:
      asks, keys, values = project("query", query), project("key", source), project("value", source)
    if scored is None:
      asked = jnp.arange(keep.shape[1])[None]
    else:
      asks, asked = scored.to_slots(asks), scored.places
    mask = keep[:, None]
    if causal:
      mask = mask & (jnp.arange(keep.shape[1]) <= asked[..., None])
    rows = keep.shape[0]
    split = lambda value: jnp.swapaxes(value.reshape(heads, -1, rows, value.shape[1] // rows), 1, 2)
    mixed = _attend(split(asks), split(keys), split(values), mask, seeds[0], attention_dropout,
                    operand)
    mixed = jnp.swapaxes(mixed, 1, 2).reshape(x.shape[0], -1)
    mixed = mixed if scored is None else scored.from_slots(mixed)
    return project("out", mixed) if "out" in weights else mixed

  def feed(y):
    hidden = _activate(_dense(params["mlp"]["up"], y, operand), seeds[1], act, hidden_dropout,
                       operand)
    return _dense(params["mlp"]["down"], hidden, operand)

  attention_norm = functools.partial(_norm, params["attention_norm"])
  mlp_norm = functools.partial(_norm, params["mlp_norm"])
  if norm == "pre":
    y, x = attention_norm(x), here(x)
    x = x + drop(attend(here(y), y), 2, dropout)
    x = x + drop(feed(mlp_norm(x)), 3, dropout)
  elif norm == "post":
    x = attention_norm(here(x) + drop(attend(here(x), x), 2, dropout))
    x = mlp_norm(x + drop(feed(x), 3, dropout))
  else:
    y = attention_norm(here(x))
    y = mlp_norm(y + attend(y, x))
    x = y + drop(feed(y), 3, dropout)
  return drop(x, 4, output_dropout)


class _Scored:
  """The scored positions, flat and as slots of their rows: at most min(T, C) in each."""

  def __init__(self, positions, rows, length):
    runs, room = positions.shape
    each = min(room, length)
    real = ((jnp.arange(room) == 0) | (positions > jnp.roll(positions, 1, axis=1))).reshape(-1)
    column = (positions + jnp.arange(runs)[:, None] * (rows // runs * length)).reshape(-1)
    owner, number = column // length, jnp.cumsum(real) - 1
    count = jnp.zeros(rows, jnp.int32).at[owner].add(real)
    slot = number - (jnp.cumsum(count) - count)[owner] + owner * each
    label = jnp.arange(column.size)
    inverse = lambda at, size: jnp.full(size, -1).at[jnp.where(real, at, size)].set(
      label, mode="drop")
    self._column, self._of_column = column, inverse(column, rows * length)
    self._slot, self._of_slot = jnp.where(real, slot, -1), inverse(slot, rows * each)
    self.places = (column[self._of_slot] % length).reshape(rows, each)  # t of every slot

  def take(self, x):
    """Returns the scored columns of x: [W, N] -> [W, S C]."""
    return _pick(x, self._column, self._of_column)

  def to_slots(self, x):
    """Returns [W, S C] as slots of their rows, 0 in those without: [W, B each]."""
    return _pick(x, self._of_slot, self._slot)

  def from_slots(self, x):
    """Returns [W, B each] as `take` orders them: [W, S C]."""
    return _pick(x, self._slot, self._of_slot)


@jax.custom_vjp
def _pick(x, at, back):
  """Returns x[:, at], 0 where `at` is -1; `back` is the inverse, so that no pass scatters."""
  del back
  return _in_memory(jnp.where(at >= 0, jnp.take(x, jnp.maximum(at, 0), axis=1), 0))


_pick.defvjp(lambda x, at, back: (_pick(x, at, back), (at, back)),
             lambda kept, change: (_pick(change, kept[1], kept[0]), None, None))


def _dense(weights, x, operand):
  """Returns kernel.T @ x + bias, [m, k] and [m, N] -> float32 [k, N]."""
  return _product(weights["kernel"], x, operand) + weights["bias"][:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(kernel, x, operand):
  return _dot(_transposed(kernel.astype(operand)), x.astype(operand))


def _product_forward(kernel, x, operand):
  kernel, x = kernel.astype(operand), x.astype(operand)
  return _dot(_transposed(kernel), x), (kernel, x)


def _product_backward(operand, kept, change):
  kernel, x = kept
  change = change.astype(operand)
  return _dot(x, change, contract=(1, 1)), _dot(kernel, change)


_product.defvjp(_product_forward, _product_backward)


def _norm(weights, x):
  """Returns the layer norm of every column."""
  x = x - x.mean(0)
  return (x * jax.lax.rsqrt((x * x).mean(0) + 1e-6) * weights["scale"][:, None]
          + weights["bias"][:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(query, key, value, mask, seeds, rate, operand):
  """Returns value softmax(query.T key / sqrt(d)).T with dropout on the weights.

  Args:
    query: [H, B, d, Q].
    key: [H, B, d, T].
    value: [H, B, d, T].
    mask: bool [B, Q or 1, T], True where position t may be read.
    seeds: uint32 [2] of dropout, None without.
    rate: of dropout.
    operand: type that products read.

  Returns float32 [H, B, d, Q].
  """
  return _attend_forward(query, key, value, mask, seeds, rate, operand)[0]


def _attend_forward(query, key, value, mask, seeds, rate, operand):
  query, key, value = (part.astype(operand).reshape(-1, *part.shape[2:])
                       for part in (query, key, value))
  by_row = functools.partial(_by_row, len(mask))
  scores = _dot(_transposed(query), key) / math.sqrt(query.shape[1])
  weights = jax.nn.softmax(jnp.where(mask, by_row(scores), layers.MASKED_SCORE))
  weights = weights.reshape(scores.shape)
  dropped = _drop(weights, seeds, rate).astype(operand)
  mixed = _dot(value, dropped, contract=(2, 2))
  return by_row(mixed), (query, key, value, weights.astype(operand), dropped, mask, seeds)


def _attend_backward(rate, operand, kept, change):
  query, key, value, weights, dropped, mask, seeds = kept
  change = change.astype(operand).reshape(query.shape)
  back = _drop(_dot(_transposed(change), value), seeds, rate)
  wide = weights.astype(jnp.float32)
  back = wide * (back - jnp.sum(back * wide, axis=-1, keepdims=True))
  back = (back / math.sqrt(query.shape[1])).astype(operand)
  by_row = functools.partial(_by_row, len(mask))
  return (by_row(_dot(key, back, contract=(2, 2))), by_row(_dot(query, back)),
          by_row(_dot(change, dropped)), None, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _by_row(rows, x):
  """Returns [n, ...] as [H, B, ...]."""
  return x.reshape(-1, rows, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _activate(x, seeds, act, rate, operand):
  """Returns the activation of x with dropout; only x, as products read it, is kept for later."""
  return _drop(layers.ACTIVATIONS[act](x), seeds, rate)


def _activate_forward(x, seeds, act, rate, operand):
  return _activate(x, seeds, act, rate, operand), (x.astype(operand), seeds)


def _activate_backward(act, rate, operand, kept, change):
  del operand
  x, seeds = kept
  change = _drop(change, seeds, rate)
  return jax.vjp(layers.ACTIVATIONS[act], x.astype(jnp.float32))[1](change)[0], None


_activate.defvjp(_activate_forward, _activate_backward)


def _drop(x, seeds, rate):
  """Returns x with dropout, if there are seeds; linear, and so its own derivative."""
  if seeds is None or not rate:
    return x
  return jnp.where(layers.kept(x.shape, seeds, rate), x / (1 - rate), 0)


def _dot(a, b, contract=None):
  """Returns float32 products [..., m, k] of a, b [..., m, c], [..., c, k]; leading axes agree.

  `contract` names the axes summed over, if others than the last and the first after the leading.
  """
  batch = tuple(range(a.ndim - 2))
  pair = contract or (a.ndim - 1, a.ndim - 2)
  return jax.lax.dot_general(a, b, (((pair[0],), (pair[1],)), (batch, batch)),
                             preferred_element_type=jnp.float32)


def _transposed(x):
  """Returns x with its last two axes swapped, in memory too."""
  return _in_memory(jnp.swapaxes(x, -1, -2))


def _in_memory(x):
  """Returns x, laid out as its shape says.

  XLA would rather swap strides than move values, but its fast products read bfloat16 in order
  only: others are made in float32, at half the speed, or (jax 0.10) not at all.
  """
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)
