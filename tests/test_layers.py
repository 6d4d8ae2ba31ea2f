"""Dropout whose mask is a hash, and the gathering of positions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import partition
from recjax.models import layers, rows

DROP_SHAPE = (64, 50, 40)


@functools.cache
def _drop(rate, sharded=False):
  module = layers.Dropout(rate)
  mesh = partition.make_mesh(4)
  def run(x, key):
    if sharded:
      x = partition.constrain_rows(x, mesh)
    return module.apply({}, x, train=True, rngs={"dropout": key})
  return jax.jit(run)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_rate_and_the_mean(rate):
  out = np.asarray(_drop(rate)(jnp.ones(DROP_SHAPE), jax.random.key(0)))
  kept = out != 0
  np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-6)
  sigma = np.sqrt(rate * (1 - rate))
  assert abs(kept.mean() - (1 - rate)) < 4 * sigma / np.sqrt(kept.size)
  for axis in range(3):  # and so along every axis: no stripes
    others = tuple(a for a in range(3) if a != axis)
    spread = (kept.mean(others) - (1 - rate)) / (sigma / np.sqrt(kept.size / kept.shape[axis]))
    assert np.abs(spread).max() < 5 and 0.5 < spread.std() < 1.6


def test_dropout_masks_are_unrelated():
  masks = [np.asarray(_drop(0.5)(jnp.ones(DROP_SHAPE), jax.random.key(k)) != 0) for k in (0, 1, 2)]
  assert np.array_equal(masks[0], _drop(0.5)(jnp.ones(DROP_SHAPE), jax.random.key(0)) != 0)
  flat = [m.ravel() for m in masks]
  pairs = [(flat[0], flat[1]), (flat[1], flat[2])]  # keys
  pairs += [(m[:-lag], m[lag:]) for m in flat[:1] for lag in (1, 2, 40, 2000)]  # places
  for one, two in pairs:
    assert abs((one == two).mean() - 0.5) < 5 * 0.5 / np.sqrt(one.size)


def test_dropout_is_the_same_on_any_number_of_devices():
  x, key = jnp.ones(DROP_SHAPE), jax.random.key(3)
  sharded = _drop(0.3, sharded=True)(x, key)
  assert len(sharded.sharding.device_set) == 4
  np.testing.assert_array_equal(sharded, _drop(0.3)(x, key))


def test_dropout_is_off_when_not_training_or_zero():
  x = jnp.arange(6.0)
  np.testing.assert_array_equal(layers.Dropout(0.9).apply({}, x, train=False), x)
  np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)


@pytest.mark.parametrize("name,sigma", [("torch", 1.0), ("bert", 0.02 * 0.8796),
                                        ("glorot", np.sqrt(2 / (400 + 50)))])
def test_tables_start_as_wide_as_they_say(name, sigma):
  # 0.8796: the standard deviation of a normal one cut at two sigma.
  table = np.asarray(layers.table_init(name)(jax.random.key(0), (400, 50), jnp.float32))
  assert abs(table.std() / sigma - 1) < 0.03 and abs(table.mean()) < 0.05 * sigma


@pytest.mark.parametrize("kernel, before, dilation", [
  (3, 0, 1), (4, 0, 1), (5, 0, 1), (3, 4, 2), (3, 2, 2)])
def test_convolutions_are_flaxs(kernel, before, dilation):
  x = jax.random.normal(jax.random.key(0), (3, 6, 4))
  start = nn.initializers.lecun_normal()
  ours = layers.Convolution(kernel, before, start, jnp.float32, dilation)
  flaxs = nn.Conv(4, (kernel,), kernel_dilation=(dilation,), kernel_init=start,
                  padding=((before, (kernel - 1) * dilation - before),))
  params = ours.init(jax.random.key(1), x)
  jax.tree.map(np.testing.assert_array_equal, params, flaxs.init(jax.random.key(1), x))
  bias = {"params": {**params["params"], "bias": jnp.arange(4.0)}}
  np.testing.assert_allclose(ours.apply(bias, x), flaxs.apply(bias, x), atol=1e-5)


def test_select_equals_indexing():
  x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
  for shards in (1, 2, 4):
    positions = np.random.default_rng(shards).integers(0, 4 // shards * 5, (shards, 7))
    want = [x.reshape(shards, -1, 3)[s][positions[s]] for s in range(shards)]
    np.testing.assert_array_equal(layers.select(jnp.asarray(x), jnp.asarray(positions)), want)
  with pytest.raises(AssertionError, match="4 rows do not split into 3"):
    layers.select(jnp.asarray(x), jnp.zeros((3, 1), jnp.int32))


def test_select_labeled_gives_zeros_behind_the_last_position():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3)), jnp.float32)
  positions = jnp.asarray([[0, 3, 9, 0, 0], [2, 0, 0, 0, 0]])
  pull = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3)), jnp.float32)
  used = jnp.asarray([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])[..., None]
  found, backward = jax.vjp(lambda x: layers.select_labeled(x, positions), x)
  want, plain = jax.vjp(lambda x: layers.select(x, positions) * used, x)
  np.testing.assert_array_equal(found, want)
  np.testing.assert_array_equal(backward(pull)[0], plain(pull)[0])


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_rows_add_up_in_the_dtype_of_their_table(backend, monkeypatch):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
  ids = jnp.asarray(rng.choice([0, 0, 0, 6, 6, 1, 2, 5], (40, 30)), jnp.int32)
  pull = jnp.asarray(rng.normal(size=(40, 30, 3)), jnp.bfloat16)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  found, backward = jax.vjp(lambda table: rows.take(table, ids, jnp.bfloat16, (0, 6)), table)
  np.testing.assert_array_equal(found, table[ids].astype(jnp.bfloat16))
  want = np.zeros((7, 3))
  np.add.at(want, np.asarray(ids), np.asarray(pull, np.float64))
  np.testing.assert_allclose(backward(pull)[0], want, rtol=1e-5, atol=1e-4)
  assert backward(pull)[0].dtype == jnp.float32
