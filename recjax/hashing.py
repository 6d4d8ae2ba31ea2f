"""Hashes of uint32, numpy or jax: what is random by place or name, without a generator's state."""

import numpy as np

# Shifts and factors that C. Wellons' hash-prospector found to be least biased. The digests of a
# checkpoint and the order of an epoch need theirs as they are.
LOWBIAS = (16, 0x7FEB352D, 15, 0x846CA68B, 16)
LOWER_BIAS = (16, 0x21F0AAAD, 15, 0xD35A2D97, 15)


def mix(x, constants=LOWER_BIAS):
  """Returns a bijection of uint32 x that scatters neighboring inputs (xorshift-multiply)."""
  first, by, second, then, last = constants
  x = (x ^ (x >> first)) * np.uint32(by)
  x = (x ^ (x >> second)) * np.uint32(then)
  return x ^ (x >> last)
