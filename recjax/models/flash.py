"""Attention of a sequence in one kernel, forward and backward, with dropout on its weights.

Scores never leave the processor (Dao et al. 2022, FlashAttention): forward keeps the log of each
query's sum of exponentials, backward computes scores and dropout once more. It is the product of
`blocks.Attention` written out, with the same dropout, place by place. cuDNN's kernel has no dropout
that a key decides.

Positions read those of their own group. A row of a batch is one group, beside padding, or many
sequences behind each other are one each. What has no group is read by nobody and gives 0, where the
written out form gives some mixture. Blocks that have no group in common are passed over.

A GPU runs it by Triton; elsewhere it is interpreted, which is for tests.

Letters: B batch, T positions, H heads, d width of a head (a power of 2 from 16 on).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

try:
  from jax.experimental.pallas import triton
except ImportError:  # jax says that it will go
  triton = None

from recjax.models import layers

BLOCK = 64  # queries and keys that meet at once
NARROWEST = 16  # of what Triton multiplies
PERIOD = 1024  # dropout of weights tells so many keys of a query from each other
NOBODY = 2**30  # behind all groups


def missing(width):
  """Returns why heads of this width cannot be computed, or None."""
  if triton is None:
    return f"jax {jax.__version__} has no Pallas for Triton"
  if width < NARROWEST or width & (width - 1):
    return f"heads must be 16, 32, 64, ... wide, and are {width}"
  return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attention(qkv, groups, seeds, causal, rate, period=None):
  """Returns softmax(Q K^T / sqrt(d)) V, [B, T, H, d].

  Args:
    qkv: [B, T, 3, H, d], queries, keys and values.
    groups: int32 [B, T], whom a position belongs to; 0: nobody. They ascend, but for gaps of 0.
    seeds: uint32 [2] of dropout, see `layers.draws`.
    causal: whether a position reads itself and those before it only.
    rate: of dropout on the weights.
    period: of keys that dropout tells apart; by default T, as where it is written out.
  """
  return _forward(qkv, groups, seeds, causal, rate, period)[0]


def _forward(qkv, groups, seeds, causal, rate, period):
  batch, length, _, heads, width = qkv.shape
  out, norm = _call(
    _forward_kernel, "attention_forward", (qkv, groups, seeds), causal=causal, rate=rate,
    period=period,
    out={"head": jax.ShapeDtypeStruct((batch, length, heads, width), qkv.dtype),
         "norm": jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)})
  return out, (qkv, groups, seeds, out, norm)


def _backward(causal, rate, period, kept, pull):
  qkv, groups, seeds, out, norm = kept
  said = jnp.sum(pull.astype(jnp.float32) * out.astype(jnp.float32), -1).transpose(0, 2, 1)
  d_qkv, = _call(
    _backward_kernel, "attention_backward", (qkv, groups, seeds), ("head", pull), ("norm", norm),
    ("norm", said), causal=causal, rate=rate, period=period,
    out={"all": jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)})
  return d_qkv, None, None


attention.defvjp(_forward, _backward)


def _call(kernel, name, inputs, *more, out, causal, rate, period):
  """Runs a kernel, a program a sequence, a head and a block; returns what it writes.

  Args:
    kernel: of those below.
    name: its name in a trace.
    inputs: (qkv, groups, seeds), which every kernel reads.
    *more: (how a program sees it, array) of what else it reads.
    out: {how a program sees it: shape} of what it writes.
    causal: see `attention`.
    rate: likewise.
    period: likewise.
  """
  qkv, groups, seeds = inputs
  batch, length, _, heads, width = qkv.shape
  part = lambda number: pl.BlockSpec(
    (None, length, None, None, width), lambda b, h, i: (b, 0, number, h, 0))
  seen = {"all": pl.BlockSpec((None, length, 3, None, width), lambda b, h, i: (b, 0, 0, h, 0)),
          "head": pl.BlockSpec((None, length, None, width), lambda b, h, i: (b, 0, h, 0)),
          "norm": pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0))}
  specs = [*map(part, range(3)), pl.BlockSpec((None, length), lambda b, h, i: (b, 0)),
           pl.BlockSpec((None, None, 4), lambda b, h, i: (b, i, 0)),
           pl.BlockSpec((2,), lambda b, h, i: (0,))]
  drop = functools.partial(_dropout, rate=rate, heads=heads, length=length, period=period or length)
  return pl.pallas_call(
    functools.partial(kernel, causal=causal, dropout=drop, length=length), name=name,
    grid=(batch, heads, pl.cdiv(length, BLOCK)), in_specs=[*specs, *(seen[how] for how, _ in more)],
    out_specs=[seen[how] for how in out], out_shape=list(out.values()), **_compiler())(
      qkv, qkv, qkv, groups, _meetings(groups, causal), seeds, *(array for _, array in more))


def _compiler():
  if jax.default_backend() != "gpu":
    return dict(interpret=True)
  return dict(compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))


def _meetings(groups, causal):
  """Returns int32 [B, blocks, 4]: from and to which block keys are read, and queries are asked by.

  A group may reach from one block to another; of blocks without any, both are 0.
  """
  batch, length = groups.shape
  blocks = pl.cdiv(length, BLOCK)
  cut = jnp.pad(groups, ((0, 0), (0, blocks * BLOCK - length))).reshape(batch, blocks, BLOCK)
  first, last = jnp.min(jnp.where(cut > 0, cut, NOBODY), 2), jnp.max(cut, 2)
  meet = ((first[:, :, None] <= last[:, None, :])
          & (first[:, None, :] <= last[:, :, None]))  # [B, queries, keys]
  if causal:
    meet = meet & jnp.tril(jnp.ones((blocks, blocks), bool))
  ends = []
  for meets in (meet, meet.swapaxes(1, 2)):
    start, end = jnp.argmax(meets, 2), blocks - jnp.argmax(meets[..., ::-1], 2)
    ends += [start, jnp.where(meets.any(2), end, start)]
  return jnp.stack(ends, 2).astype(jnp.int32)


def _forward_kernel(q_ref, k_ref, v_ref, group_ref, meet_ref, seeds_ref, out_ref, norm_ref, *,
                    causal, dropout, length):
  block = pl.program_id(2)
  places, real, q = _take(q_ref, block, length)
  rows = _Places(places, _take(group_ref, block, length)[2]).down()
  drop = dropout(seeds_ref)

  def step(index, carry):
    mixed, highest, total = carry
    places, _, k = _take(k_ref, index, length)
    v, group = (_take(ref, index, length)[2] for ref in (v_ref, group_ref))
    columns = _Places(places, group).across()
    scores, seen = _scores(q, k, rows, columns, causal)
    above = jnp.maximum(highest, jnp.max(scores, 1))
    shrink = jnp.exp(highest - above)
    weights = jnp.where(seen, jnp.exp(scores - above[:, None]), 0.0)
    total = total * shrink + jnp.sum(weights, 1)
    mixed = mixed * shrink[:, None] + _dot(drop(weights, rows, columns).astype(v.dtype), v)
    return mixed, above, total

  start = (jnp.zeros(q.shape, jnp.float32), jnp.full(BLOCK, layers.MASKED_SCORE, jnp.float32),
           jnp.zeros(BLOCK, jnp.float32))
  mixed, highest, total = jax.lax.fori_loop(meet_ref[0], meet_ref[1], step, start)
  total = jnp.where(total > 0, total, 1.0)
  here = pl.dslice(block * BLOCK, BLOCK)
  triton.store(out_ref.at[here], (mixed / total[:, None]).astype(out_ref.dtype),
               mask=real[:, None])
  triton.store(norm_ref.at[here], highest + jnp.log(total), mask=real)


def _backward_kernel(q_ref, k_ref, v_ref, group_ref, meet_ref, seeds_ref, pull_ref, norm_ref,
                     said_ref, out_ref, *, causal, dropout, length):
  block = pl.program_id(2)
  places, real, q = _take(q_ref, block, length)
  k, v, group, pull, norm, said = (
    _take(ref, block, length)[2]
    for ref in (k_ref, v_ref, group_ref, pull_ref, norm_ref, said_ref))
  own, drop = _Places(places, group), dropout(seeds_ref)
  scale = 1 / math.sqrt(q.shape[1])

  def weigh(a, b, values, others, rows, columns, norm, said):
    """Returns (weights after dropout, gradient of the scores), of a by b."""
    scores, seen = _scores(a, b, rows, columns, causal)
    weights = jnp.where(seen, jnp.exp(scores - norm), 0.0)
    change = drop(_dot(values, others.T), rows, columns)
    return drop(weights, rows, columns), weights * (change - said) * scale

  def of_keys(index, carry):  # keys by queries, so that nothing computed is transposed
    d_k, d_v = carry
    places, _, q = _take(q_ref, index, length)
    group, pull, norm, said = (
      _take(ref, index, length)[2] for ref in (group_ref, pull_ref, norm_ref, said_ref))
    weights, change = weigh(k, q, v, pull, _Places(places, group).across(), own.down(),
                            norm[None, :], said[None, :])
    return d_k + _dot(change.astype(q.dtype), q), d_v + _dot(weights.astype(pull.dtype), pull)

  def of_queries(index, d_q):
    places, _, k = _take(k_ref, index, length)
    v, group = (_take(ref, index, length)[2] for ref in (v_ref, group_ref))
    _, change = weigh(q, k, pull, v, own.down(), _Places(places, group).across(), norm[:, None],
                      said[:, None])
    return d_q + _dot(change.astype(k.dtype), k)

  zeros = jnp.zeros(q.shape, jnp.float32)
  def put(part, values):
    triton.store(out_ref.at[pl.dslice(block * BLOCK, BLOCK), pl.dslice(part, 1)],
                 values[:, None].astype(out_ref.dtype), mask=real[:, None, None])
  d_k, d_v = jax.lax.fori_loop(meet_ref[2], meet_ref[3], of_keys, (zeros, zeros))
  put(1, d_k)
  put(2, d_v)
  put(0, jax.lax.fori_loop(meet_ref[0], meet_ref[1], of_queries, zeros))


class _Places(NamedTuple):
  """Positions of a block and whose they are."""
  place: jax.Array
  group: jax.Array

  def down(self):
    """Returns them along the first of two axes."""
    return _Places(self.place[:, None], self.group[:, None])

  def across(self):
    """Returns them along the second of two axes."""
    return _Places(self.place[None, :], self.group[None, :])


def _take(ref, block, length):
  """Returns (positions of a block, which are there, what `ref` has of them; 0 of the others)."""
  places = block * BLOCK + jnp.arange(BLOCK)
  real = places < length
  mask = real if len(ref.shape) == 1 else real[:, None]
  return places, real, triton.load(ref.at[pl.dslice(block * BLOCK, BLOCK)], mask=mask, other=0)


def _scores(a, b, rows, columns, causal):
  """Returns (float32 a b^T / sqrt(d), which of them count: rows are queries, columns keys)."""
  seen = (rows.group == columns.group) & (columns.group > 0)
  if causal:
    seen = seen & (rows.place >= columns.place)
  scores = _dot(a, b.T) * (1 / math.sqrt(a.shape[1]))
  return jnp.where(seen, scores, layers.MASKED_SCORE), seen


def _dropout(seeds_ref, *, rate, heads, length, period):
  """Returns fn(values, rows, columns) that drops as `layers.Dropout` does in [B, H, T, period]."""
  if not rate:
    return lambda values, rows, columns: values
  seeds = seeds_ref[0], seeds_ref[1]
  head = (pl.program_id(0) * heads + pl.program_id(1)).astype(jnp.uint32) * jnp.uint32(length)

  def drop(values, rows, columns):
    key = columns.place.astype(jnp.uint32)
    if period < length:
      key = key % jnp.uint32(period)
    kept = layers.kept_where(layers.odd_hash(head + rows.place.astype(jnp.uint32), *seeds),
                             layers.odd_hash(key, *seeds[::-1]), rate)
    return jnp.where(kept, values / (1 - rate), 0.0)
  return drop


def _dot(a, b):
  return jnp.dot(a, b, preferred_element_type=jnp.float32)
