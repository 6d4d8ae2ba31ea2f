"""Tasks with other labels trained at once: one step, one backbone, and each as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import (
  analysis,
  catalog,
  cohort,
  cohort_plan,
  cohort_tasks,
  evaluate,
  experiment,
  train,
  trees,
)
from recjax import state as state_lib

MODEL = {"model.name": "nextitnet", "model.variant": "nextitnet", "model.item_width": 8,
         "model.fields": (), "model.user_width": None, "model.num_layers": 1, "model.heads": None,
         "model.hidden": None, "model.dropout": None, "micro_batch": None, "num_devices": 1}
TASK = {"objective.name": "profile", "model.patch": "serial_two", "transfer.mode": "patch",
        "eval.metric": "profile/accuracy", "eval.protocols": ("profile",)}


def _config(attribute, **fields):
  config = tiny.config("src", **{**MODEL, **TASK, **fields})
  config.objective.profile = dict(attribute=attribute, val=0.2, test=0.2, split_seed=0)
  return config


@pytest.mark.slow
def test_tasks_of_other_labels_are_one_step_and_each_is_what_it_is_alone():
  configs = {0: _config("group"), 1: _config("kind", seed=3), 2: _config("some")}
  group, other = cohort_tasks.groups(experiment.build(configs[0]), configs)
  assert list(group) == [0, 1] and list(other) == [2]  # whose users are not theirs
  settings = list(group.values())
  widest, heads = cohort_tasks.widest(settings), cohort_tasks.heads(settings)
  assert widest is group[1] and heads.width == 5
  states, parts = [], []
  for member, setting in group.items():
    params, tx, _, trainable = setting.fresh(configs[member])
    states.append(state_lib.create(params, tx, configs[member].seed))
    parts.append((tx, trainable))
  backbone = cohort.shared_backbone(widest, configs[1], states)
  assert not [leaf for leaf in backbone.frozen if "patch_" in leaf or leaf.startswith("head/")]
  together = [heads.pad(backbone.narrow(jax.tree.map(jnp.copy, state))) for state in states]
  numbers = {name: np.array([configs[member].optim[name] for member in group], np.float32)
             for name in cohort_plan.NUMBERS}
  tables, _ = widest.feed.at(0)
  found, sums = cohort.make_steps(widest, configs[0], lanes="vmap")(
    jax.tree.map(lambda *x: jnp.stack(x), *together), numbers, tables, np.int32(4),
    backbone.frozen, cohort_tasks.tables(settings))
  scores = found.params["head"]["scores"]
  assert (scores["kernel"][0, :, 3:] == 0).all() and (scores["kernel"][1] != 0).all()
  assert (scores["bias"][0, 3:] == catalog.BARRED).all()
  for lane, (member, setting) in enumerate(group.items()):
    start = jax.tree.map(jnp.copy, states[lane])
    alone, its_sums = setting.make_steps(*parts[lane])(start, setting.feed.at(0)[0], np.int32(4))
    mine = backbone.widen(heads.cut(jax.tree.map(lambda x, lane=lane: x[lane], found),
                                    cohort_tasks.width(setting)))
    assert jax.tree.structure(mine) == jax.tree.structure(alone)
    for part in ("params", "opt_state"):
      ours, theirs = (trees.flatten(getattr(state, part)) for state in (mine, alone))
      for leaf, x in theirs.items():
        assert ours[leaf].shape == x.shape
        np.testing.assert_allclose(ours[leaf], x, atol=2e-5, rtol=1e-4, err_msg=leaf)
    np.testing.assert_allclose(sums["loss"][lane], its_sums["loss"], rtol=1e-5)
    moved = trees.flatten(alone.params)["head/scores/bias"]
    assert np.abs(moved - trees.flatten(states[lane].params)["head/scores/bias"]).max() > 0.01


def test_tasks_differ_in_nothing_that_keeps_them_apart():
  key = cohort_plan.key
  assert key(_config("group")) == key(_config("kind", seed=2))
  assert key(_config("group")) != key(_config("group", **{"transfer.mode": "model"}))


@pytest.mark.slow
def test_runs_at_once_leave_what_they_leave_alone(tmp_path):
  backbone = tiny.config("src", **{**MODEL, "objective.name": "causal_next_item", "total_steps": 2,
                                   "eval.every_steps": 2, "eval.protocols": ("full",)})
  train.train_and_evaluate(backbone, tmp_path / "backbone")
  fields = {"transfer.checkpoint": str(tmp_path / "backbone"), "transfer.task_tree": True,
            "total_steps": 4, "eval.every_steps": 2, "checkpoint.every_steps": 2}
  names = ("group", "kind")
  found = cohort.train_and_evaluate([_config(name, **fields) for name in names],
                                    [tmp_path / name for name in names], lanes="vmap")
  for name, report in zip(names, found, strict=True):
    train.train_and_evaluate(_config(name, **fields), tmp_path / f"{name}_alone")
    mine, theirs = tiny.state(tmp_path / name), tiny.state(tmp_path / f"{name}_alone")
    assert mine.keys() == theirs.keys()
    for leaf, x in theirs.items():
      np.testing.assert_allclose(mine[leaf], x, atol=1e-5, rtol=1e-4, err_msg=leaf)
    assert report["speed"]["cohort"] == 2 and report["profile"]["attribute"] == name
    assert evaluate.evaluate(tmp_path / name)["test"] == report["test"]
  head = "head/scores/bias"
  assert [analysis.shapes(tmp_path / name)[head] for name in names] == [(3,), (5,)]
