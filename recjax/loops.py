"""What XLA is told about the loops that it makes on a CPU; launch/bench/README.md has times."""

import jax
import jax.numpy as jnp
from jax.experimental import layout
from jax.experimental import xla_metadata


def narrow(x, dtype):
  """Returns float32 x in `dtype`, as products read it, rounded to nearest.

  By bits, where that is bfloat16: in a loop with XLA's own conversion LLVM uses vectors of half
  the width.
  """
  return read(rounded(x, dtype))


def rounded(x, dtype):
  """Returns `narrow` of x as `read` takes it: bfloat16 as its bits, uint16."""
  if (jnp.dtype(dtype) != jnp.bfloat16 or x.dtype == jnp.bfloat16
      or jax.default_backend() != "cpu"):
    return x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return ((bits + jnp.uint32(0x8000)) >> 16).astype(jnp.uint16)


def read(x):
  """Returns what `rounded` made of x as numbers."""
  return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def in_memory(x):
  """Returns x, laid out as its shape says.

  XLA would rather swap strides than move values, but its fast products read bfloat16 in order
  only: others are made in float32, at half the speed, or (jax 0.10) not at all.
  """
  if jax.default_backend() != "cpu":
    return x
  return layout.with_layout_constraint(x, layout.Layout(major_to_minor=tuple(range(x.ndim))))


def transposed(x):
  """Returns x with its last two axes swapped, in memory too."""
  return in_memory(jnp.swapaxes(x, -1, -2))


def apart(fn, *args):
  """Returns fn(*args), computed once: else XLA would do so again in every loop that reads it.

  Nor is it kept from the forward pass for the backward one, where both compute it.
  """
  if jax.default_backend() != "cpu":
    return fn(*args)
  inlined = lambda value: xla_metadata.set_xla_metadata(inlineable=value)
  with inlined("false"):
    return jax.jit(inlined("true")(fn))(*args)


def zeros(fn, *args):
  """Returns zeros like fn(*args), where a loop that adds such results up begins."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, *args))
