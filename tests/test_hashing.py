"""Hashes of uint32."""

import jax.numpy as jnp
import numpy as np
import pytest

from recjax import hashing

BOTH = pytest.mark.parametrize("constants", [hashing.LOWBIAS, hashing.LOWER_BIAS])


@BOTH
def test_numpy_and_jax_agree_and_nothing_meets(constants):
  x = np.arange(2**18, dtype=np.uint32) * np.uint32(16411)
  found = hashing.mix(x, constants)
  assert found.dtype == np.uint32
  np.testing.assert_array_equal(found, hashing.mix(jnp.asarray(x), constants))
  assert len(np.unique(found)) == len(x)


@BOTH
def test_every_bit_changes_every_bit_half_of_the_time(constants):
  x = np.random.default_rng(0).integers(2**32, size=20_000, dtype=np.uint32)
  for bit in range(32):
    changed = hashing.mix(x, constants) ^ hashing.mix(x ^ np.uint32(1 << bit), constants)
    shares = [np.mean(changed >> other & 1) for other in range(32)]
    np.testing.assert_allclose(shares, 0.5, atol=0.02)


def test_what_checkpoints_and_epochs_rely_on_stays():
  x = np.array([0, 1, 2, 2**32 - 1], np.uint32)
  np.testing.assert_array_equal(hashing.mix(x, hashing.LOWBIAS),
                                [0, 0x688990C0, 0xD1132181, 0x6768824A])
