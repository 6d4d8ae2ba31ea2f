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

from recjax import loops
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
  x = _turned(x.astype(jnp.float32).reshape(-1, width))
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
  return _turned(x).reshape(runs, room, width)


def _block(params, x, *, keep, scored, seeds, operand, causal, heads, hidden, act, norm, dropout,
           attention_dropout, hidden_dropout, output_dropout):
  """Returns `blocks.Block` of x [W, N], [W, N] or at the `scored` positions alone [W, S C]."""
  del hidden
  drop = lambda value, site, rate: _drop(value, seeds[site], rate)
  here = (lambda value: value) if scored is None else scored.take
  weights = params["attention"]

  def dense(part, value, **shapes):
    return _dense(part["kernel"], part["bias"], value, operand, **shapes)

  def attend(query, source):
    """Returns [W, ...]: `query` are columns that ask, `source` [W, N] all that may be asked."""
    split = heads, keep.shape[0]
    slots = lambda value: _split(value if scored is None else scored.to_slots(value), *split)
    if "qkv" in weights and scored is None:
      asks, keys, values = dense(weights["qkv"], source, out=split, parts=3)
    elif "qkv" in weights:
      first, others = (jax.tree.map(lambda value, at=at: value[..., at], weights["qkv"])
                       for at in (slice(x.shape[0]), slice(x.shape[0], None)))
      asks = slots(dense(first, query))
      keys, values = dense(others, source, out=split, parts=2)
    else:
      asks = slots(dense(weights["query"], query))
      (keys,), (values,) = (dense(weights[name], source, out=split) for name in ("key", "value"))
    asked = jnp.arange(keep.shape[1])[None] if scored is None else scored.places
    mask = keep[:, None]
    if causal:
      mask = mask & (jnp.arange(keep.shape[1]) <= asked[..., None])
    mixed = _attend(asks, keys, values, mask, seeds[0], attention_dropout, operand)
    if scored is None and "out" in weights:
      return dense(weights["out"], mixed, of=split)
    mixed = jnp.swapaxes(mixed, 1, 2).reshape(x.shape[0], -1)
    mixed = mixed if scored is None else scored.from_slots(mixed)
    return dense(weights["out"], mixed) if "out" in weights else mixed

  def feed(y):
    hidden = _activate(dense(params["mlp"]["up"], y), seeds[1], act, hidden_dropout, operand)
    return dense(params["mlp"]["down"], hidden)

  attention_norm, mlp_norm = params["attention_norm"], params["mlp_norm"]
  if norm == "pre":
    y, x = _norm_beside(attention_norm, x)
    x = here(x) + drop(attend(here(y), y), 2, dropout)
    y, x = _norm_beside(mlp_norm, x)
    x = x + drop(feed(y), 3, dropout)
  elif norm == "post":
    x = _norm(attention_norm, here(x) + drop(attend(here(x), x), 2, dropout))
    x = _norm(mlp_norm, x + drop(feed(x), 3, dropout))
  else:
    y = _norm(attention_norm, here(x))
    y = _norm(mlp_norm, y + attend(y, x))
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
  return loops.in_memory(jnp.where(at >= 0, jnp.take(x, jnp.maximum(at, 0), axis=1), 0))


_pick.defvjp(lambda x, at, back: (_pick(x, at, back), (at, back)),
             lambda kept, change: (_pick(change, kept[1], kept[0]), None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _dense(kernel, bias, x, operand, of=None, out=None, parts=1):
  """Returns kernel.T @ x + bias, [m, k], [k] and [m, N] -> float32 [k, N].

  With (H, B) as `of`, x is [H, B, d, T] in place of [m, N]. With (H, B) as `out`, as many such
  `parts` come back in place of [k, N], in a tuple.
  """
  return _dense_forward(kernel, bias, x, operand, of, out, parts)[0]


def _dense_forward(kernel, bias, x, operand, of, out, parts):
  del of
  # XLA's own conversion of the kernel, since loops that transpose are slow by bits.
  kernel, x = kernel.astype(operand), _whole(operand, x)
  y = _dot(loops.transposed(kernel), x) + bias[:, None]
  if out is not None:
    y = tuple(_split(part, *out) for part in jnp.split(y, parts))
  return y, (kernel, x)


def _dense_backward(operand, of, out, parts, kept, change):
  del parts
  kernel, x = kept
  # The bias reads it narrow as well, so that nothing wide is written.
  change = _whole(operand, *([change] if out is None else change))
  d_x = _dot(kernel, change)
  return (_dot(x, change, contract=(1, 1)), jnp.sum(change.astype(jnp.float32), 1),
          d_x if of is None else _split(d_x, *of))


_dense.defvjp(_dense_forward, _dense_backward)


def _split(x, heads, rows):
  """Returns [H d, B T] as [H, B, d, T]."""
  return jnp.swapaxes(x.reshape(heads, -1, rows, x.shape[1] // rows), 1, 2)


def _whole(operand, *parts):
  """Returns parts, as they are or as `_split` gave them, together [W, N] as products read it."""
  def columns(x):
    if x.ndim == 2:
      return loops.rounded(x, operand)
    # In four axes, since XLA's loops over [W, N] would divide to find them.
    x = loops.apart(lambda x: loops.in_memory(jnp.swapaxes(loops.rounded(x, operand), 1, 2)), x)
    return x.reshape(x.shape[0] * x.shape[1], -1)
  return loops.read(jnp.concatenate([columns(part) for part in parts]))


@jax.custom_vjp
def _norm(weights, x):
  """Returns the layer norm of every column."""
  return _norm_forward(weights, x)[0]


def _norm_forward(weights, x):
  mean = x.mean(0)
  x_ = x - mean
  scale = jax.lax.rsqrt((x_ * x_).mean(0) + 1e-6)
  return (x_ * scale * weights["scale"][:, None] + weights["bias"][:, None],
          (weights["scale"], x, mean, scale))


def _norm_backward(kept, change):
  return loops.apart(_change_of_norm, *kept, change)


_norm.defvjp(_norm_forward, _norm_backward)


@jax.custom_vjp
def _norm_beside(weights, x):
  """Returns (`_norm` of x, x), for what goes around it: their gradients are added in one pass."""
  return _norm(weights, x), x


def _norm_beside_forward(weights, x):
  y, kept = _norm_forward(weights, x)
  return (y, x), kept


def _norm_beside_backward(kept, changes):
  return loops.apart(_change_of_norm, *kept, *changes)


_norm_beside.defvjp(_norm_beside_forward, _norm_beside_backward)


def _change_of_norm(weight, x, mean, scale, change, beside=None):
  """Returns the gradients of the parameters, and of x with `beside` added."""
  x = (x - mean) * scale
  product = change * x
  inner = (weight @ change) / len(x) + x * ((weight @ product) / len(x))
  out = (change * weight[:, None] - inner) * scale
  return ({"scale": product.sum(1), "bias": change.sum(1)},
          out if beside is None else out + beside)


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
  # What is computed once a query, a d-th of T, takes the place of passes over Q x T: the norm
  # divides what is mixed, not the weights, and the gradient of the norm is read off it.
  query = query / math.sqrt(query.shape[2])
  query, key, value = (loops.narrow(part, operand).reshape(-1, *part.shape[2:])
                       for part in (query, key, value))
  scores = _dot(loops.transposed(query), key)
  scores = jnp.where(mask, _by_row(len(mask), scores), layers.MASKED_SCORE).reshape(scores.shape)
  highest = loops.apart(lambda x: jnp.max(x, axis=-1, keepdims=True), scores)
  powers = loops.apart(lambda x, high: loops.narrow(jnp.exp(x - high), operand), scores, highest)
  norm = 1 / loops.apart(lambda x: jnp.sum(x.astype(jnp.float32), axis=-1), powers)[:, None]
  mixed = _dot(value, _left(powers, seeds, rate), contract=(2, 2))
  mixed = _by_row(len(mask), mixed * (norm / _share(seeds, rate)))
  return mixed, (query, key, value, powers, loops.narrow(mixed, operand), norm, mask, seeds)


def _attend_backward(rate, operand, kept, change):
  query, key, value, powers, mixed, norm, mask, seeds = kept
  slope = jnp.sum(change * mixed.astype(jnp.float32), axis=2).reshape(norm.shape) * norm
  change = loops.narrow(change.reshape(query.shape) * (norm / _share(seeds, rate)), operand)
  # Apart, or else it would be kept from the forward pass.
  left = loops.apart(lambda *args: _left(*args, rate), powers, seeds)
  back = left.astype(jnp.float32) * _dot(loops.transposed(change), value)
  back = loops.narrow(back - powers.astype(jnp.float32) * jnp.swapaxes(slope, 1, 2), operand)
  by_row = functools.partial(_by_row, len(mask))
  return (by_row(_dot(key, back, contract=(2, 2)) / math.sqrt(query.shape[1])),
          by_row(_dot(query, back)), by_row(_dot(change, left)), None, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _left(powers, seeds, rate):
  """Returns powers, 0 where dropout says so."""
  return loops.narrow(_zeroed(powers.astype(jnp.float32), seeds, rate), powers.dtype)


def _by_row(rows, x):
  """Returns [n, ...] as [H, B, ...]."""
  return x.reshape(-1, rows, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _activate(x, seeds, act, rate, operand):
  """Returns the activation of x with dropout; only x, as products read it, is kept for later."""
  return _drop(layers.ACTIVATIONS[act](x), seeds, rate)


def _activate_forward(x, seeds, act, rate, operand):
  return _activate(x, seeds, act, rate, operand), (loops.narrow(x, operand), seeds)


def _activate_backward(act, rate, operand, kept, change):
  del operand
  x, seeds = kept
  change = _drop(change, seeds, rate)
  return jax.vjp(layers.ACTIVATIONS[act], x.astype(jnp.float32))[1](change)[0], None


_activate.defvjp(_activate_forward, _activate_backward)


def _drop(x, seeds, rate):
  """Returns x with dropout, if there are seeds; linear, and so its own derivative."""
  return _zeroed(x / _share(seeds, rate), seeds, rate)


def _zeroed(x, seeds, rate):
  """Returns x with 0 where dropout says so."""
  return x if _share(seeds, rate) == 1 else jnp.where(layers.kept(x.shape, seeds, rate), x, 0)


def _share(seeds, rate):
  """Returns how much dropout keeps."""
  return 1 if seeds is None else 1 - rate


def _dot(a, b, contract=None):
  """Returns float32 products [..., m, k] of a, b [..., m, c], [..., c, k]; leading axes agree.

  `contract` names the axes summed over, if others than the last and the first after the leading.
  """
  batch = tuple(range(a.ndim - 2))
  pair = contract or (a.ndim - 1, a.ndim - 2)
  return jax.lax.dot_general(a, b, (((pair[0],), (pair[1],)), (batch, batch)),
                             preferred_element_type=jnp.float32)


@jax.custom_vjp
def _turned(x):
  """Returns the transpose of x, written once: those who read it would do it again each."""
  return loops.apart(loops.transposed, x)


_turned.defvjp(lambda x: (_turned(x), None), lambda _, change: (_turned(change),))
