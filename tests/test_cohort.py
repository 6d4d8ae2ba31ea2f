"""Runs trained at once: each as if it were alone, whoever is beside it, however it is cut."""

import functools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import (
  checkpoint,
  cohort,
  cohort_plan,
  errors,
  evaluate,
  experiment,
  results,
  train,
  trees,
)
from recjax import clock as clock_lib
from recjax import setting as setting_lib
from recjax import state as state_lib

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MEMBERS = {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"seed": 1, "optim.lr": 0.003}}
FIELDS = {"num_devices": 1}


def _run(folder, members, **fields):
  """Trains {name: fields} as a cohort into folder/NAME; returns {name: report or UserError}."""
  configs = [tiny.config(**{**FIELDS, **fields, **own}) for own in members.values()]
  found = cohort.train_and_evaluate(configs, [folder / name for name in members], lanes="vmap")
  return dict(zip(members, found, strict=True))


@functools.cache
def _reference():
  """Returns the folder of the uninterrupted cohort of MEMBERS, trained once for all tests."""
  folder = tiny.root() / "cohort"
  _run(folder, MEMBERS)
  return folder


# What a member leaves.

def test_a_member_is_the_run_that_it_would_be_alone():
  together = _reference() / "c"
  alone = tiny.finished("tgt", *{**FIELDS, **MEMBERS["c"]}.items())
  names = lambda folder: sorted(path.name for path in folder.iterdir())
  assert names(together) == names(alone)
  assert json.loads((together / "config.json").read_text()) == json.loads(
    (alone / "config.json").read_text())
  mine, theirs = tiny.state(together), tiny.state(alone)
  assert mine.keys() == theirs.keys()
  for leaf, x in theirs.items():
    np.testing.assert_allclose(mine[leaf], x, atol=2e-5, rtol=1e-4, err_msg=leaf)
  ours, theirs = results.finished(together), results.finished(alone)
  for key in ("steps", "best_step", "parameters", "seed", "stopped"):
    assert ours["run"][key] == theirs["run"][key], key
  assert ours["run"]["best_validation"] == pytest.approx(theirs["run"]["best_validation"], abs=0.02)
  assert set(tiny.metric_rows(together)) == set(tiny.metric_rows(alone))
  for key, row in tiny.metric_rows(alone).items():
    if "loss" in row:
      assert tiny.metric_rows(together)[key]["loss"] == pytest.approx(row["loss"], rel=1e-4), key


@pytest.mark.slow
def test_lanes_in_turn_take_the_steps_of_single_runs():
  configs = [tiny.config(**FIELDS), tiny.config(**FIELDS, seed=1, **{"optim.lr": 0.003})]
  setting = setting_lib.set_up(experiment.build(configs[0]))
  start = setting.init_params(0)
  resident, _ = setting.feed.at(0)
  states = []
  for config in configs:
    tx, _, trainable = setting.make_optimizer(config, start)
    states.append(state_lib.create(start, tx, config.seed))
  fresh = jax.tree.map(jnp.copy, states[1])
  end, end_sums = setting.make_steps(tx, trainable)(fresh, resident, np.int32(3))
  numbers = {name: np.array([config.optim[name] for config in configs], np.float32)
             for name in cohort_plan.NUMBERS}
  found, sums = cohort.make_steps(setting, configs[0], lanes="map")(
    jax.tree.map(lambda *x: jnp.stack(x), *states), numbers, resident, np.int32(3))
  assert list(found.step) == [3, 3] and list(sums["examples"]) == [36, 36]
  np.testing.assert_allclose(sums["loss"][1], end_sums["loss"], rtol=1e-5)
  for leaf, x in trees.flatten(end.params).items():
    np.testing.assert_allclose(trees.flatten(found.params)[leaf][1], x, atol=1e-6, rtol=1e-5,
                               err_msg=leaf)


def test_members_differ_and_nobody_else_can_tell_them_from_runs():
  ends = {name: tiny.state(_reference() / name) for name in MEMBERS}
  leaf = "params/embed/item/embedding"
  assert np.abs(ends["a"][leaf] - ends["b"][leaf]).max() > 0.1  # a start of its own
  assert 1e-3 < np.abs(ends["b"][leaf] - ends["c"][leaf]).max() < 0.2  # the same one, slower
  workdir = _reference() / "b"
  report = results.finished(workdir)
  assert evaluate.evaluate(workdir)["test"] == report["test"]
  assert train.train_and_evaluate(tiny.config(**FIELDS, seed=1), workdir) == report


def test_members_share_the_time_of_the_cohort():
  speeds = [results.finished(_reference() / name)["speed"] for name in MEMBERS]
  assert {(speed["cohort"], speed["cohort_lanes"]) for speed in speeds} == {(3, "vmap")}
  whole = speeds[0]["cohort_wall_s"]
  assert sum(speed["wall_s"] for speed in speeds) == pytest.approx(whole, rel=0.1)
  for speed in speeds:
    assert speed["train_s"] + speed["compile_s"] + speed["evaluate_s"] < speed["wall_s"]
    assert speed["examples_per_s"] * speed["train_s"] == pytest.approx(3 * 55 + 3 * 12)


def test_share_of_a_clock():
  whole = clock_lib.Clock()
  whole.seconds["train"] = 6.0
  one, other = (cohort.Share(whole, "ab") for _ in range(2))
  assert one.total("train") == 3.0 and one.lap("train") == 3.0 and one.lap("train") == 0.0
  with one.measure("train"):
    pass
  assert whole.total("train") > 6.0 and other.lap("train") > 3.0
  assert one.wall() < whole.wall()


# Interrupted.

@pytest.mark.slow
def test_interrupted_and_resumed_to_the_same_bits(tmp_path, monkeypatch):
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  tiny.stop_at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(errors.Preempted, match="run the same command to go on .and so for 2 more"):
    _run(tmp_path, MEMBERS)
  assert len({step := tiny.steps(tmp_path / name)[-1] for name in MEMBERS}) == 1 and 4 < step < 12
  tiny.stop_at(monkeypatch, 12, kill)  # when the first member has saved it and no other
  with pytest.raises(Killed):
    _run(tmp_path, MEMBERS)
  assert [tiny.steps(tmp_path / name)[-1] for name in MEMBERS] == [12, 8, 8]
  assert all(results.finished(tmp_path / name) is None for name in MEMBERS)
  monkeypatch.undo()
  _run(tmp_path, MEMBERS)
  for name in MEMBERS:
    tiny.assert_same_run(tmp_path / name, _reference() / name)


def test_what_is_finished_stays_and_one_that_is_left_runs_alone(tmp_path, monkeypatch):
  shutil.copytree(_reference(), tmp_path / "w")
  (tmp_path / "w" / "b" / "report.json").unlink()
  before = {name: results.finished(tmp_path / "w" / name) for name in "ac"}
  monkeypatch.setattr(cohort, "_together", lambda *_: pytest.fail("nobody to be with"))
  original, asked = train.train_and_evaluate, []
  def one(config, workdir):
    asked.append(workdir.name)
    return {"b": True} if workdir.name == "b" else original(config, workdir)
  monkeypatch.setattr(train, "train_and_evaluate", one)
  assert _run(tmp_path / "w", MEMBERS) == {**before, "b": {"b": True}}
  assert asked == ["a", "b", "c"]  # those that are finished are returned, checked and not trained


# Members that end apart.

@pytest.mark.slow
def test_each_ends_in_its_own_way_and_disturbs_nobody(tmp_path, monkeypatch):
  source = {"transfer.checkpoint": str(_reference() / "b"), "transfer.mode": "model"}
  theirs = tiny.state(_reference() / "a")
  values = {"c": {3: 0.3, 6: 0.2, 9: 0.1}}
  recorders = {}
  monkeypatch.setattr(train, "announce", lambda recorder, *_: recorders.update(
    {recorder: "abcd"[len(recorders)]}))
  monkeypatch.setattr(train, "validate", lambda recorder, step, *_: values.get(
    recorders[recorder], {}).get(step, step / 100))
  found = _run(tmp_path, {"a": {"seed": 0}, "b": {"optim.lr": 1e30}, "c": {"seed": 1}, "d": source},
               **{"eval.every_steps": 3, "eval.patience": 2})
  assert isinstance(found["b"], errors.UserError) and "diverged" in str(found["b"])
  assert results.finished(tmp_path / "b") is None
  ends = {name: (found[name]["run"]["steps"], found[name]["run"]["best_step"]) for name in "acd"}
  assert ends == {"a": (18, 18), "c": (9, 3), "d": (18, 18)}
  assert tiny.steps(tmp_path / "c")[-1] == 9
  assert evaluate.evaluate(tmp_path / "c", step=3)["test"] == found["c"]["test"]
  restored = [name for name in "abcd" if (tmp_path / name / "restore_report.json").exists()]
  assert restored == ["d"] and found["d"]["run"]["transfer_mode"] == "model"
  # The first is what it was among others, up to the gradient of keys' biases, which is rounding.
  for leaf, x in tiny.state(tmp_path / "a").items():
    np.testing.assert_allclose(theirs[leaf], x, atol=1e-5, rtol=1e-5, err_msg=leaf)


# Who may be together.

def test_only_numbers_may_differ(tmp_path):
  with pytest.raises(errors.UserError, match="may differ in seed, optim.b1"):
    _run(tmp_path, {"a": {}, "b": {"batch_size": 24}})
  with pytest.raises(errors.UserError, match="need as many folders"):
    cohort.train_and_evaluate([tiny.config(), tiny.config(seed=1)], [tmp_path / "a"] * 2)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field, value, same", [
  ("seed", 3, True), ("optim.lr", 0.5, True), ("transfer.checkpoint", "x", True),
  ("transfer.mode", "model", True), ("transfer.freeze", "x", False), ("optim.name", "sgd", False),
  ("optim.weight_decay", 0.1, False), ("model.item_width", 16, False), ("data_dir", "x", False),
  ("eval.patience", 3, False), ("log.every_steps", 3, False)])
def test_the_key_tells_what_may_differ(field, value, same):
  key = cohort_plan.key
  assert (key(tiny.config()) == key(tiny.config(**{field: value}))) == same


def test_groups_keep_the_order_and_the_size():
  configs = {f"{batch}/{seed}": tiny.config(batch_size=batch, seed=seed)
             for seed in range(3) for batch in (12, 24)}
  assert cohort_plan.groups(configs, 2) == [
    ["12/0", "12/1"], ["24/0", "24/1"], ["12/2"], ["24/2"]]
  assert [len(group) for group in cohort_plan.groups(configs, 1)] == [1] * 6


def test_memory_bounds_a_cohort(tmp_path, monkeypatch):
  exp = experiment.build(tiny.config())
  each = 3 * sum(x.size * 4 for x in jax.tree.leaves(exp.init_params(0)))
  monkeypatch.setattr(cohort, "MAX_BYTES", 5 * each // 2)
  assert cohort.room(exp) == 2
  seen = []
  monkeypatch.setattr(cohort, "_together", lambda exp, configs, *_: seen.append(
    [config.seed for config in configs]) or [{}] * len(configs))
  monkeypatch.setattr(train, "train_and_evaluate",
                      lambda config, _: seen.append(config.seed) or {})
  _run(tmp_path, {str(seed): {"seed": seed} for seed in range(5)})
  assert seen == [[0, 3], [1, 4], 2]
  seen.clear()
  monkeypatch.setattr(cohort, "MAX_BYTES", 0)
  _run(tmp_path, {str(seed): {"seed": seed} for seed in range(2)})
  assert seen == [0, 1]


def test_what_is_frozen_takes_no_slots_and_in_a_patch_is_there_once(monkeypatch):
  config = tiny.config(**{"transfer.freeze": "(embed|encoder)/.*"})
  exp = experiment.build(config)
  flat = trees.flatten(exp.params_shapes())
  size = lambda leaves: sum(4 * flat[leaf].size for leaf in leaves)
  own = size(leaf for leaf in flat if leaf.startswith("head/"))
  frozen = size(flat) - own
  monkeypatch.setattr(cohort, "MAX_BYTES", 2 * (frozen + 3 * own))
  assert cohort.room(exp) == 2
  # The head of mode "patch" is trained, unless transfer.freeze says otherwise.
  config.transfer.update(mode="patch", freeze="head/scores/kernel")
  own = size(["head/scores/bias"])
  monkeypatch.setattr(cohort, "MAX_BYTES", size(flat) - own + 5 * 3 * own)
  assert cohort.room(exp) == 5


@pytest.mark.parametrize("text, message", [
  ("{", "not JSON"), ("[1]", "not JSON"), ('{"a": 1}', "not JSON"), ('{"../a": {}}', "no name"),
  ('{"a": {"optim.rate": 1}}', "optim.rate")])
def test_wrong_trials_are_a_users_mistake(text, message):
  with pytest.raises(errors.UserError, match=message):
    cohort.read_trials(text, tiny.config())


@pytest.mark.slow
def test_the_command_and_several_devices(tmp_path):
  config = tiny.config(**{"total_steps": 6})
  trials = json.dumps({"a": {}, "b": {"seed": 1}, "c": {"optim.lr": 1e30}})
  command = [*tiny.command(tmp_path / "w", config, "recjax.cohort"), f"--trials={trials}"]
  code, stderr = tiny.run(command)
  assert code == 1 and "error: c: training diverged" in stderr and "Traceback" not in stderr
  assert results.finished(tmp_path / "w" / "b")["speed"]["devices"] == 4
  theirs = checkpoint.Reader(tmp_path / "w" / "b", 6).params()
  train.train_and_evaluate(tiny.config(total_steps=6, seed=1), tmp_path / "alone")
  for name, x in checkpoint.Reader(tmp_path / "alone", 6).params().items():
    np.testing.assert_allclose(theirs[name], x, atol=2e-5, rtol=1e-4, err_msg=name)
