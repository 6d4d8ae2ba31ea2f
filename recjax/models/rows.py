"""Rows of a table of vectors, and their gradient.

Letters: R rows, W width.
"""

import functools

import jax
import jax.numpy as jnp

from recjax import loops


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def take(table, ids, dtype, often=()):
  """Returns the rows of `ids`, [..., W], in `dtype`; the gradient adds up in the table's own.

  Args:
    table: [R, W].
    ids: int32 [...], 0..R-1.
    dtype: of what comes back.
    often: ids, such as padding and MASK, that stand in a large share of all places. A GPU adds up
      by atomic additions, which wait for each other where they meet: these are summed apart.
  """
  # Apart: a loop that also computes something of what it gathers does so value by value.
  return loops.apart(lambda table, ids: jnp.take(table, ids, axis=0), table, ids).astype(dtype)


def _forward(table, ids, dtype, often):
  return take(table, ids, dtype, often), (table, ids)


def _backward(dtype, often, kept, pull):
  del dtype
  table, ids = kept
  ids, pull = ids.ravel(), pull.reshape(-1, table.shape[1]).astype(table.dtype)
  zeros = jnp.zeros_like(table)
  if jax.default_backend() != "gpu":
    return zeros.at[ids].add(pull), None
  apart = jnp.isin(ids, jnp.array(often, ids.dtype))
  sums = zeros.at[jnp.where(apart, len(table), ids)].add(pull, mode="drop")
  for one in often:
    sums = sums.at[one].set(jnp.sum(jnp.where((ids == one)[:, None], pull, 0), 0), mode="drop")
  return sums, None


take.defvjp(_forward, _backward)
