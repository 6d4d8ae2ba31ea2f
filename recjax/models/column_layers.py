"""The layers of a block in columns, and their backward passes; see `recjax.models.columns`.

What lies between a step's passes is read again from beyond the cache: as little as can be is kept,
and that as products read it.

Letters: W width, T positions, B rows, N columns, H heads, d width of a head, Q queries a row, m and
k widths of a dense layer, n = H * B.
"""

import functools
import math

import jax
import jax.numpy as jnp

from recjax import loops
from recjax.models import layers


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dense(part, x, operand, out=None, count=1):
  """Returns kernel.T @ x + bias of `part`, [m, k] and [k], and x [m, N]: float32 [k, N].

  With (H, B) as `out`, `count` such [H, B, d, T] come back in its place, in a tuple.
  """
  return _dense_forward(part, x, operand, out, count)[0]


def _dense_forward(part, x, operand, out, count):
  kernel, x = _kernel(part, operand), loops.narrow(x, operand)
  y = _apply(part, kernel, x)
  if out is not None:
    y = tuple(split(each, *out) for each in jnp.split(y, count))
  return y, (kernel, x)


def _dense_backward(operand, out, count, kept, change):
  del count
  kernel, x = kept
  change = loops.narrow(change, operand) if out is None else _joined(operand, *change)
  return _change_of_dense(x, change), _dot(kernel, change)


dense.defvjp(_dense_forward, _dense_backward)


def _kernel(part, operand):
  """Returns the kernel as products read it."""
  # XLA's own conversion, since loops that transpose are slow by bits.
  return part["kernel"].astype(operand)


def _apply(part, kernel, x):
  """Returns what a dense layer makes of narrow x."""
  return _dot(loops.transposed(kernel), x) + part["bias"][:, None]


def _change_of_dense(x, change):
  """Returns the gradients of a dense layer, of narrow x [m, N] and `change` [k, N]."""
  # The bias reads it narrow as well, so that nothing wide is written.
  return {"kernel": _dot(x, change, contract=(1, 1)),
          "bias": jnp.sum(change.astype(jnp.float32), 1)}


def split(x, heads, rows):
  """Returns [H d, B T] as [H, B, d, T]."""
  return jnp.swapaxes(x.reshape(heads, -1, rows, x.shape[1] // rows), 1, 2)


def _joined(operand, *parts):
  """Returns parts, as `split` gave them, together [W, N] as products read it."""
  def columns(x):
    # In four axes, since XLA's loops over [W, N] would divide to find them.
    x = loops.apart(lambda x: loops.in_memory(jnp.swapaxes(loops.rounded(x, operand), 1, 2)), x)
    return x.reshape(x.shape[0] * x.shape[1], -1)
  return loops.read(jnp.concatenate([columns(part) for part in parts]))


def _mean(x):
  """Returns the mean of every column, as a product: XLA's sums over rows take longer."""
  return jnp.dot(jnp.full(len(x), 1 / len(x), jnp.float32), x, precision="highest")


def _standardized(x):
  """Returns (y, mean, scale): y = (x - mean) * scale has mean 0 and variance 1 in every column."""
  mean = _mean(x)
  centered = x - mean
  scale = jax.lax.rsqrt(_mean(centered * centered) + 1e-6)
  return centered * scale, mean, scale


@jax.custom_vjp
def norm(weights, x):
  """Returns the layer norm of every column."""
  return _norm_forward(weights, x)[0]


def _norm_forward(weights, x):
  y, mean, scale = _standardized(x)
  return (y * weights["scale"][:, None] + weights["bias"][:, None],
          (weights["scale"], x, mean, scale))


def _norm_backward(kept, change):
  return loops.apart(_change_of_norm, *kept, change)


norm.defvjp(_norm_forward, _norm_backward)


def fold(weights, part):
  """Returns a dense layer of what a norm with `weights` gives as one of standardized columns."""
  return {"kernel": weights["scale"][:, None] * part["kernel"],
          "bias": part["bias"] + weights["bias"] @ part["kernel"]}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standard_beside(x, operand):
  """Returns (x with mean 0 and variance 1 in every column, x), for what goes around it.

  Their gradients are added in one pass.
  """
  return _standard_beside_forward(x, operand)[0]


def _standard_beside_forward(x, operand):
  y, _, scale = _standardized(x)
  return (y, x), (loops.narrow(y, operand), scale)


def _standard_beside_backward(operand, kept, changes):
  del operand
  return (loops.apart(_change_of_standard, *kept, *changes),)


standard_beside.defvjp(_standard_beside_forward, _standard_beside_backward)


def _change_of_standard(y, scale, change, beside):
  y = y.astype(jnp.float32)
  return (change - _mean(change) - y * _mean(change * y)) * scale + beside


def _change_of_norm(weight, x, mean, scale, change):
  """Returns the gradients of the parameters, and of x."""
  x = (x - mean) * scale
  product = change * x
  inner = (weight @ change) / len(x) + x * ((weight @ product) / len(x))
  return ({"scale": product.sum(1), "bias": change.sum(1)},
          (change * weight[:, None] - inner) * scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attend(query, key, value, out, mask, drawn, rate, operand):
  """Returns value softmax(query.T key / sqrt(d)).T with dropout on the weights, through `out`.

  Args:
    query: [H, B, d, Q].
    key: [H, B, d, T].
    value: [H, B, d, T].
    out: the dense layer W -> W that reads it, or None.
    mask: bool [B, Q or 1, T], True where position t may be read.
    drawn: `layers.Draws` of dropout, None without.
    rate: of dropout.
    operand: type that products read.

  Returns float32 [W, B Q].
  """
  return _attend_forward(query, key, value, out, mask, drawn, rate, operand)[0]


def _attend_forward(query, key, value, out, mask, drawn, rate, operand):
  # What is computed once a query, a d-th of T, takes the place of passes over Q x T: the norm
  # divides what is mixed, not the weights, and the gradient of the norm is read off it.
  query = query / math.sqrt(query.shape[2])
  query, key, value = (loops.narrow(part, operand).reshape(-1, *part.shape[2:])
                       for part in (query, key, value))
  scores = _dot(loops.transposed(query), key)
  scores = jnp.where(mask, _by_row(len(mask), scores), layers.MASKED_SCORE).reshape(scores.shape)
  highest = loops.apart(lambda x: jnp.max(x, axis=-1, keepdims=True), scores)
  powers = loops.apart(lambda x, high: loops.narrow(jnp.exp(x - high), operand), scores, highest)
  norm = 1 / loops.apart(lambda x: jnp.sum(x.astype(jnp.float32), axis=-1), powers)
  mixed = _dot(_left(powers, drawn, rate), value, contract=(2, 2))  # [n, Q, d]: the quicker way
  mixed = mixed * (norm / _share(drawn, rate))[..., None]
  mixed = _by_row(len(mask), jnp.swapaxes(mixed, 1, 2))
  narrow = _joined(operand, mixed)
  if out is None:
    y, kernel = jnp.swapaxes(mixed, 1, 2).reshape(narrow.shape), None
  else:
    kernel = _kernel(out, operand)
    y = _apply(out, kernel, narrow)
  return y, (query, key, value, powers, narrow, norm, mask, drawn, kernel)


def _attend_backward(rate, operand, kept, change):
  query, key, value, powers, mixed, norm, mask, drawn, kernel = kept
  d_out = None
  if kernel is not None:
    change = loops.narrow(change, operand)
    d_out = _change_of_dense(mixed, change)
    change = _dot(kernel, change)
  heads = len(query) // len(mask)
  of_head = jnp.repeat(jnp.eye(heads), query.shape[1], axis=1)  # [H, W]
  slope = (of_head @ (change * mixed.astype(jnp.float32))).reshape(norm.shape) * norm
  change = split(change, heads, len(mask)).reshape(query.shape)
  change = loops.narrow(change * (norm / _share(drawn, rate))[:, None], operand)
  # Apart, or else it would be kept from the forward pass.
  left = loops.apart(lambda *args: _left(*args, rate), powers, drawn)
  back = left.astype(jnp.float32) * _dot(loops.transposed(change), value)
  back = loops.narrow(back - powers.astype(jnp.float32) * slope[..., None], operand)
  # As [n, Q, d]: the quicker way. Divided before it is turned, or else XLA turns the product.
  d_query = jnp.swapaxes(_dot(back, key, contract=(2, 2)) / math.sqrt(query.shape[1]), 1, 2)
  by_row = functools.partial(_by_row, len(mask))
  return (by_row(d_query), by_row(_dot(query, back)), by_row(_dot(change, left)), d_out, None, None)


attend.defvjp(_attend_forward, _attend_backward)


def _left(powers, drawn, rate):
  """Returns powers, 0 where dropout says so."""
  return loops.narrow(_zeroed(powers.astype(jnp.float32), drawn, rate), powers.dtype)


def _by_row(rows, x):
  """Returns [n, ...] as [H, B, ...]."""
  return x.reshape(-1, rows, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def feed(up, down, x, drawn, act, rate, operand):
  """Returns `down` of the activation of `up` of x, with dropout; both dense layers.

  Of what lies between them only what the activation was given is kept, as products read it.
  """
  return _feed_forward(up, down, x, drawn, act, rate, operand)[0]


def _feed_forward(up, down, x, drawn, act, rate, operand):
  x = loops.narrow(x, operand)
  first, second = (_kernel(part, operand) for part in (up, down))
  given = _apply(up, first, x)
  hidden = loops.narrow(drop(layers.ACTIVATIONS[act](given), drawn, rate), operand)
  return _apply(down, second, hidden), (first, second, x, loops.narrow(given, operand), drawn)


def _feed_backward(act, rate, operand, kept, change):
  first, second, x, given, drawn = kept
  change = loops.narrow(change, operand)

  def between(given, drawn, change):
    hidden, pull = jax.vjp(layers.ACTIVATIONS[act], given.astype(jnp.float32))
    return (loops.narrow(drop(hidden, drawn, rate), operand),
            loops.narrow(pull(drop(change, drawn, rate))[0], operand))
  hidden, inner = loops.apart(between, given, drawn, _dot(second, change))
  return (_change_of_dense(x, inner), _change_of_dense(hidden, change), _dot(first, inner), None)


feed.defvjp(_feed_forward, _feed_backward)


def drop(x, drawn, rate):
  """Returns x with dropout, if there are draws; linear, and so its own derivative."""
  return _zeroed(x / _share(drawn, rate), drawn, rate)


def _zeroed(x, drawn, rate):
  """Returns x with 0 where dropout says so."""
  return x if _share(drawn, rate) == 1 else jnp.where(layers.kept(x.shape, drawn, rate), x, 0)


def _share(drawn, rate):
  """Returns how much dropout keeps."""
  return 1 if drawn is None else 1 - rate


def _dot(a, b, contract=None):
  """Returns float32 products [..., m, k] of a, b [..., m, c], [..., c, k]; leading axes agree.

  `contract` names the axes summed over, if others than the last and the first after the leading.
  """
  batch = tuple(range(a.ndim - 2))
  pair = contract or (a.ndim - 1, a.ndim - 2)
  return jax.lax.dot_general(a, b, (((pair[0],), (pair[1],)), (batch, batch)),
                             preferred_element_type=jnp.float32)


@jax.custom_vjp
def turned(x):
  """Returns the transpose of x, written once: those who read it would do it again each."""
  return loops.apart(loops.transposed, x)


turned.defvjp(lambda x: (turned(x), None), lambda _, change: (turned(change),))
