"""Softmax cross-entropy over a whole catalog, its gradient taken in the same pass.

A block of positions is scored against all items, and while its scores lie in the cache they become
the loss and what the block adds to each gradient: three matmuls and one exponential a score, and
never positions x items. (Hsu et al. 2024, Liger Kernel, Section 3.2, do so on GPUs.) What the loss
itself is multiplied by afterwards is one number, so nothing has to be computed again backward.

Letters: n positions, P of them in a block, W width, V items.
"""

import functools

import jax
import jax.numpy as jnp

from recjax import loops

# P on a CPU, launch/bench/README.md has the times: as many as matmuls like, but so few that their
# scores fit its cache. FEW are for few positions, where blocks without labels count most. Elsewhere
# as many as make SCORES, but no fewer than LEAST; not measured there.
MANY, MANY_FROM, FEW, WIDE, WIDE_FROM, LEAST = 400, 256, 64, 256, 8192, 128
SCORES = 2**25  # the most that a block has; larger catalogs go by blocks of items


def block(positions, items, operand):
  """Returns P for n positions, V items and a type that products read, or None.

  That says that another way is as quick or has to be.
  """
  on_cpu = jax.default_backend() == "cpu"
  if not on_cpu or items >= WIDE_FROM:
    found = WIDE if on_cpu else max(SCORES // items, LEAST)
    worth = positions > 2 * found
  elif positions > MANY_FROM:
    found, worth = min(MANY, -(-positions // 2)), True
  else:  # no other way has products of bfloat16
    found, worth = FEW, positions > FEW and jnp.dtype(operand) == jnp.bfloat16
  return found if worth and found * items <= SCORES else None


def product(form, *operands, ordered=False):
  """Returns the einsum, summed in float32.

  A CPU has no such product of bfloat16 in every layout: these are float32 there, unless the order
  of axes is that of one which it has. `ordered` says so: it is then what operands have in memory.
  """
  if jax.default_backend() == "cpu":
    operands = (loops.in_memory(x) if ordered and x.dtype == jnp.bfloat16
                else x.astype(jnp.float32) for x in operands)
  return jnp.einsum(form, *operands, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def cross_entropy(x, table, bias, labels, weights, axis, block, operand):
  """Returns the sum over positions of weight x -log softmax(score of the label), float32.

  Positions behind the last one with a weight cost nothing.

  Args:
    x: [n, W].
    table: [V, W], or [W, V] where `axis` is 1.
    bias: [V] or None.
    labels: int32 [n].
    weights: float32 [n]; they get no gradient.
    axis: of the items in `table`.
    block: P.
    operand: type that products read.
  """
  return _blocks(x, table, bias, labels, weights, axis, block, operand, gradient=False)[0]


def _forward(x, table, bias, labels, weights, axis, block, operand):
  total, d_x, d_table, d_bias = _blocks(
    x, table, bias, labels, weights, axis, block, operand, gradient=True)
  d_table = d_table if axis else d_table.T
  return total, (d_x[:len(x)].astype(x.dtype), d_table.astype(table.dtype),
                 None if bias is None else d_bias.astype(bias.dtype))


def _backward(axis, block, operand, kept, pull):
  del axis, block, operand
  scaled = jax.tree.map(lambda d: (d * pull).astype(d.dtype), kept)
  return *scaled, None, None


cross_entropy.defvjp(_forward, _backward)


def _blocks(x, table, bias, labels, weights, axis, block, operand, *, gradient):
  """Returns (total,) or (total, d x [>= n, W], d table [W, V], d bias [V] or None), float32."""
  count = -(-len(x) // block)
  block = -(-len(x) // count)  # as equal as can be
  last = jnp.max(jnp.where(weights != 0, jnp.arange(len(x)) + 1, 0))
  fill = lambda a: jnp.pad(a, ((0, count * block - len(x)),) + ((0, 0),) * (a.ndim - 1))
  x, labels, weights = map(fill, (x, labels, weights))
  items, width = jnp.arange(table.shape[axis]), x.shape[1]
  among = bias is not None and jax.default_backend() == "cpu"
  asks, answers = _with_bias(x, table, bias, axis, operand) if among else (x, table)
  asks, answers, table = (loops.narrow(a, operand) for a in (asks, answers, table))

  multiply = functools.partial(product, ordered=True)

  def step(index, carry):
    begin = index * block
    here, label, weight = (jax.lax.dynamic_slice_in_dim(a, begin, block)
                           for a in (asks, labels, weights))
    scores = multiply("pw,wv->pv" if axis else "pw,vw->pv", here, answers)
    if bias is not None and not among:
      scores = scores + bias.astype(jnp.float32)
    highest = jnp.max(scores, -1)
    powers = jnp.exp(scores - highest[:, None])
    norm = jnp.sum(powers, -1)
    picked = jnp.take_along_axis(scores, label[:, None], -1)[:, 0]
    total = carry[0] + jnp.sum((highest + jnp.log(norm) - picked) * weight)
    if not gradient:
      return (total,)
    _, d_x, d_table, d_bias = carry
    change = powers * (weight / norm)[:, None] - jnp.where(
      items == label[:, None], weight[:, None], 0)
    if bias is not None and not among:
      d_bias = d_bias + jnp.sum(change, 0)
    change = loops.narrow(change, operand)
    d_here = multiply("pv,wv->pw" if axis else "pv,vw->pw", change, table)
    # [W, V] whichever way the table lies: of the two ways to write it, the quicker one on a CPU.
    return (total, jax.lax.dynamic_update_slice_in_dim(d_x, d_here, begin, 0),
            d_table + multiply("wp,pv->wv", here.T, change), d_bias)

  start = (jnp.float32(0),)
  if gradient:
    start += (jnp.zeros(x.shape, jnp.float32), jnp.zeros((asks.shape[1], len(items)), jnp.float32),
              None if bias is None or among else jnp.zeros(len(items), jnp.float32))
  found = jax.lax.fori_loop(0, -(-last // block), step, start)
  if not gradient or not among:
    return found
  total, d_x, d_table, _ = found
  return total, d_x, d_table[:width], d_table[width]


def _with_bias(x, table, bias, axis, operand):
  """Returns x and table with more columns, so that their product has the bias in it.

  Passes over all scores to add it, and to sum its gradient, take a tenth of the time on a CPU.
  """
  parts, rest = [], bias.astype(jnp.float32)
  for _ in range(1 if jnp.dtype(operand) == jnp.float32 else 2):  # one bfloat16 would round it
    parts.append(loops.narrow(rest, operand).astype(jnp.float32))
    rest = rest - parts[-1]
  return (jnp.concatenate([x, jnp.ones((len(x), len(parts)), x.dtype)], 1),
          jnp.concatenate([table, jnp.stack(parts, 1 - axis).astype(table.dtype)], 1 - axis))
