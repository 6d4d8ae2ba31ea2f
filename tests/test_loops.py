"""What XLA is told on a CPU changes where numbers are, not what they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import loops
from recjax.models import layers


def test_narrow_rounds_to_the_nearest():
  x = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
  x[0, :6] = [0, -0.0, 1e-30, 3e38, np.inf, -np.inf]
  got = jax.jit(lambda x: loops.narrow(x, jnp.bfloat16))(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, jnp.asarray(x).astype(jnp.bfloat16))
  halfway = jnp.float32(1 + 2**-8)  # between two; away from 0, where the even one is below
  assert loops.narrow(halfway, jnp.bfloat16) == 1 + 2**-7
  assert np.isnan(loops.narrow(jnp.float32(np.nan), jnp.bfloat16))
  assert loops.narrow(x, jnp.float32).dtype == jnp.float32


def test_transposed_has_the_values_of_the_transpose():
  x = jnp.arange(24.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(jax.jit(loops.transposed)(x), jnp.swapaxes(x, 1, 2))
  np.testing.assert_array_equal(
    jax.jit(jax.grad(lambda x: jnp.sum(loops.transposed(x)[..., 0])))(x)[:, 0], 1)


def test_what_is_computed_apart_is_computed_once():
  x = jnp.arange(2000.0).reshape(20, 100)
  square = lambda x: x * x
  def run(square, x):
    y = square(x)
    return jnp.sum(y, 0), y.T * 2, jnp.cumsum(y * 3, 1)  # three loops
  plain = jax.jit(lambda x: run(square, x))
  apart = jax.jit(lambda x: run(lambda x: loops.apart(square, x), x))
  count = lambda f: len(re.findall(r" multiply\((%\S+), \1\)", f.lower(x).compile().as_text()))
  assert count(apart) == 1 < count(plain)
  for a, b in zip(apart(x), plain(x), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("order", [0, 1])
def test_gelu_by_hand_is_that_of_flax(order):
  ours, theirs = layers.gelu_tanh, lambda x: jax.nn.gelu(x, approximate=True)
  x = jnp.linspace(-8, 8, 1001)
  for _ in range(order):
    ours, theirs = (jax.vmap(jax.grad(f)) for f in (ours, theirs))
  np.testing.assert_allclose(ours(x), theirs(x), atol=5e-6)
