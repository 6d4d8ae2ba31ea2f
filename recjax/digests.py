"""Digests of arrays, computed on the devices: the same on any sharding and layout on disk."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from recjax import trees


def of(tree):
  """Returns {leaf name: int}: 64 bits that any single changed element is certain to change."""
  flat = {leaf: x for leaf, x in trees.flatten(tree).items() if hasattr(x, "shape")}
  halves = jax.device_get(_digest_all(flat))
  return {leaf: int(high) << 32 | int(low) for leaf, (high, low) in halves.items()}


def together(digests):
  """Returns 16 hex digits that stand for {leaf name: digest}, in whatever order."""
  text = json.dumps(digests, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@jax.jit
def _digest_all(flat):
  return {leaf: (_digest(x, 0x85EBCA6B), _digest(x, 0xC2B2AE35)) for leaf, x in flat.items()}


def _digest(x, salt):
  """Returns a uint32 sum of hashes of (element, position): the same on any sharding."""
  x = jnp.asarray(x)
  size = x.dtype.itemsize
  if x.dtype == jnp.bool_:
    bits = x.astype(jnp.uint32)
  else:
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size])
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = int(np.prod(x.shape[axis + 1:], dtype=np.int64)) % 2**32
    position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
  # For a fixed position every step is a bijection of the element, so a changed element changes its
  # hash, and the sum with it.
  mixed = (bits.astype(jnp.uint32) ^ (position * jnp.uint32(0x9E3779B1))) + jnp.uint32(salt)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
