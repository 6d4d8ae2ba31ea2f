"""Patches of the transformer: identity at the start, what LoRA merges into, what trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors, models, trees
from recjax.models import patches

N, T, B = 20, 8, 3
SMALL = dict(num_layers=1, item_width=8, heads=2, hidden=16, max_len=T, dropout=0.0)
KINDS = {"bert4rec": dict(name="bert4rec", variant="survey_code", user_width=4),
         "kang": dict(name="sasrec", variant="kang")}


@functools.cache
def _model(kind="bert4rec", **overrides):
  values = {**KINDS[kind], **SMALL, "layout": "rows", **overrides}
  if kind == "bert4rec":
    values["item_width"] = 12
  return models.make(**values, num_items=N, num_users=5, field_rows={})


def _init(kind, overrides):
  model = _model(kind, **overrides)
  return lambda: model.init(jax.random.key(0), **model.example_inputs(), tables={})["params"]


@functools.cache
def _start(kind="bert4rec", **overrides):
  """Returns fresh parameters, of which all but the patches are moved: no bias is 0."""
  params = jax.device_get(jax.jit(_init(kind, overrides))())
  return trees.map_names(lambda name, x: x if "patch_" in name else x + np.float32(0.05), params)


@functools.cache
def _filled(kind="bert4rec", **overrides):
  """Returns parameters of which none is 0, so that leaving one out shows."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype),
                      jax.eval_shape(_init(kind, overrides)))


def _items():
  items = np.random.default_rng(0).integers(1, N + 1, (B, T)).astype(np.int32)
  items[0, :3], items[1, :6] = 0, 0
  return items


@functools.cache
def _compiled(kind, **overrides):
  return jax.jit(lambda params, positions: _model(kind, **overrides).apply(
    {"params": params}, _items(), jnp.arange(1, B + 1), {}, positions=positions)[0])


def _run(params, kind="bert4rec", positions=None, **overrides):
  return np.asarray(_compiled(kind, **overrides)(params, positions))


def _unpatched(params):
  return {name: _unpatched(node) if isinstance(node, dict) else node
          for name, node in params.items() if not name.startswith("patch_")}


@pytest.mark.parametrize("patch", ["adapter", "lora", "prefix"])
def test_a_fresh_patch_is_identity_and_a_used_one_is_not(patch):
  params = _start(patch=patch)
  np.testing.assert_array_equal(_run(params, patch=patch), _run(_unpatched(params)))
  used = _filled(patch=patch)
  assert np.abs(_run(used, patch=patch) - _run(_unpatched(used))).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_lora_merges_into_the_matrices_that_it_stands_beside(kind):
  params = _filled(kind, patch="lora")
  apart = _run(params, kind, patch="lora", patch_scale=0.5)
  merged = patches.merge(params, 0.5)
  assert trees.flatten(merged).keys() == trees.flatten(_unpatched(params)).keys()
  np.testing.assert_allclose(_run(merged, kind), apart, rtol=1e-4, atol=1e-5)


def test_columns_read_lora_and_leave_the_others_to_rows():
  params = _filled(patch="lora")
  positions = np.array([[2, 7], [7, 0], [6, 7]], np.int32)
  rows = _run(params, positions=positions, patch="lora")
  columns = _run(params, positions=positions, patch="lora", layout="columns")
  np.testing.assert_allclose(rows[positions > 0], columns[positions > 0], rtol=1e-4, atol=1e-5)
  with pytest.raises(errors.UserError, match="patch=adapter.*layout"):
    _model(patch="adapter", layout="columns")
  assert not _model(patch="adapter", layout="auto")._in_columns()


def test_what_a_kind_adds_and_trains():
  width = 16
  plain = trees.flatten(_filled())
  def trained(**overrides):
    model, flat = _model(**overrides), trees.flatten(_filled(**overrides))
    rules, _ = trees.match(flat, model.optim_rules("patch"))
    return {n for n, (options, _) in rules.items() if not options.get("freeze")}, flat
  head = {n for n in plain if n.startswith("head/")}
  assert trained()[0] == head
  names, flat = trained(patch="bias")
  assert flat.keys() == plain.keys()
  assert names == head | {n for n in flat if n.endswith("/bias")}
  names, flat = trained(patch="adapter")
  new = flat.keys() - plain.keys()
  assert names == head | new | {n for n in flat if "norm/" in n}
  d = width // 8
  assert sum(flat[n].size for n in new) == 2 * (2 * width * d + d + width)
  names, flat = trained(patch="lora", patch_width=3)
  new = flat.keys() - plain.keys()
  assert names == head | new
  assert sum(flat[n].size for n in new) == 3 * (3 * 2 * width + 2 * width + 2 * (width + 16))
  names, flat = trained(patch="prefix", patch_width=5)
  new = flat.keys() - plain.keys()
  assert names == head | new and sum(flat[n].size for n in new) == 2 * 5 * width


def test_a_tied_table_scores_and_so_it_trains():
  rules, _ = trees.match(_filled("kang", patch="lora"), _model("kang", patch="lora").optim_rules(
    "patch"))
  trained = {n for n, (options, _) in rules.items() if not options.get("freeze")}
  assert "embed/item/embedding" in trained and "embed/item_pos/embedding" not in trained


@pytest.mark.parametrize("patch", ["none", "lora", "bias"])
def test_modes_leave_patches_and_head_fresh(patch):
  flat = trees.flatten(_filled(patch=patch))
  for mode in ("model", "patch"):
    matched, _ = trees.match(flat, _model(patch=patch).transfer_rules(mode))
    assert {n for n, (source, _) in matched.items() if source} == {
      n for n in flat if not n.startswith("head/") and "patch_" not in n}
