"""DUPN: the gated LSTM is an LSTM, attention ignores padding, tasks share all but their heads."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_responses

from recjax import errors, experiment, results, train, trees
from recjax.models import dupn, layers

PRETRAIN = {"click": 1.0, "price_preference": 0.5}
FROZEN = "(embed|lstm|attention)/.*"


@functools.cache
def _cell():
  """Returns (function, params, x [2, 5, 3], properties [2, 5, 2], keep) of a PropertyLSTM."""
  keys = jax.random.split(jax.random.key(0), 3)
  cell = dupn.PropertyLSTM(4, jnp.float32)
  x, properties = jax.random.normal(keys[0], (2, 5, 3)), jax.random.normal(keys[1], (2, 5, 2))
  keep = jnp.array([[True] * 5, [False, False, True, True, True]])
  params = jax.jit(cell.init)(keys[2], x, properties, keep)["params"]
  params["bias"] = jax.random.normal(keys[2], (4, 4))
  return jax.jit(cell.apply), params, x, properties, keep


def test_without_properties_it_is_a_standard_lstm():
  apply, params, x, properties, keep = _cell()
  blind = {**params, "property": jnp.zeros_like(params["property"])}
  found = apply({"params": blind}, x, properties, keep)
  alone = {name: value for name, value in params.items() if name != "property"}
  np.testing.assert_array_equal(found, apply({"params": alone}, x, None, keep))
  theirs = {}
  for place, gate in enumerate("ifog"):
    theirs[f"i{gate}"] = {"kernel": params["kernel"][place]}
    theirs[f"h{gate}"] = {"kernel": params["recurrent"][place], "bias": params["bias"][place]}
  standard = jax.jit(nn.OptimizedLSTMCell(4).apply)
  carry, states = (jnp.zeros((2, 4)),) * 2, []
  for step in range(5):
    carry, state = standard({"params": theirs}, carry, x[:, step])
    states.append(state)
  np.testing.assert_allclose(found[0], np.stack(states, 1)[0], atol=1e-6)
  carry = (jnp.zeros((2, 4)),) * 2
  for step in range(2, 5):  # The second row begins after its padding.
    carry, state = standard({"params": theirs}, carry, x[:, step])
  np.testing.assert_allclose(found[1, -1], state[1], atol=1e-6)


def test_gates_see_the_property_and_the_cell_does_not():
  apply, params, x, properties, keep = _cell()
  assert sum(value.size for value in params.values()) == 3 * (3 + 2 + 4) * 4 + (3 + 4) * 4 + 4 * 4
  seen = apply({"params": params}, x, properties, keep)
  assert not np.allclose(seen, apply({"params": params}, x, -properties, keep))
  # With an input that closes the cell, tanh(0) = 0, no property can open anything.
  silent = {**params, **{name: value.at[3].set(0) for name, value in params.items()
                         if name != "property"}}
  assert not np.asarray(apply({"params": silent}, x, properties, keep)).any()


def test_attention_adds_up_to_one_and_ignores_padding():
  keys = jax.random.split(jax.random.key(1), 6)
  attention = dupn.Attention(4, jnp.float32)
  arrays = [jax.random.normal(key, shape) for key, shape in zip(
    keys, ((3, 5, 4), (3, 2, 3), (3, 2), (3, 5, 2)), strict=False)]
  keep = jnp.array([[True] * 5, [False, False, True, True, True], [False] * 5])
  params, apply = jax.jit(attention.init)(keys[4], *arrays, keep), jax.jit(attention.apply)
  found = np.asarray(apply(params, *arrays, keep))
  assert found.shape == (3, 2, 5) and not found[2].any() and not found[1, :, :2].any()
  np.testing.assert_allclose(found[:2].sum(-1), 1, rtol=1e-6)
  assert not np.allclose(found[:, 0], found[:, 1])  # another query, other weights
  states, query, user, properties = arrays
  other = apply(params, states.at[1, :2].add(9), query, user,
                properties.at[1, :2].add(9), keep)
  np.testing.assert_allclose(found, other, atol=1e-6)


@functools.cache
def _model():
  """Returns (experiment of the pre-training tasks, parameters)."""
  exp = experiment.build(tiny_responses.config(PRETRAIN, model=tiny_responses.dupn()))
  rng = np.random.default_rng(0)
  return exp, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32),
                           exp.params_shapes())


def test_padding_changes_nothing():
  exp, params = _model()
  items = jnp.array([[3, 4, 5, 6], [0, 0, 7, 8]])
  properties = {name: jnp.array([[1, 2, 3, 1], [0, 0, 2, 2]]) for name in ("rating", "gap", "hour")}
  inputs = {"users": jnp.array([1, 2]), "targets": jnp.array([[9, 10], [11, 12]])}
  ask = jax.jit(lambda items, properties: exp.apply_fn(
    params, {**inputs, "items": items, "properties": properties}, None))
  pad = lambda x, value: jnp.concatenate([jnp.full((2, 3), value), x], axis=1)
  found = ask(items, properties)
  assert found["click"].shape == (2, 2) and found["price_preference"].shape == (2, 4)
  longer = ask(pad(items, 0), {name: pad(x, 0) for name, x in properties.items()})
  noisy = ask(pad(items, 0), {name: pad(x, 2) for name, x in properties.items()})
  for name in found:
    np.testing.assert_allclose(found[name], longer[name], atol=1e-6)
    np.testing.assert_array_equal(longer[name], noisy[name])
  empty = ask(jnp.zeros_like(items), properties)
  assert all(np.isfinite(x).all() for x in empty.values())


def test_parameters_have_the_names_that_checkpoints_depend_on():
  exp, params = _model()
  names = trees.flatten(params)
  assert {name.rpartition("/")[0] for name in names if not name.startswith("head/")} == {
    *(f"embed/{table}" for table in ("item", "genre", "user", "property_rating", "property_gap",
                                     "property_hour", "profile_group")),
    "lstm", "attention", *(f"attention/{part}" for part in (
      "state", "query", "user", "property", "score"))}
  assert {name.split("/")[1] for name in names if name.startswith("head/")} == set(PRETRAIN)
  assert names["head/price_preference/scores/kernel"].shape == (5, tiny_responses.DECADES)
  assert exp.rows()["profile/group"].names.tolist() == [b"even", b"odd"]
  tables = {leaf for leaf in exp.model.row_tables()}
  assert tables <= set(names) and not any(leaf.startswith("head/") for leaf in tables)
  with pytest.raises(errors.UserError, match="model.profile"):
    experiment.build(tiny_responses.config(PRETRAIN, model=tiny_responses.dupn(
      profile=(("income", 2),))))


def test_heads_are_mlps_with_one_output_a_class():
  heads = layers.Heads((("click", 0), ("shop", 3)), (5,), 0.0, jnp.float32)
  x = jnp.ones((2, 4, 6))
  ask = lambda self, x: (self("click", x, train=False), self("shop", x, train=False))
  (click, shop), params = jax.eval_shape(lambda: heads.init_with_output(
    jax.random.key(0), x, method=ask))
  assert click.shape == (2, 4) and shop.shape == (2, 4, 3)
  assert trees.count(params["params"]) == 2 * (6 * 5 + 5) + (5 + 1) + (5 * 3 + 3)


@functools.cache
def _pretrained():
  workdir = tiny.root() / "dupn"
  config = tiny_responses.config(PRETRAIN, model=tiny_responses.dupn())
  return workdir, train.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_tasks_are_trained_at_once_and_reported_apart():
  workdir, report = _pretrained()
  assert set(report["test"]) == set(PRETRAIN)
  assert 0 < report["test"]["click"]["auc"] < 1
  assert set(report["references"]) == {"item_bias", "item_user_bias", "majority",
                                       "personal_frequency"}
  assert "click" in report["slices"]["popularity"]["head"]["test"]
  row = next(row for row in tiny.metric_rows(workdir).values() if row["split"] == "train")
  assert {f"{task}/loss" for task in PRETRAIN} <= set(row)
  text = results.summary(report)
  assert "click, context train" in text and "personal_frequency" in text


def test_a_new_task_takes_over_all_but_the_head():
  source, _ = _model()
  target = experiment.build(tiny_responses.config({"shop_preference": 1.0}, "tgt",
                                                  model=tiny_responses.dupn()))
  for mode, carried in (("model", {"embed", "lstm", "attention"}), ("embedding", {"embed"})):
    plan = tiny_responses.plan(source, target, mode)
    assert {e.target.split("/")[0] for e in plan if e.source} == carried
    assert {e.target.split("/")[0] for e in plan if not e.source} == {
      "embed", "lstm", "attention", "head"} - carried
    assert all(e.source in (None, e.target) for e in plan)
  users = next(e for e in plan if e.target == "embed/user/embedding")
  assert users.vocabulary == "user" and np.sum(users.rows >= 0) == 50


@pytest.mark.slow
def test_what_is_frozen_does_not_move():
  source, pretrained = _pretrained()
  config = tiny_responses.config({"shop_preference": 1.0}, "tgt", model=tiny_responses.dupn(), **{
    "transfer.checkpoint": str(source), "transfer.mode": "model", "transfer.freeze": FROZEN})
  workdir = tiny.root() / "dupn_shop"
  report = train.train_and_evaluate(config, workdir)
  assert set(report["test"]) == {"shop_preference"}
  entries = {e["target"]: e for e in results.json.loads(
    (workdir / "restore_report.json").read_text())["leaves"]}
  for leaf, entry in entries.items():
    assert (entry["source"] == "fresh") == leaf.startswith("head/") != (not entry["trainable"])
  old, new = tiny.state(source, pretrained["run"]["best_step"]), tiny.state(workdir)
  frozen = [leaf for leaf in entries if leaf.startswith(("lstm/", "attention/"))]
  assert frozen and all(np.array_equal(old[f"params/{leaf}"], new[f"params/{leaf}"])
                        for leaf in frozen)


@pytest.mark.slow
def test_resuming_is_not_stopping(tmp_path, monkeypatch):
  config = tiny_responses.config(PRETRAIN, model=tiny_responses.dupn())
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  tiny.stop_at(monkeypatch, 4, kill)
  with pytest.raises(Killed):
    train.train_and_evaluate(config, tmp_path / "run")
  train.train_and_evaluate(config, tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", _pretrained()[0])
