"""Training: what is transferred, how it ends, and that mistakes leave nothing behind."""

import dataclasses
import json
import pathlib
import re
import shutil
import time

import jax
import numpy as np
import pytest
import tiny

from recjax import checkpoint, clock, errors, evaluate, experiment, optim, results, train, trees
from recjax import setting as setting_lib

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# Transfer.

def _initial(monkeypatch, tmp_path, name, **fields):
  """Returns {leaf: array} of the parameters that the optimizer first sees."""
  seen = []
  original = experiment.Experiment.create_state
  class Seen(BaseException):
    pass
  def create_state(*args):
    seen.append(original(*args))
    raise Seen
  monkeypatch.setattr(experiment.Experiment, "create_state", create_state)
  with pytest.raises(Seen):
    train.train_and_evaluate(tiny.config(**fields), tmp_path / name)
  monkeypatch.setattr(experiment.Experiment, "create_state", original)
  state = seen[0]
  # Optimizer state never crosses: all its slots start at zero.
  assert all(not np.any(np.asarray(x)) for x in jax.tree.leaves(state.opt_state))
  assert len(jax.tree.leaves(state.opt_state)) > 10
  return {n: np.asarray(x) for n, x in trees.flatten(state.params).items()}


CARRIED = {"none": "^$", "embedding": "embed/(user|genre)", "model": "(embed|encoder)/"}


@pytest.mark.parametrize("mode", ["none", "embedding", "model"])
def test_transfer_carries_what_it_says(tmp_path, monkeypatch, mode):
  source = checkpoint.Reader(tiny.source())
  theirs, names = source.params(), source.rows()
  fresh = _initial(monkeypatch, tmp_path, "fresh")
  got = _initial(monkeypatch, tmp_path, "got",
                 **{"transfer.checkpoint": str(tiny.source()), "transfer.mode": mode})
  report = json.loads((tmp_path / "got" / "restore_report.json").read_text())
  assert not (tmp_path / "fresh" / "restore_report.json").exists()
  assert (report["mode"], report["source_step"]) == (mode, source.step)
  leaves = {leaf["target"]: leaf for leaf in report["leaves"]}
  assert list(leaves) == list(fresh)
  carried = 0
  mine = _rows()
  for leaf, start in fresh.items():
    assert tuple(leaves[leaf]["shape"]) == start.shape and leaves[leaf]["trainable"] is True
    if not re.match(CARRIED[mode], leaf):
      assert leaves[leaf]["source"] == "fresh"
      assert np.array_equal(got[leaf], start), leaf
      continue
    carried += 1
    assert leaves[leaf]["source"] == leaf
    vocabulary = leaf.split("/")[1] if leaf.split("/")[1] in mine else None
    if vocabulary is None:
      assert np.array_equal(got[leaf], theirs[leaf]) and not np.array_equal(start, theirs[leaf])
      continue
    place = {name: row for row, (name, trained) in enumerate(
      zip(names[vocabulary].names, names[vocabulary].trained, strict=True)) if trained}
    matched = 0
    for row, name in enumerate(mine[vocabulary].names):
      found = place.get(name)
      matched += found is not None
      wanted = start[row] if found is None else theirs[leaf][found]
      assert np.array_equal(got[leaf][row], wanted), (leaf, name)
    assert leaves[leaf]["rows"]["matched"] == matched
    assert leaves[leaf]["rows"]["of"] == len(start)
    if vocabulary == "user":
      assert matched == 50 and len(start) == 55  # as tests/tiny.py lays them out
  assert carried == {"none": 0, "embedding": 4, "model": 18}[mode]


def _rows():
  return experiment.build(tiny.config()).rows()


def test_carried_leaves_train_unless_frozen(tmp_path, monkeypatch):
  fields = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "embedding",
            "total_steps": 2, "checkpoint.every_steps": 1}
  start = _initial(monkeypatch, tmp_path, "start", **fields)
  moved = {}
  for name, freeze in (("free", ""), ("frozen", "embed/(user|genre)/.*")):
    workdir = tmp_path / name
    train.train_and_evaluate(tiny.config(**fields, **{"transfer.freeze": freeze}), workdir)
    end = checkpoint.Reader(workdir, 2).params()
    moved[name] = {leaf for leaf in start if not np.array_equal(start[leaf], end[leaf])}
    report = json.loads((workdir / "restore_report.json").read_text())
    assert {leaf["target"] for leaf in report["leaves"] if leaf["trainable"]} == moved[name]
  assert moved["free"] == set(start)
  assert set(start) - moved["frozen"] == {"embed/user/embedding", "embed/genre/embedding"}
  slots = [n for n in tiny.state(tmp_path / "frozen") if "embed/user/embedding" in n]
  assert slots == ["params/embed/user/embedding"]
  assert results.finished(tmp_path / "frozen")["run"]["trained_parameters"] == sum(
    start[leaf].size for leaf in moved["frozen"])


def test_transfer_is_not_repeated_on_resume(tmp_path, monkeypatch):
  source = pathlib.Path(shutil.copytree(tiny.source(), tmp_path / "source"))
  fields = {"transfer.checkpoint": str(source), "transfer.mode": "model", "total_steps": 8}
  workdir = tiny.interrupted(tmp_path, at=6, **fields)
  same = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model", "total_steps": 8}
  wanted = tiny.state(tiny.finished("tgt", *same.items()))
  shutil.rmtree(source)
  monkeypatch.setattr(train, "transfer_from", lambda *_: pytest.fail("transferred again"))
  moved = {**fields, "transfer.checkpoint": str(tmp_path / "elsewhere" / tmp_path.name / "source")}
  train.train_and_evaluate(tiny.config(**moved), workdir)
  got = tiny.state(workdir)
  for name, x in wanted.items():
    assert np.array_equal(x, got[name])
  assert (workdir / "restore_report.json").exists()


def test_transfer_reads_nothing_else(tmp_path):
  for mode, spared in (("embedding", r"embed\.(user|genre)"), ("model", r"(embed|encoder)\.")):
    source = pathlib.Path(shutil.copytree(tiny.source(), tmp_path / mode))
    step = source / "checkpoints" / str(checkpoint.Reader(source).step)
    shutil.rmtree(step / "opt_state")
    gone = [p for p in (step / "params").iterdir() if p.is_dir() and not re.match(spared, p.name)
            and p.name.startswith(("embed", "encoder", "head"))]
    assert gone
    for path in gone:
      shutil.rmtree(path)
    train.train_and_evaluate(
      tiny.config(**{"transfer.checkpoint": str(source), "transfer.mode": mode, "total_steps": 1}),
      tmp_path / f"{mode}_run")


def test_a_run_holds_its_parameters_once(tmp_path):
  config = tiny.config(**{"model.item_width": 9, "model.user_width": 0, "model.fields": (),
                          "model.heads": 3, "num_devices": 1, "optim.name": "adam"})
  setting = setting_lib.set_up(experiment.build(config))
  story = train.run(config, tmp_path / "run", setting, clock.Clock())
  table = next(story).state.params["embed"]["item"]["embedding"]
  held = [x for x in jax.live_arrays() if x.shape == table.shape]
  assert len(held) == 3  # and Adam's two slots of it
  story.close()


MISTAKES = {
  "mode": ({"transfer.mode": "modle"}, "transfer.mode is 'modle'"),
  "no source": ({"transfer.checkpoint": "", "transfer.mode": "model"}, "needs transfer.checkpoint"),
  "missing": ({"transfer.checkpoint": "/nowhere/run"}, "no checkpoints there"),
  "step": ({"transfer.step": 77}, "no checkpoint of step 77"),
  "shape": ({"model.item_width": 12}, "does not fit.*embed/item/embedding"),
  "layers": ({"model.num_layers": 2}, "block_1.*which the source lacks"),
  "freeze": ({"transfer.freeze": "embed/usr/.*"}, "embed/usr.*decides no parameter"),
  "rules": ({"transfer.mode": "rules", "transfer.rules": (("embed/itm/.*", r"\g<0>"),)},
            "embed/itm.*decides no parameter"),
  "empty rules": ({"transfer.mode": "rules"}, "nothing to carry"),
  "metric": ({"eval.metric": "full/ndcg@7"}, "eval.metric is 'full/ndcg@7'"),
  "protocol": ({"eval.protocols": ("full", "fulll")}, "unknown protocol 'fulll'"),
  "context": ({"eval.contexts": ("test",)}, "unknown context 'test'"),
  "batch": ({"batch_size": 10}, "multiple"),
  "duration": ({"total_epochs": 2.0}, "exactly one of"),
  "data": ({"dataset": "nothing"}, "no prepared data set 'nothing'"),
  "devices": ({"num_devices": 64}, "64 devices"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_leaves_nothing_behind(tmp_path, name):
  fields, message = MISTAKES[name]
  source = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model"}
  config = tiny.config(**{**source, **fields})
  with pytest.raises(errors.UserError, match=message):
    train.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
  config = tiny.config(**{"transfer.checkpoint": "/nowhere/run", "transfer.mode": "model"})
  code, stderr = tiny.run(tiny.command(tmp_path / "run", config))
  assert code == 2 and not (tmp_path / "run").exists()
  assert stderr.startswith("error: /nowhere/run: no checkpoints there")
  assert stderr.count("\n") == 1


# Ends of training.

@pytest.mark.parametrize("every, message", [(1, "parameter norm inf"), (18, "loss nan")])
def test_diverging_stops_and_saves_nothing_bad(tmp_path, monkeypatch, every, message):
  # The loss and the gradient of the first step are fine; only what the update made of the
  # parameters is not, and the second step's loss shows it.
  original = optim.apply_updates
  def apply_updates(params, updates):
    params = original(params, updates)
    params["head"]["scores"]["bias"] = params["head"]["scores"]["bias"].at[3].set(np.inf)
    return params
  monkeypatch.setattr(optim, "apply_updates", apply_updates)
  cadence = {f"{name}.every_steps": every for name in ("checkpoint", "eval", "log")}
  with pytest.raises(errors.UserError, match=f"training diverged .{message}.*optim.lr"):
    train.train_and_evaluate(tiny.config(**cadence), tmp_path / "run")
  assert checkpoint.Checkpoints(tmp_path / "run").steps() == []
  assert results.finished(tmp_path / "run") is None


@pytest.mark.slow
def test_a_huge_learning_rate_is_a_clear_error(tmp_path):
  config = tiny.config(**{"optim.name": "sgd", "optim.lr": 1e30, "optim.momentum": 0.0})
  code, stderr = tiny.run(tiny.command(tmp_path / "run", config))
  assert code == 2 and stderr.splitlines()[-1].startswith("error: training diverged")
  assert "Traceback" not in stderr


def test_scores_that_overflow_are_a_clear_error(tmp_path, monkeypatch):
  class Overflows:
    def run(self, *_):
      raise FloatingPointError("NaN among the scores of user 3")
  with pytest.raises(errors.UserError, match="diverged by step 6: NaN among"):
    train.validate(None, 6, Overflows(), None, None, "full/mrr")


def test_progress_stops_after_patience():
  progress = train.Progress()
  assert [progress.update(step, value, 2) for step, value in
          ((1, 0.1), (2, 0.3), (3, 0.3), (4, 0.2))] == [True, True, False, False]
  assert (progress.best_step, progress.best_value) == (2, 0.3)
  assert "since step 2" in progress.stopped
  endless = train.Progress()
  assert sum(endless.update(step, -step, None) for step in range(1, 50)) == 1
  assert not endless.stopped


def test_another_order_of_the_batches_is_said_once_and_kept(capsys):
  progress = train.Progress()
  progress.follow(0, {"hosts": 2})
  progress = train.Progress(**json.loads(json.dumps(dataclasses.asdict(progress))))  # resumed
  progress.follow(8, {"hosts": 2})
  assert progress.orders == [[0, {"hosts": 2}]] and not capsys.readouterr().err
  progress.follow(9, {"hosts": 1})
  assert progress.orders == [[0, {"hosts": 2}], [9, {"hosts": 1}]]
  said = capsys.readouterr().err
  assert "{'hosts': 2} until step 9" in said and "another order" in said and said.count("\n") == 1


def test_early_stopping_reports_the_best_step(tmp_path, monkeypatch):
  values = iter([0.1, 0.2, 0.1, 0.1])
  monkeypatch.setattr(train, "validate", lambda *_: next(values))
  config = tiny.config(**{"eval.every_steps": 3, "eval.patience": 2, "eval.protocols": ("full",)})
  report = train.train_and_evaluate(config, tmp_path / "run")
  run = report["run"]
  assert (run["steps"], run["best_step"], run["total_steps"]) == (12, 6, 18)
  assert "no better validation since step 6" in run["stopped"]
  # The numbers are those of step 6: scored again, that step gives them and the last one does not.
  assert evaluate.evaluate(tmp_path / "run", step=6)["test"] == report["test"]
  assert evaluate.evaluate(tmp_path / "run", step=12)["test"] != report["test"]


@pytest.mark.parametrize("fields, steps", [
  ({"total_steps": 3}, 3), ({"total_steps": None, "total_epochs": 0.5}, 3),
  ({"total_steps": None, "total_examples": 30}, 3)])
def test_durations(tmp_path, fields, steps):
  # 55 users in batches of 12: five steps an epoch, 36 users in three.
  report = train.train_and_evaluate(tiny.config(**fields), tmp_path / "run")
  assert report["run"]["steps"] == steps
  rows = tiny.metric_rows(tmp_path / "run")
  assert rows[3, "val", "full"] and rows[3, "train", "loss"]


# The same folder.

def test_another_config_is_refused_and_what_does_not_matter_is_not(tmp_path):
  workdir = pathlib.Path(shutil.copytree(tiny.finished("tgt"), tmp_path / "run"))
  shutil.copytree(tiny.root() / "data", tmp_path / "data")
  before = (workdir / "report.json").read_bytes()
  for unfinished in (False, True):
    if unfinished:
      (workdir / "report.json").unlink()
    with pytest.raises(errors.UserError, match=r"optim.lr was 0.01, now 0.5"):
      train.train_and_evaluate(tiny.config(**{"optim.lr": 0.5}), workdir)
  (workdir / "report.json").write_bytes(before)
  config = tiny.config(**{"data_dir": str(tmp_path / "data"), "log.every_steps": 1,
                          "num_devices": 1})
  began = time.monotonic()
  assert train.train_and_evaluate(config, workdir) == json.loads(before)
  assert time.monotonic() - began < 1  # Returned, not trained.
  assert (workdir / "report.json").read_bytes() == before


def test_changed_data_are_refused(tmp_path):
  workdir = pathlib.Path(shutil.copytree(tiny.finished("tgt"), tmp_path / "run"))
  (workdir / "report.json").unlink()
  shutil.copytree(tiny.root() / "data", tmp_path / "data")
  path = tmp_path / "data" / "tgt" / "user_ids.npy"
  ids = np.load(path)
  ids[3] = b"xx"
  np.save(path, ids)
  with pytest.raises(errors.UserError, match="other data"):
    train.train_and_evaluate(tiny.config(data_dir=str(tmp_path / "data")), workdir)
