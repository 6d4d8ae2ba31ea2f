"""NextItNet and GRec: sizes, what a position sees, padding, patches that start as none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors, models, trees
from recjax.models import nextitnet

N, T, B = 20, 12, 3
SMALL = dict(item_width=16, num_layers=2, dilations=(1, 2), max_len=T)


@functools.cache
def _model(variant="nextitnet", **overrides):
  return models.make("nextitnet", variant=variant, num_items=N, num_users=5, field_rows={},
                     **{**SMALL, **overrides})


@functools.cache
def _params(variant="nextitnet", **overrides):
  """Returns parameters of which none is 0 or 1, so that leaving one out shows."""
  model, rng = _model(variant, **overrides), np.random.default_rng(1)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), **model.example_inputs(), tables={})["params"])
  fill = lambda name, x: rng.normal(float(name.endswith("scale")), 0.3, x.shape).astype(x.dtype)
  return trees.map_names(fill, shapes)


@functools.cache
def _compiled(variant, **overrides):
  return jax.jit(lambda params, items: _model(variant, **overrides).apply(
    {"params": params}, items, jnp.zeros(len(items), jnp.int32), {})[0])


def _run(items, variant="nextitnet", params=None, **overrides):
  params = _params(variant, **overrides) if params is None else params
  return np.asarray(_compiled(variant, **overrides)(params, jnp.asarray(items)))


def _items():
  items = np.random.default_rng(0).integers(1, N + 1, (B, T)).astype(np.int32)
  items[0, :3], items[1, :7] = 0, 0
  return items


@functools.cache
def _shapes(**overrides):
  model = models.make("nextitnet", variant="nextitnet", num_items=N, num_users=5, field_rows={},
                      num_layers=1, **overrides)
  return jax.eval_shape(lambda: model.init(
    jax.random.key(0), **model.example_inputs(), tables={})["params"])


@pytest.mark.parametrize("channels,patch,width,share", [
  (64, "serial_two", None, 2), (64, "parallel", None, 2), (64, "serial_one", None, 1),
  (64, "serial_two", 16, 2), (256, "parallel", None, 2)])
def test_parameters_of_a_block_and_of_its_patches(channels, patch, width, share):
  plain = _shapes(item_width=channels)["encoder"]
  block = trees.count(plain["block_0"])
  assert block == 6 * channels**2 + 6 * channels
  size = width or channels // 8
  patched = _shapes(item_width=channels, patch=patch, patch_width=width)
  added = trees.count(patched["encoder"]["block_0"]) - block
  assert added == share * (2 * channels * size + size + channels)
  if channels == 64:
    assert block == 24_960
    assert added == {(2, 8): 2_192, (1, 8): 1_096, (2, 16): 4_256}[share, size]
  if width is None:  # "less than 10 %", with the second norm, which trains as well
    assert added < 0.1 * block
    rules, _ = trees.match(patched, _model(patch=patch).optim_rules("patch"))
    trained = {n: x for n, x in trees.flatten(patched).items() if n.startswith("encoder/")
               and not rules[n][0].get("freeze")}
    assert trees.count(trained) == added + 2 * channels
    assert trees.count(trained) < 0.1 * trees.count(patched["encoder"])


def _defaults():
  return models.make("nextitnet", variant="nextitnet", num_items=N, num_users=5, field_rows={})


@pytest.mark.parametrize("causal, dilations, reach", [
  (True, None, 121), pytest.param(False, None, 121, marks=pytest.mark.slow),
  pytest.param(True, (1, 2, 4, 8), 91, marks=pytest.mark.slow)])
def test_receptive_field(causal, dilations, reach):
  encoder = nextitnet.Encoder(dilations or _defaults().first_dilations(), dict(
    kernel=3, causal=causal, patch="none", patch_width=1, legacy_inner_skip=False,
    dtype=jnp.dtype("float32")))
  length, at = 140, 130 if causal else 70
  rng, keep = np.random.default_rng(0), jnp.ones((1, length), bool)
  x = rng.normal(size=(1, length, 4)).astype(np.float32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(1), x, keep)
  # Biases of the norms keep every unit alive: nothing but the reach of the kernels ends a path.
  fill = lambda name, p: np.full(p.shape, 4.0 * ("norm" in name), p.dtype) if (
    name.endswith("bias")) else rng.normal(0, 0.5, p.shape).astype(p.dtype)
  params = trees.map_names(fill, shapes)
  moved = jax.jit(jax.grad(lambda x: encoder.apply(params, x, keep)[0][0, at].sum()))(x)
  seen = np.flatnonzero(np.abs(moved[0]).sum(-1))
  first, last = (at - reach + 1, at) if causal else (at - reach // 2, at + reach // 2)
  np.testing.assert_array_equal(seen[[0, -1]], [first, last])


def test_padding_changes_nothing_and_its_row_is_never_read():
  items = _items()
  items[:, :3] = 0
  for variant in ("nextitnet", "grec"):
    whole = _run(items, variant)
    if variant == "grec":  # One of them is enough to compile.
      np.testing.assert_allclose(whole[:, 3:], _run(items[:, 3:], variant), atol=1e-5)
    params = jax.tree.map(np.copy, _params(variant))
    params["embed"]["item"]["embedding"][0] += 100
    other = _run(items, variant, params)
    np.testing.assert_allclose(whole[items > 0], other[items > 0], atol=1e-5)


def test_a_causal_network_sees_the_past_and_the_other_both_sides():
  items = _items()
  other = items.copy()
  other[:, 9] = items[:, 9] % N + 1
  moved = lambda variant: np.abs(_run(items, variant) - _run(other, variant)).max(-1)
  assert (moved("nextitnet")[:, :9] == 0).all() and (moved("nextitnet")[:, 9:11] > 1e-4).all()
  assert (moved("grec")[:, 8:11] > 1e-4).all()


def _unpatched(params):
  return {name: _unpatched(node) if isinstance(node, dict) else node
          for name, node in params.items() if not name.startswith("patch_")}


@pytest.mark.parametrize("patch", [
  "serial_two", pytest.param("serial_one", marks=pytest.mark.slow), "parallel"])
def test_a_fresh_patch_is_identity(patch):
  model, items = _model(patch=patch), _items()
  params = jax.device_get(jax.jit(lambda: model.init(
    jax.random.key(0), **model.example_inputs(), tables={})["params"])())
  params = trees.map_names(lambda name, x: x if "patch_" in name else x + np.float32(0.1), params)
  np.testing.assert_array_equal(_run(items, params=params, patch=patch),
                                _run(items, params=_unpatched(params)))
  used = jax.tree.map(lambda x: x + np.float32(0.1), params)
  assert np.abs(_run(items, params=used, patch=patch)
                - _run(items, params=_unpatched(used))).max() > 1e-3
  if patch == "parallel":  # The released code keeps the patch's inner skip: no identity.
    legacy = _run(items, params=params, patch=patch, legacy_inner_skip=True)
    assert np.abs(legacy - _run(items, params=_unpatched(params))).max() > 1e-3


def test_names_rows_and_modes():
  flat = trees.flatten(_params(patch="serial_two"))
  names = ["embed/item/embedding", "head/scores/bias", "head/scores/kernel"]
  for i in range(2):
    names += [f"encoder/block_{i}/{part}/{leaf}" for k in range(2) for part, leaves in (
      (f"conv_{k}", ("bias", "kernel")), (f"norm_{k}", ("bias", "scale")),
      (f"patch_{k}/down", ("bias", "kernel")), (f"patch_{k}/up", ("bias", "kernel")))
      for leaf in leaves]
  assert sorted(flat) == sorted(names)  # an interface: checkpoints have them
  model = _model(patch="serial_two")
  sizes = {"item": N + 2, "output": N + 1}
  for leaf, (vocabulary, axis) in model.row_tables().items():
    assert flat[leaf].shape[axis] == sizes[vocabulary], leaf
  matched, _ = trees.match(flat, model.transfer_rules("patch"))
  assert {n for n, (source, _) in matched.items() if source} == {
    n for n in flat if not n.startswith("head/") and "patch_" not in n}
  rules, _ = trees.match(flat, model.optim_rules("patch"))
  trained = {n for n, (options, _) in rules.items() if not options.get("freeze")}
  assert trained == {n for n in flat if "patch_" in n or "norm_1" in n or n.startswith("head/")}
  assert model.optim_rules("model") == () and model.transfer_rules("all") is None


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match="model.patch.*lora"):
    _model(patch="lora")
  with pytest.raises(errors.UserError, match="dilations"):
    _model(dilations=())
  with pytest.raises(errors.UserError, match="kernel=2"):
    _model("grec", kernel=2)
