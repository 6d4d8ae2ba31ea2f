"""Softmax cross-entropy over a whole catalog, its gradient taken in the same pass.

A block of positions is scored against all items, and while its scores lie in the cache they become
the loss and what the block adds to each gradient: three matmuls and one exponential a score, and
never positions x items. (Hsu et al. 2024, Liger Kernel, Section 3.2, do so on GPUs.) What the loss
itself is multiplied by afterwards is one number, so nothing has to be computed again backward.

Letters: n positions, P of them in a block, W width, V items.
"""

import functools
import math

import jax
import jax.numpy as jnp

from recjax import loops

# P on a CPU, launch/bench/README.md has the times: as many as matmuls like, but so few that their
# scores fit its cache. Elsewhere as many as make SCORES; not measured there.
MANY, LEAST, FEW = 400, 128, 64
CACHED = 2**22  # scores; where LEAST positions have more they are still no slower, up to 2^24
FIRST = 5 / 8  # of the positions of two blocks: more than have labels, where there is room for more
SCORES = 2**25  # the most that a block has, half of it on a CPU; else by blocks of items


def block(positions, items):
  """Returns P for n positions and V items, or None.

  That says that another way is as quick or has to be.
  """
  most = SCORES // items
  if jax.default_backend() != "cpu":
    return most if LEAST <= most and positions > 2 * most else None
  if positions <= FEW or most < 2 * LEAST:
    return None
  return min(MANY, max(LEAST, CACHED // items), math.ceil(FIRST * positions))


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
  (total,), _ = _blocks(x, table, bias, labels, weights, axis, block, operand, gradient=False)
  return total


def _forward(x, table, bias, labels, weights, axis, block, operand):
  (total, d_table, d_bias), d_x = _blocks(
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
  """Returns ((total, d table [W, V], d bias [V] or None), d x [>= n, W]), float32.

  Without `gradient`, ((total,), None).
  """
  last = jnp.max(jnp.where(weights != 0, jnp.arange(len(x)) + 1, 0))
  items, width = jnp.arange(table.shape[axis]), x.shape[1]
  among = bias is not None and jax.default_backend() == "cpu"
  asks, answers = _with_bias(x, table, bias, axis, operand) if among else (x, table)
  asks, answers, table = (loops.narrow(a, operand) for a in (asks, answers, table))
  multiply = functools.partial(product, ordered=True)

  def of_block(here, label, weight):
    scores = multiply("pw,wv->pv" if axis else "pw,vw->pv", here, answers)
    if bias is not None and not among:
      scores = scores + bias.astype(jnp.float32)
    highest = jnp.max(scores, -1)
    powers = jnp.exp(scores - highest[:, None])
    norm = jnp.sum(powers, -1)
    picked = jnp.take_along_axis(scores, label[:, None], -1)[:, 0]
    total = jnp.sum((highest + jnp.log(norm) - picked) * weight)
    if not gradient:
      return (total,), None
    change = powers * (weight / norm)[:, None] - jnp.where(
      items == label[:, None], weight[:, None], 0)
    d_bias = jnp.sum(change, 0) if bias is not None and not among else None
    change = loops.narrow(change, operand)
    # [W, V] whichever way the table lies: of the two ways to write it, the quicker one on a CPU.
    d_table = multiply("wp,pv->wv", here.T, change)
    return (total, d_table, d_bias), multiply("pv,wv->pw" if axis else "pv,vw->pw", change, table)

  in_turn = _in_two if len(x) <= 2 * block else _in_a_loop
  sums, d_x = in_turn(of_block, (asks, labels, weights), block, last)
  if gradient and among:
    total, d_table, _ = sums
    sums = total, d_table[:width], d_table[width]
  return sums, d_x


def _in_two(of_block, inputs, block, last):
  """Returns (sums, d x) of two blocks, `of_block` being what gives them of one.

  The sums are added up where they are read, once, and not after each block.
  """
  nothing = lambda *here: loops.zeros(of_block, *here)
  (first, d_first), (second, d_second) = (
    jax.lax.cond(begin < last, of_block, nothing, *(a[begin:end] for a in inputs))
    for begin, end in ((0, block), (block, None)))
  return (jax.tree.map(jnp.add, first, second),
          jax.tree.map(lambda *parts: jnp.concatenate(parts), d_first, d_second))


def _in_a_loop(of_block, inputs, block, last):
  """Returns (sums, d x) of as many equal blocks as there are, of at most `block` positions."""
  length = len(inputs[0])
  count = -(-length // block)
  block = -(-length // count)
  inputs = [jnp.pad(a, ((0, count * block - length),) + ((0, 0),) * (a.ndim - 1)) for a in inputs]
  here = lambda index: [jax.lax.dynamic_slice_in_dim(a, index * block, block) for a in inputs]

  def step(index, carry):
    sums, d_x = carry
    more, d_here = of_block(*here(index))
    put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, index * block, 0)
    return jax.tree.map(jnp.add, sums, more), jax.tree.map(put, d_x, d_here)

  sums, d_here = loops.zeros(of_block, *here(0))
  d_x = jax.tree.map(lambda part: jnp.zeros((count * block, part.shape[1]), part.dtype), d_here)
  return jax.lax.fori_loop(0, -(-last // block), step, (sums, d_x))


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
