"""Digests of arrays, computed on the devices: the same wherever and however an array is split."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from recjax import hashing
from recjax import trees


def of(tree, split=None):
  """Returns {leaf name: int}: 64 bits that any single changed element is certain to change.

  Args:
    tree: of arrays.
    split: see `true_shapes`.
  """
  flat = {leaf: x for leaf, x in trees.flatten(tree).items() if hasattr(x, "shape")}
  shapes = true_shapes(flat, split)
  # A program a shape and not one for all leaves: parameters and their slots share it, and compiling
  # one for all takes seconds.
  halves = jax.device_get({leaf: _digest(x, shapes[leaf]) for leaf, x in flat.items()})
  return {leaf: int(high) << 32 | int(low) for leaf, (high, low) in halves.items()}


def together(digests):
  """Returns 16 hex digits that stand for {leaf name: digest}, in whatever order."""
  text = json.dumps(digests, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def true_shapes(tree, split):
  """Returns {leaf name: shape} without the rows that pad a table.

  Args:
    tree: of arrays or shapes.
    split: {leaf name: (axis, rows)} of tables that have more, see `partition.split_rows`; or None.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.uint8), tree)
  cut = lambda x, place: jax.ShapeDtypeStruct(
    (*x.shape[:place[0]], place[1], *x.shape[place[0] + 1:]), x.dtype)
  shapes = trees.map_slots(cut, split or {}, shapes)
  return {leaf: x.shape for leaf, x in trees.flatten(shapes).items()}


@functools.partial(jax.jit, static_argnums=1)
def _digest(x, shape):
  return _sum(x, shape, 0x85EBCA6B), _sum(x, shape, 0xC2B2AE35)


def _sum(x, shape, salt):
  """Returns a uint32 sum of hashes of (element, position): the same on any sharding.

  Counted are the elements of `shape`, whatever x has beyond.
  """
  x = jnp.asarray(x)
  size = x.dtype.itemsize
  if x.dtype == jnp.bool_:
    bits = x.astype(jnp.uint32)
  else:
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size])
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = int(np.prod(shape[axis + 1:], dtype=np.int64)) % 2**32
    position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
  # For a fixed position every step is a bijection of the element, so a changed element changes its
  # hash, and the sum with it.
  mixed = (bits.astype(jnp.uint32) ^ (position * jnp.uint32(0x9E3779B1))) + jnp.uint32(salt)
  mixed = hashing.mix(mixed, hashing.LOWBIAS)
  for axis, size in enumerate(shape):
    if size < x.shape[axis]:
      mixed = jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < size, mixed, 0)
  return jnp.sum(mixed, dtype=jnp.uint32)
