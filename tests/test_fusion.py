"""ERNIE's layers: what they compute, that nothing leaks, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax.models import blocks, features, transformer

B, T, N, W, E = 3, 6, 20, 8, 4
BLOCK = dict(heads=2, hidden=16, dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0,
             output_dropout=0.0)
TABLES = {"feature/kg": jax.random.normal(jax.random.key(5), (N + 2, 3)),
          "feature/kg/known": jnp.ones(N + 2, bool)}
ITEMS = jnp.asarray([[0, 0, 3, 4, 5, N + 1], [1, 2, 3, N + 1, 7, 8], [0, 0, 0, 0, 0, 9]], jnp.int32)


def _inputs():
  keys = jax.random.split(jax.random.key(0), 2)
  x, entities = (jax.random.normal(key, (B, T, width)) for key, width in zip(keys, (W, E)))
  return x, jnp.ones((B, T), bool), entities


def _start(block, *inputs):
  return jax.jit(functools.partial(block.init, train=False))(jax.random.key(1), *inputs)["params"]


def _model(**fields):
  fields = {**dict(num_items=N, num_users=2, item_width=W, user_width=0, num_layers=3, heads=2,
                   hidden=16, max_len=T, dropout=0.0, aggregate="fusion", output="tied",
                   features=(features.Spec("kg", "given", 3, 0),)), **fields}
  return transformer.SequenceTransformer(**fields)


def _scores(model, params, tables=TABLES):
  return _apply(model)(params, tables)


@functools.cache
def _apply(model):
  return jax.jit(lambda params, tables: model.apply(
    params, ITEMS, jnp.zeros(B, jnp.int32), tables)[0])


@functools.cache
def _params(**fields):
  model = _model(**fields)
  return model, jax.jit(model.init)(jax.random.key(1), ITEMS, jnp.zeros(B, jnp.int32), TABLES)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_both_streams_leave_through_one_hidden_vector(norm):
  x, keep, entities = _inputs()
  known = jnp.asarray(np.arange(B * T).reshape(B, T) % 3 > 0)
  block = blocks.FusionBlock(**BLOCK, norm=norm, act="relu")
  params = _start(block, x, keep, entities, known)
  for name in ("attention", "entity_attention"):  # attention adds nothing: Eq. 4 alone is left
    params[name]["out"] = jax.tree.map(jnp.zeros_like, params[name]["out"])
  got = jax.jit(functools.partial(block.apply, train=False))(
    {"params": params}, x, keep, entities, known)

  def normed(y):
    return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  linear = lambda name, y: y @ params[name]["kernel"] + params[name]["bias"]
  if norm == "post":
    x, entities = normed(x), normed(entities)
  read = normed if norm == "pre" else lambda y: y
  hidden = np.maximum(linear("up", read(x)) + np.where(
    known[..., None], linear("entity_up", read(entities)), 0), 0)
  want = x + linear("down", hidden), entities + linear("entity_down", hidden)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b if norm == "pre" else normed(b), atol=1e-5)


def test_where_nothing_is_known_it_is_the_plain_layer():
  x, keep, entities = _inputs()
  nothing = jnp.zeros((B, T), bool)
  block = blocks.FusionBlock(**BLOCK, last=True)
  params = _start(block, x, keep, entities, nothing)
  assert "entity_down" not in params  # the last layer's entities would be asked for by nobody
  got, rest = block.apply({"params": params}, x, keep, entities, nothing, train=False)
  assert rest is None
  plain = {name: params[name] for name in ("attention", "attention_norm", "mlp_norm")}
  plain["mlp"] = {name: params[name] for name in ("up", "down")}
  want = blocks.Block(**BLOCK).apply({"params": plain}, x, keep, train=False)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_is_hidden_does_not_leak_and_what_is_seen_counts():
  model, params = _params()
  before = _scores(model, params)
  hidden = {**TABLES, "feature/kg": TABLES["feature/kg"].at[N + 1].add(1.0).at[0].add(1.0)}
  np.testing.assert_array_equal(_scores(model, params, tables=hidden), before)
  seen = {**TABLES, "feature/kg": TABLES["feature/kg"].at[3].add(1.0)}
  changed = np.abs(_scores(model, params, tables=seen) - before).max(-1) > 1e-6  # [B, T]
  assert changed[:2, 2:].all() and not changed[2].any()


def test_causal_layers_read_no_entity_of_the_future():
  model, params = _params(causal=True)
  before = _scores(model, params)
  after = _scores(model, params, tables={
    **TABLES, "feature/kg": TABLES["feature/kg"].at[5].add(1.0)})
  changed = np.abs(after - before).max(-1) > 1e-6
  assert changed[0, 2:].tolist() == [False, False, True, True]  # 3, 4, 5 and MASK


@pytest.mark.optimized
def test_every_parameter_is_used_and_remat_changes_nothing():
  model, params = _params()
  blocks_of = params["params"]["encoder"]
  assert "entity_up" not in blocks_of["block_0"] and "entity_down" in blocks_of["block_1"]
  assert "entity_up" in blocks_of["block_2"] and "entity_down" not in blocks_of["block_2"]
  gradients = lambda model: jax.jit(jax.grad(
    lambda params: (_scores(model, params)[:, -1, 1:] ** 3).mean()))(params)
  grads = gradients(model)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    # All of them are known.
    if "missing" not in str(path):
      assert np.abs(leaf).max() > 0, path
  again = gradients(model.clone(remat=True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, again)


def test_embedding_transfer_carries_what_projects_the_vectors():
  model, _ = _params()
  model.check()
  assert any("features/kg" in source for source, _ in model.transfer_rules("embedding"))


@pytest.mark.parametrize("fields,message", [
  (dict(features=()), "wants model.features"),
  (dict(item_dropout=0.1), "item_dropout"),
  (dict(norm="query"), "norm=pre or post"),
  (dict(fusion_blocks=4), "fusion_blocks from 1 to num_layers=3"),
  (dict(layout="columns"), "aggregate=fusion is not there in columns")])
def test_refusals(fields, message):
  with pytest.raises(errors.UserError, match=message):
    _model(**fields).check()
