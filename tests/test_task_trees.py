"""Runs that train patches in a frozen backbone: what moves, what is saved, whose backbone it is."""

import functools
import shutil

import numpy as np
import pytest

import tiny
from recjax import analysis, cohort, errors, evaluate, train, trees
from recjax import checkpoint as checkpoint_lib

MODEL = {"model.name": "nextitnet", "model.variant": "nextitnet", "model.item_width": 8,
         "model.fields": (), "model.user_width": None, "model.num_layers": 1,
         "model.heads": None, "model.hidden": None, "model.dropout": None, "micro_batch": None,
         "num_devices": 1}
TASK = {"objective.name": "profile", "model.patch": "serial_two", "total_steps": 4,
        "transfer.mode": "patch", "transfer.task_tree": True, "eval.every_steps": 2,
        "eval.metric": "profile/accuracy", "eval.protocols": ("profile",),
        "checkpoint.every_steps": 2}


def _config(**fields):
  config = tiny.config("src", **{**MODEL, **fields})
  config.objective.profile = dict(attribute="group", val=0.2, test=0.2, split_seed=0)
  return config


@functools.cache
def _backbone(seed=0):
  workdir = tiny.root() / f"backbone_{seed}"
  train.train_and_evaluate(_config(**{
    "objective.name": "causal_next_item", "total_steps": 2, "eval.every_steps": 2, "seed": seed,
    "eval.protocols": ("full",)}), workdir)
  return workdir


def _task(**fields):
  return _config(**TASK, **{"transfer.checkpoint": str(_backbone()), **fields})


@functools.cache
def _finished():
  workdir = tiny.root() / "task"
  return workdir, train.train_and_evaluate(_task(), workdir)


def test_only_what_is_trained_moves_is_saved_and_has_slots():
  workdir, report = _finished()
  saved = analysis.shapes(workdir)
  trained = {n for n in saved if "patch_" in n or "norm_1" in n or n.startswith("head/scores/")}
  assert set(saved) == trained and len(trained) == 12
  on_disk = tiny.state(workdir)
  assert {n.removeprefix("params/") for n in on_disk if n.startswith("params/")} == trained
  slots = {n for n in on_disk if n.startswith("opt_state") and on_disk[n].ndim}
  assert len(slots) == 2 * len(trained)
  assert report["run"]["trained_bytes"] == 4 * report["run"]["trained_parameters"] < 2000
  exp, params, _ = evaluate.experiment.restore(workdir)
  source = analysis.params(_backbone())
  for name, value in trees.flatten(params).items():
    if name in source and name not in trained and name != "embed/item/embedding":
      np.testing.assert_array_equal(value, source[name])
  rows = exp.rows()["item"].trained  # The others start fresh: the source never saw them.
  table = "embed/item/embedding"
  np.testing.assert_array_equal(trees.flatten(params)[table][rows], source[table][rows])
  moved = analysis.params(workdir)
  assert np.abs(moved["encoder/block_0/patch_0/up/kernel"]).max() > 0


def test_a_report_says_who_was_judged_beside_the_majority():
  _, report = _finished()
  assert report["profile"]["attribute"] == "group" and report["profile"]["labels"] == 2
  assert set(report["test"]["profile"]) == set(report["majority"]["profile"]) == {
    "accuracy", "macro_f1"}
  assert sum(report["profile"]["users"].values()) == 40  # of 60, every third has no label


def test_a_task_is_evaluated_as_it_was_and_on_no_other_backbone(tmp_path):
  workdir, report = _finished()
  assert evaluate.evaluate(workdir)["test"] == report["test"]
  moved = shutil.copytree(_backbone(), tmp_path / "backbone")
  assert evaluate.evaluate(workdir, backbone=str(moved))["test"] == report["test"]
  with pytest.raises(errors.UserError, match="trained on another backbone.*checksum"):
    evaluate.evaluate(workdir, backbone=str(_backbone(1)))


def test_a_task_resumes_with_the_same_bits_and_on_no_other_backbone(tmp_path, monkeypatch):
  reference, _ = _finished()
  workdir = tmp_path / "task"
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  with monkeypatch.context() as patch:
    tiny.stop_at(patch, 2, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(_task(), workdir)
  other = tmp_path / "other" / _backbone().parent.name / _backbone().name
  shutil.copytree(_backbone(1), other)
  with pytest.raises(errors.UserError, match="trained on another backbone"):
    train.train_and_evaluate(_task(**{"transfer.checkpoint": str(other)}), workdir)
  train.train_and_evaluate(_task(), workdir)
  mine, theirs = tiny.state(workdir), tiny.state(reference)
  assert mine.keys() == theirs.keys()
  for name in mine:
    np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_tasks_at_once_share_the_backbone_and_are_those_that_they_are_alone(tmp_path, monkeypatch):
  configs = [_task(seed=seed) for seed in (0, 3)]
  shared, original = [], cohort.shared_backbone
  monkeypatch.setattr(cohort, "shared_backbone",
                      lambda *args: shared.append(original(*args)) or shared[-1])
  found = cohort.train_and_evaluate(configs, [tmp_path / "a", tmp_path / "b"], lanes="vmap")
  trained = set(analysis.shapes(tmp_path / "a"))
  whole = set(trees.flatten(evaluate.experiment.restore(tmp_path / "b")[1]))
  assert set(shared[0].frozen) == whole - trained and len(trained) == 12
  reference, _ = _finished()
  mine, theirs = tiny.state(tmp_path / "a"), tiny.state(reference)
  assert mine.keys() == theirs.keys()
  for name in mine:
    np.testing.assert_allclose(mine[name], theirs[name], atol=1e-5, rtol=1e-4, err_msg=name)
  assert evaluate.evaluate(tmp_path / "b")["test"] == found[1]["test"]
  assert (tiny.state(tmp_path / "b")["rng/key"] != mine["rng/key"]).any()


def test_a_task_needs_a_backbone(tmp_path):
  with pytest.raises(errors.UserError, match="task_tree=True.*transfer.checkpoint"):
    train.train_and_evaluate(_config(**{**TASK, "transfer.mode": "none"}), tmp_path / "run")
  assert not checkpoint_lib.has_checkpoint(tmp_path / "run")
