"""Attention in one kernel: what attention written out gives, dropout and gradients included.

The kernel is interpreted here. On an H100 it was run against the same (launch/bench/README.md).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.models import blocks, flash

H, D = 2, 16


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _attend(x, keep, pull, kernel, causal, dropout):
  """Returns (what a layer of attention mixes, its gradient), of the positions that are read."""
  layer = blocks.Attention(H, dropout, "glorot", x.dtype, causal=causal, kernel=kernel)
  params = layer.init(jax.random.key(0), x, keep, train=False)
  def run(x):
    found = layer.apply(params, x, keep, train=True, rngs={"dropout": jax.random.key(1)})
    return jnp.where(keep[..., None], found, 0)
  found, backward = jax.vjp(run, x)
  return found, backward(pull)[0]


@pytest.mark.parametrize("length,causal,dropout", [
  (flash.BLOCK, False, 0.0), (2 * flash.BLOCK + 7, True, 0.3), (flash.BLOCK + 1, False, 0.3)])
def test_flash_is_attention_written_out(length, causal, dropout):
  rng = np.random.default_rng(0)
  x, pull = (jnp.asarray(rng.normal(size=(4, length, H * D)), jnp.float32) for _ in range(2))
  there = np.array([length, flash.BLOCK // 2, 3, 0])  # a row that is nothing but padding, too
  keep = jnp.asarray(np.arange(length) >= length - there[:, None])
  want, found = (_attend(x, keep, pull, kernel, causal, dropout)
                 for kernel in ("written_out", "flash"))
  for a, b in zip(want, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  assert np.abs(want[1]).max() > 0.1


def test_padding_may_have_gaps():
  """What is known of items (FusionBlock) has them."""
  rng = np.random.default_rng(0)
  x, pull = (jnp.asarray(rng.normal(size=(2, 20, H * D)), jnp.float32) for _ in range(2))
  keep = jnp.asarray(rng.random((2, 20)) < 0.5)
  want, found = (_attend(x, keep, pull, kernel, False, 0.2) for kernel in ("written_out", "flash"))
  for a, b in zip(want, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.skipif(flash.triton is None, reason="this jax has no Pallas for Triton")
@pytest.mark.parametrize("causal,dropout", [(False, 0.1), (True, 0.0)])
def test_both_kernels_are_written_for_a_card_that_is_not_there(causal, dropout, monkeypatch):
  """What Triton's language lacks is noticed without one."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  def change(qkv, groups, seeds):
    attend = lambda qkv: flash.attention(qkv, groups, seeds, causal, dropout)
    return jax.grad(lambda qkv: jnp.sum(attend(qkv).astype(jnp.float32)))(qkv)
  inputs = [jax.ShapeDtypeStruct(*what) for what in (
    ((2, flash.BLOCK + 7, 3, H, D), jnp.bfloat16), ((2, flash.BLOCK + 7), jnp.int32),
    ((2,), jnp.uint32))]
  text = jax.jit(change).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
  assert "attention_forward" in text and "attention_backward" in text
