"""Tables split over the model axis: the same numbers on any mesh, and no device has them whole."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mesh_runs
import numpy as np
import pytest
import tiny

from launch.bench import scaling
from recjax import checkpoint as checkpoint_lib
from recjax import evaluate as evaluate_lib
from recjax import (
  catalog,
  collective,
  errors,
  experiment,
  models,
  optim,
  partition,
  recommend,
  train,
  trees,
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
S, C, W, N = 2, 5, 4, 150  # ids 0..N, of a table of N + 2


# The catalog.


def _asked(table, x, bias, ids, labels, barred, *, axis):
  """Returns everything that is asked of Scores [S, C], as a tree."""
  scores = catalog.Scores(x, table, bias, axis, N + 1)
  picked, total = scores.against_all(labels)
  best = catalog.top(scores, 7, jnp.arange(N + 1) % 9 > 0, barred)
  out = {"picked": picked, "partition": total, "of_each": scores.of(ids), "all": scores.all(),
         "of_run": scores.of(ids[:, :1]), "best": best[0],
         "without": scores.without(jnp.arange(N + 2) % 5 == 3).against_all(labels)[1]}
  if not axis:
    out["rows"] = table[ids] if len(table) == N + 2 else collective.look_up(table, ids)
  return out, best[1]


def _outcome(devices, model_devices, axis):
  """Returns ((value, answers), gradients) of a sum of all answers."""
  rng = np.random.default_rng(0)
  table = rng.normal(size=(N + 2, W)).astype(np.float32)
  params = {"table": table.T if axis else table, "bias": rng.normal(size=N + 2).astype(np.float32)}
  rows = (rng.normal(size=(4 * S, C, W)).astype(np.float32), rng.integers(0, N + 1, (4 * S, C, 3)),
          rng.integers(0, N + 1, (4 * S, C)), rng.integers(0, N + 1, (4 * S, C, 2)))
  mesh = partition.make_mesh(devices, model_devices)
  split = partition.split_rows(params, {"table": axis, "bias": 0}, mesh)
  padded = partition.pad_rows(params, split, mesh)
  specs = partition.specs(padded, split)

  def total(params, x, ids, labels, barred):
    out, names = _asked(params["table"], x, params["bias"], ids, labels, barred, axis=axis)
    trained = {name: value for name, value in out.items() if name != "best"}
    return sum(jnp.sum(jnp.sin(value)) for value in trained.values()), (out, names)

  def share(params, *rows):
    grad = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (value, out), (d_params, d_x) = grad(params, *rows)
    add = lambda x: jax.lax.psum(x, partition.DATA_AXIS)
    return add(value), out, jax.tree.map(add, d_params), d_x
  split_rows, whole = (jax.sharding.PartitionSpec(*a) for a in ((partition.DATA_AXIS,), ()))
  run = jax.jit(jax.shard_map(
    share, mesh=mesh, check_vma=False, in_specs=(specs, *[split_rows] * len(rows)),
    out_specs=(whole, split_rows, specs, split_rows)))
  placed = partition.put(padded, partition.shardings(padded, split, mesh))
  value, out, d_params, d_x = run(placed, *rows)
  return jax.tree.map(np.asarray, (value, out, d_x)), partition.fetch(d_params, split)


@pytest.mark.parametrize("mesh, axis, blocks", [((2, 2), 0, False), ((4, 4), 1, True)])
def test_scores_lookups_and_gradients_are_those_of_one_device(mesh, axis, blocks, monkeypatch):
  if blocks:  # of 64 ids, where a device has 38 or all; and candidates as gathered rows
    monkeypatch.setattr(catalog, "BLOCK", {"cpu": 1})
    monkeypatch.setattr(catalog, "WHOLE", 0)
    monkeypatch.setattr(catalog, "ROWS_FOR_ONE", 0)
  ours, theirs = (_outcome(*which, axis) for which in (mesh, (1, 1)))
  (value, (out, names), d_x), (plain, (wanted, known), d_plain) = ours[0], theirs[0]
  np.testing.assert_allclose(value, plain, rtol=1e-5)
  for name in wanted:
    np.testing.assert_allclose(out[name], wanted[name], atol=1e-5, err_msg=name)
  np.testing.assert_array_equal(names, known)  # of equals the lower id
  np.testing.assert_allclose(d_x, d_plain, atol=2e-6 * np.abs(d_plain).max(), rtol=1e-4)
  for name, grad in theirs[1].items():
    assert np.abs(grad).max() > 0.1
    np.testing.assert_allclose(ours[1][name], grad, atol=2e-6 * np.abs(grad).max(), rtol=1e-4,
                               err_msg=name)
  if not axis:
    np.testing.assert_array_equal(out["rows"], wanted["rows"])  # sums with zeros are exact


# Steps and evaluation.


@functools.cache
def _run(data, model, *fields):
  return mesh_runs.outcome(mesh_runs.config(data, model, **dict(fields)))


def test_training_and_evaluation_agree_on_two_meshes(monkeypatch):
  whole = _run(1, 1)
  monkeypatch.setattr(catalog, "HELD", 0)  # ranks are counted by every device over its own rows
  mesh_runs.assert_close(_run(2, 2), whole)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1), (4, 1), (1, 4), (2, 2), (1, 2)])
@pytest.mark.parametrize("fields", [
  {}, mesh_runs.SAMPLED, mesh_runs.UNTIED, {**mesh_runs.SAMPLED, "optim.sparse_rows": True},
  {"model.name": "bert4rec", "model.variant": "bert4rec", "objective.name": "masked_item",
   "model.output": "tied_transform", "optim.clip_norm": 0.1},
  {"model.name": "gru4rec", "model.variant": "gru4rec", "model.hidden": 8, "model.heads": None}])
def test_every_mesh_agrees_on_every_kind_of_table(mesh, fields):
  fields = tuple(fields.items())
  mesh_runs.assert_close(_run(*mesh, *fields), _run(1, 1, *fields))


@pytest.mark.slow
def test_eight_devices_agree(tmp_path):
  env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
         "JAX_PLATFORMS": "cpu"}
  meshes = ("8x1", "4x2", "2x4", "1x8", "1x1")
  tiny.root()
  subprocess.run([sys.executable, "tests/mesh_runs.py", str(tmp_path), str(tiny.root() / "data"),
                  *meshes], cwd=tiny.ROOT, env=env, check=True)
  found = {mesh: dict(np.load(tmp_path / f"{mesh}.npz")) for mesh in meshes}
  for mesh in meshes[:-1]:
    mesh_runs.assert_close(found[mesh], found["1x1"])
  mesh_runs.assert_close(found["1x1"], _run(1, 1))


def test_no_device_ever_has_a_whole_table():
  config = mesh_runs.config(2, 2)
  with config.unlocked():
    config.model.item_width = 64  # a table larger than everything else
  setting, state, steps, _ = mesh_runs.start(config)
  tables = {name: x for name, x in trees.flatten((state.params, state.opt_state)).items()
            if name.endswith("embed/item/embedding")}
  assert len(tables) == 3  # and Adam's slots
  for x in tables.values():
    assert x.shape == (72, 64) and {s.data.shape for s in x.addressable_shards} == {(36, 64)}
  size = 36 * 64 * 4
  gathered = [n for kind, n, *_ in scaling.collectives(steps.as_text()) if kind != "all-reduce"]
  assert max(gathered, default=0) < size
  # Over the data axis the gradient of a share is added up, over the model axis nothing so large.
  reduced = [(n, devices, stride) for kind, n, devices, stride
             in scaling.collectives(steps.as_text()) if kind == "all-reduce"]
  assert max(n for n, devices, stride in reduced if stride == 1) < size
  assert max(n for n, devices, stride in reduced if stride == 2) >= size
  users, histories = np.ones(4, np.int32), np.ones((4, 5), np.int32)
  best = jax.jit(lambda params, users, histories, barred: setting.exp.predict(
    params, users, histories, readout=jax.tree_util.Partial(
      lambda barred, scores: catalog.top(scores, 3, jnp.ones(71, bool), barred), barred)))
  text = best.lower(state.params, users, histories, np.zeros((4, 1, 1), int)).compile().as_text()
  found = [n for kind, n, *_ in scaling.collectives(text)]
  assert found and max(found) < size


# Checkpoints.


def _state(config, seed):
  exp = experiment.build(config)
  params = exp.init_params(seed)
  plan = optim.plan(config.optim, params)
  tx = optim.make(config.optim, params, schedule=lambda step: 0.1, plan=plan)
  return exp, exp.create_state(params, tx, seed), exp.abstract_state(params, tx, seed)


def test_a_checkpoint_knows_no_mesh(tmp_path):
  exp, state, _ = _state(mesh_runs.config(2, 2), 1)
  origin = {"rows": exp.rows(), "data": exp.data.identity()}
  store = checkpoint_lib.Checkpoints(tmp_path, split=exp.split)
  store.save(state, **origin, config={}, host={}, best_step=0)
  store.close()
  want = partition.fetch(state.params, exp.split)
  read = checkpoint_lib.Reader(tmp_path).params()  # knows nothing of meshes at all
  for name, x in trees.flatten(want).items():
    np.testing.assert_array_equal(read[name], x, err_msg=name)
  assert read["embed/item/embedding"].shape == (72, 8)
  for mesh in ((1, 1), (4, 1), (1, 3)):  # 72 rows; by 3 devices they are no other number
    other, fresh, abstract = _state(mesh_runs.config(*mesh), 2)
    store = checkpoint_lib.Checkpoints(tmp_path, split=other.split)
    found, _ = store.restore_latest(abstract, **origin, report=pytest.fail)
    store.close()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, fresh)
    for name, x in trees.flatten(partition.fetch(found.params, other.split)).items():
      np.testing.assert_array_equal(x, read[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1), (4, 1), (1, 4)])
def test_a_run_goes_on_on_another_mesh(tmp_path, mesh):
  shape = lambda data, model: {
    **mesh_runs.SOFTMAX, "num_devices": data * model, "model_devices": model}
  reference = tiny.finished("tgt", *shape(2, 2).items())
  workdir = tiny.interrupted(tmp_path, at=12, **shape(2, 2))
  report = train.train_and_evaluate(tiny.config(**shape(*mesh)), workdir)
  ours, theirs = (checkpoint_lib.Reader(w, 18).params() for w in (workdir, reference))
  for name in theirs:
    np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4, rtol=1e-3, err_msg=name)
  again = evaluate_lib.evaluate(workdir)
  assert again["test"]["full"] == pytest.approx(report["test"]["full"], abs=1e-6)
  items, _, _ = recommend.Recommender(workdir).recommend([["i65", "i66"]], k=4)
  assert len(items[0]) == 4


@pytest.mark.slow
def test_a_transfer_into_split_tables_is_that_into_whole_ones(tmp_path):
  fields = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model", "total_steps": 4,
            "eval.every_steps": 4}
  found = []
  for number, mesh in enumerate(({}, {"model_devices": 2})):
    train.train_and_evaluate(tiny.config(**fields, **mesh), tmp_path / str(number))
    found.append(checkpoint_lib.Reader(tmp_path / str(number), 4).params())
    assert json.loads((tmp_path / str(number) / "restore_report.json").read_text())["leaves"]
  for name, x in found[0].items():
    np.testing.assert_allclose(found[1][name], x, atol=1e-3, err_msg=name)


# Mistakes.


@pytest.mark.parametrize("devices, model_devices", [(None, 3), (2, 0), (2, 4)])
def test_a_mesh_that_does_not_divide_is_a_mistake(devices, model_devices):
  with pytest.raises(errors.UserError, match="must divide the [24] devices"):
    partition.make_mesh(devices, model_devices)


def test_models_that_do_not_split_and_few_items_are_mistakes():
  mesh = partition.make_mesh(4, 4)
  make = lambda name, count: models.make(
    name, variant=next(iter(models.VARIANTS[name])), num_items=count, num_users=2, field_rows={})
  for model, says in ((make("item_knn", 99), "ItemKNN does not split its tables"),
                      (make("sasrec", 31), "too many for 31 items")):
    with pytest.raises(errors.UserError, match=says):
      experiment._split(model, {}, mesh)
