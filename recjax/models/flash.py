"""Attention of a sequence in one kernel, forward and backward, with dropout on its weights.

Scores never leave the processor (Dao et al. 2022, FlashAttention): forward keeps the log of each
query's sum of exponentials, backward computes scores and dropout once more. It is the product of
`blocks.Attention` written out, with the same dropout, place by place. cuDNN's kernel has no dropout
that a key decides.

Sequences are left-padded. Blocks of keys that are padding are passed over, and so are blocks of
queries, which nobody reads: they give 0 where the written out form gives some mixture.

A GPU runs it by Triton; elsewhere it is interpreted, which is for tests.

Letters: B batch, T positions, H heads, d width of a head (a power of 2 from 16 on).
"""

import functools
import math

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


def missing(width):
  """Returns why heads of this width cannot be computed, or None."""
  if triton is None:
    return f"jax {jax.__version__} has no Pallas for Triton"
  if width < NARROWEST or width & (width - 1):
    return f"heads must be 16, 32, 64, ... wide, and are {width}"
  return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attention(qkv, keep, seeds, causal, rate):
  """Returns softmax(Q K^T / sqrt(d)) V, [B, T, H, d].

  Args:
    qkv: [B, T, 3, H, d], queries, keys and values.
    keep: bool [B, T], False at what nobody reads: padding, before everything else, and gaps.
    seeds: uint32 [2] of dropout, see `layers.kept`.
    causal: whether a position reads itself and those before it only.
    rate: of dropout on the weights.
  """
  return _forward(qkv, keep, seeds, causal, rate)[0]


def _forward(qkv, keep, seeds, causal, rate):
  batch, length, _, heads, width = qkv.shape
  out, norm = _call(
    _forward_kernel, "attention_forward", (qkv, keep, seeds), causal=causal, rate=rate,
    out={"head": jax.ShapeDtypeStruct((batch, length, heads, width), qkv.dtype),
         "norm": jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)})
  return out, (qkv, keep, seeds, out, norm)


def _backward(causal, rate, kept, pull):
  qkv, keep, seeds, out, norm = kept
  said = jnp.sum(pull.astype(jnp.float32) * out.astype(jnp.float32), -1).transpose(0, 2, 1)
  d_qkv, = _call(
    _backward_kernel, "attention_backward", (qkv, keep, seeds), ("head", pull), ("norm", norm),
    ("norm", said), causal=causal, rate=rate,
    out={"all": jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)})
  return d_qkv, None, None


attention.defvjp(_forward, _backward)


def _call(kernel, name, inputs, *more, out, causal, rate):
  """Runs a kernel, a program a sequence, a head and a block; returns what it writes.

  Args:
    kernel: of those below.
    name: its name in a trace.
    inputs: (qkv, keep, seeds), which every kernel reads.
    *more: (how a program sees it, array) of what else it reads.
    out: {how a program sees it: shape} of what it writes.
    causal: see `attention`.
    rate: likewise.
  """
  qkv, keep, seeds = inputs
  batch, length, _, heads, width = qkv.shape
  part = lambda number: pl.BlockSpec(
    (None, length, None, None, width), lambda b, h, i: (b, 0, number, h, 0))
  seen = {"all": pl.BlockSpec((None, length, 3, None, width), lambda b, h, i: (b, 0, 0, h, 0)),
          "head": pl.BlockSpec((None, length, None, width), lambda b, h, i: (b, 0, h, 0)),
          "norm": pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0))}
  specs = [*map(part, range(3)), pl.BlockSpec((None, length), lambda b, h, i: (b, 0)),
           pl.BlockSpec((1,), lambda b, h, i: (b,)), pl.BlockSpec((2,), lambda b, h, i: (0,))]
  return pl.pallas_call(
    functools.partial(kernel, causal=causal, rate=rate, heads=heads, length=length), name=name,
    grid=(batch, heads, pl.cdiv(length, BLOCK)), in_specs=[*specs, *(seen[how] for how, _ in more)],
    out_specs=[seen[how] for how in out], out_shape=list(out.values()), **_compiler())(
      qkv, qkv, qkv, keep.astype(jnp.int32), _first(keep), seeds, *(array for _, array in more))


def _compiler():
  if jax.default_backend() != "gpu":
    return dict(interpret=True)
  return dict(compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))


def _first(keep):
  """Returns int32 [B], the first position that is none of padding; T where there is none."""
  return jnp.where(keep.any(1), jnp.argmax(keep, 1), keep.shape[1]).astype(jnp.int32)


def _forward_kernel(q_ref, k_ref, v_ref, keep_ref, first_ref, seeds_ref, out_ref, norm_ref, *,
                    causal, rate, heads, length):
  block, first = pl.program_id(2), first_ref[0]
  rows, real, q = _take(q_ref, block, length)
  drop = _dropout(seeds_ref, rate, heads, length)

  def step(index, carry):
    mixed, highest, total = carry
    columns, _, k = _take(k_ref, index, length)
    v = _take(v_ref, index, length)[2]
    scores, seen = _scores(q, k, rows, columns, _take(keep_ref, index, length)[2], causal)
    above = jnp.maximum(highest, jnp.max(scores, 1))
    shrink = jnp.exp(highest - above)
    weights = jnp.where(seen, jnp.exp(scores - above[:, None]), 0.0)
    total = total * shrink + jnp.sum(weights, 1)
    mixed = mixed * shrink[:, None] + _dot(drop(weights, rows, columns).astype(v.dtype), v)
    return mixed, above, total

  start = (jnp.zeros(q.shape, jnp.float32), jnp.full(BLOCK, layers.MASKED_SCORE, jnp.float32),
           jnp.zeros(BLOCK, jnp.float32))
  mixed, highest, total = jax.lax.fori_loop(
    *_keys(block, first, causal, length), step, start)
  total = jnp.where(total > 0, total, 1.0)
  here = pl.dslice(block * BLOCK, BLOCK)
  triton.store(out_ref.at[here], (mixed / total[:, None]).astype(out_ref.dtype),
               mask=real[:, None])
  triton.store(norm_ref.at[here], highest + jnp.log(total), mask=real)


def _backward_kernel(q_ref, k_ref, v_ref, keep_ref, first_ref, seeds_ref, pull_ref, norm_ref,
                     said_ref, out_ref, *, causal, rate, heads, length):
  block, first = pl.program_id(2), first_ref[0]
  own, real, q = _take(q_ref, block, length)
  k, v, keep = (_take(ref, block, length)[2] for ref in (k_ref, v_ref, keep_ref))
  drop = _dropout(seeds_ref, rate, heads, length)
  scale = 1 / math.sqrt(q.shape[1])

  def weigh(q, k, v, keep, rows, columns, pull, norm, said):
    """Returns (weights after dropout, gradient of the scores), [queries, keys]."""
    scores, seen = _scores(q, k, rows, columns, keep, causal)
    weights = jnp.where(seen & (rows < length)[:, None], jnp.exp(scores - norm[:, None]), 0.0)
    change = drop(_dot(pull, v.T), rows, columns)
    return drop(weights, rows, columns), weights * (change - said[:, None]) * scale

  def query(index):
    rows, _, q = _take(q_ref, index, length)
    return rows, q, _take(pull_ref, index, length)[2], *(
      _take(ref, index, length)[2] for ref in (norm_ref, said_ref))

  def of_keys(index, carry):
    d_k, d_v = carry
    rows, q, pull, norm, said = query(index)
    weights, change = weigh(q, k, v, keep, rows, own, pull, norm, said)
    return (d_k + _dot(change.T.astype(q.dtype), q),
            d_v + _dot(weights.T.astype(pull.dtype), pull))

  def of_queries(index, d_q):
    columns, _, k = _take(k_ref, index, length)
    v, keep = (_take(ref, index, length)[2] for ref in (v_ref, keep_ref))
    _, change = weigh(q, k, v, keep, own, columns, pull, norm, said)
    return d_q + _dot(change.astype(k.dtype), k)

  zeros = jnp.zeros(q.shape, jnp.float32)
  def put(part, values):
    triton.store(out_ref.at[pl.dslice(block * BLOCK, BLOCK), pl.dslice(part, 1)],
                 values[:, None].astype(out_ref.dtype), mask=real[:, None, None])
  d_k, d_v = jax.lax.fori_loop(*_queries(block, first, causal, length), of_keys, (zeros, zeros))
  put(1, d_k)
  put(2, d_v)
  _, _, pull, norm, said = query(block)
  put(0, jax.lax.fori_loop(*_keys(block, first, causal, length), of_queries, zeros))


def _take(ref, block, length):
  """Returns (positions of a block, which are there, what `ref` has of them; 0 of the others)."""
  places = block * BLOCK + jnp.arange(BLOCK)
  real = places < length
  mask = real if len(ref.shape) == 1 else real[:, None]
  return places, real, triton.load(ref.at[pl.dslice(block * BLOCK, BLOCK)], mask=mask, other=0)


def _scores(q, k, rows, columns, keep, causal):
  """Returns (float32 [queries, keys], which of them count)."""
  seen = jnp.broadcast_to((keep > 0)[None, :], (BLOCK, BLOCK))
  if causal:
    seen = seen & (rows[:, None] >= columns[None, :])
  scores = _dot(q, k.T) * (1 / math.sqrt(q.shape[1]))
  return jnp.where(seen, scores, layers.MASKED_SCORE), seen


def _dropout(seeds_ref, rate, heads, length):
  """Returns fn(values, rows, columns) that drops as `layers.Dropout` does in [B, H, T, T]."""
  if not rate:
    return lambda values, rows, columns: values
  seeds = seeds_ref[0], seeds_ref[1]
  head = (pl.program_id(0) * heads + pl.program_id(1)).astype(jnp.uint32) * jnp.uint32(length)

  def drop(values, rows, columns):
    ids = (head + rows.astype(jnp.uint32))[:, None] * jnp.uint32(length) + columns.astype(
      jnp.uint32)[None, :]
    return jnp.where(layers.kept_ids(ids, seeds, rate), values / (1 - rate), 0.0)
  return drop


def _keys(block, first, causal, length):
  """Returns (from, to): blocks of keys that a block of queries reads; none, if all are padding."""
  end = block + 1 if causal else pl.cdiv(length, BLOCK)
  return jnp.where((block + 1) * BLOCK <= first, end, first // BLOCK), end


def _queries(block, first, causal, length):
  """Returns (from, to): blocks of queries that read a block of keys."""
  end = pl.cdiv(length, BLOCK)
  start = jnp.maximum(block, first // BLOCK) if causal else first // BLOCK
  return jnp.where((block + 1) * BLOCK <= first, end, start), end


def _dot(a, b):
  return jnp.dot(a, b, preferred_element_type=jnp.float32)
