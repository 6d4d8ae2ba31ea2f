"""Training: interrupted is the same as not interrupted, and mistakes leave nothing behind."""

import json
import os
import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from recjax import checkpoint, errors, evaluate, optim, record, results, train, trees
from recjax import state as state_lib

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _state(workdir, step=None):
  """Returns {leaf: array} of parameters, optimizer slots and key, read without recjax's help."""
  folder = pathlib.Path(workdir) / "checkpoints"
  step = step or max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  found = {}
  for item in ("params", "opt_state", "rng"):
    tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / item)
    found |= {f"{item}/{n}": np.asarray(x) for n, x in trees.flatten(tree).items()}
  return found


def _assert_same_run(workdir, reference):
  mine, theirs = _state(workdir), _state(reference)
  assert mine.keys() == theirs.keys()
  assert len([n for n in mine if n.startswith("opt_state")]) > 10
  for name in mine:
    assert np.array_equal(mine[name], theirs[name]), name
  ours, theirs = (results.finished(w) for w in (workdir, reference))
  for report in (ours, theirs):
    report.pop("speed"), report["run"].pop("name")
  assert ours == theirs
  rows, wanted = tiny.metric_rows(workdir), tiny.metric_rows(reference)
  assert rows.keys() == wanted.keys()
  for key, row in rows.items():
    # Losses are summed on the device in groups whose size follows the clock: the last bits differ.
    assert row == {**wanted[key], **({"loss": pytest.approx(wanted[key]["loss"], rel=1e-5)}
                                     if "loss" in row else {})}
  with np.load(workdir / "per_user_test.npz") as a, np.load(reference / "per_user_test.npz") as b:
    assert set(a.files) == set(b.files)
    assert all(np.array_equal(a[name], b[name]) for name in a.files)


def _stop_at(monkeypatch, step, action):
  """Calls `action` once the checkpoint of `step` is on disk, the first time only."""
  original, done = checkpoint.Checkpoints.save, []
  def save(self, state, **kwargs):
    original(self, state, **kwargs)
    if int(state.step) == step and not done:
      self.wait()
      done.append(step)
      action()
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)


# Resume.

def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
  before = signal.getsignal(signal.SIGTERM)
  _stop_at(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(errors.Preempted, match="run the same command"):
    train.train_and_evaluate(tiny.config(), tmp_path / "run")
  assert signal.getsignal(signal.SIGTERM) is before
  assert results.finished(tmp_path / "run") is None
  saved = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
  assert 8 < saved < 18
  train.train_and_evaluate(tiny.config(), tmp_path / "run")
  _assert_same_run(tmp_path / "run", tiny.finished("tgt"))


@pytest.mark.parametrize("step", [4, 7, 18])
def test_stopped_anywhere_and_resumed(tmp_path, monkeypatch, step):
  # 7 is no step of any cadence: a preemption's checkpoint lies between two rows of metrics.
  class Killed(BaseException):
    pass
  def kill(*_):
    raise Killed
  if step == 7:
    monkeypatch.setattr(train.partition.Preemption, "requested", lambda self, at: at >= 7)
    monkeypatch.setattr(train, "group_size", lambda steps, seconds: 1)
    with pytest.raises(errors.Preempted):
      train.train_and_evaluate(tiny.config(), tmp_path / "run")
    assert _steps(tmp_path / "run")[-1] == 7
  else:
    _stop_at(monkeypatch, step, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(tiny.config(), tmp_path / "run")
  monkeypatch.undo()
  train.train_and_evaluate(tiny.config(), tmp_path / "run")
  _assert_same_run(tmp_path / "run", tiny.finished("tgt"))


def _kill_until_done(workdir, config, *, kills, kind, seed=0):
  """Returns (exit code, stderr) of every run of the command, the first `kills` of them killed."""
  rng, said = random.Random(seed), []
  command = tiny.command(workdir, config)
  for _ in range(kills):
    process, began = tiny.start(command), time.monotonic()
    metrics = workdir / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    # At a random moment after a resumed run has got further than the one before it.
    while process.poll() is None and time.monotonic() - began < 120:
      if metrics.exists() and metrics.stat().st_size > size:
        break
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    process.send_signal(kind)
    _, stderr = process.communicate(timeout=120)
    said.append((process.returncode, stderr))
    if process.returncode == 0:
      break
  if process.returncode:
    said.append(tiny.run(command))
  assert said[-1][0] == 0, said[-1]
  return said


@pytest.mark.slow
@pytest.mark.parametrize("kind, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_killed_at_random_moments(tmp_path, kind, code):
  fields = {"total_steps": 300, "checkpoint.every_steps": 15, "log.every_steps": 11,
            "eval.every_steps": 50}
  reference = tiny.finished("tgt", *fields.items())
  said = _kill_until_done(tmp_path / "run", tiny.config(**fields), kills=4, kind=kind)
  assert code in [c for c, _ in said]
  assert {c for c, _ in said} <= {code, 0}
  assert any("resumed at step" in stderr for _, stderr in said)
  _assert_same_run(tmp_path / "run", reference)


def test_the_command_survives_kill_9(tmp_path):
  said = _kill_until_done(tmp_path / "run", tiny.config(), kills=1, kind=signal.SIGKILL)
  assert said[0][0] in (-9, 0)
  _assert_same_run(tmp_path / "run", tiny.finished())


# Damage.

def _steps(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def _interrupted(tmp_path, *, at=12, **fields):
  """Returns a workdir whose run stopped right after its checkpoint of step `at`."""
  workdir = tmp_path / "run"
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  with pytest.MonkeyPatch.context() as patch:
    _stop_at(patch, at, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(tiny.config(**fields), workdir)
  return workdir


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _spoil(workdir, step):
  _flip(workdir / "checkpoints" / str(step) / "opt_state" / _slot(workdir, step) / "0.0")


def _slot(workdir, step):
  folder = workdir / "checkpoints" / str(step) / "opt_state"
  return next(p.name for p in folder.iterdir() if p.name.endswith("mu.embed.item.embedding"))


def test_damaged_newest_is_replaced_by_the_one_before(tmp_path, capfd):
  workdir = _interrupted(tmp_path)
  newest = _steps(workdir)[-1]
  assert newest == 12
  _spoil(workdir, newest)
  train.train_and_evaluate(tiny.config(), workdir)
  stderr = capfd.readouterr().err
  assert f"warning: checkpoint {newest} is damaged" in stderr and "resumed at step 8" in stderr
  _assert_same_run(workdir, tiny.finished("tgt"))
  assert (workdir / "damaged_checkpoints" / str(newest)).is_dir()


def test_all_damaged_starts_again_with_the_transfer(tmp_path, capfd):
  fields = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model", "total_steps": 8}
  reference = tiny.finished("tgt", *fields.items())
  workdir = _interrupted(tmp_path, at=6, **fields)
  damaged = _steps(workdir)
  for step in damaged:
    _spoil(workdir, step)
  train.train_and_evaluate(tiny.config(**fields), workdir)
  stderr = capfd.readouterr().err
  assert stderr.count("is damaged") == len(damaged) and "resumed" not in stderr
  _assert_same_run(workdir, reference)


def test_damaged_best_is_a_clear_error_and_its_advice_works(tmp_path):
  workdir = pathlib.Path(shutil.copytree(tiny.finished("tgt"), tmp_path / "run"))
  (workdir / "report.json").unlink()
  best = checkpoint.Reader(workdir).step
  assert best != 18
  item = workdir / "checkpoints" / str(best) / "params" / "embed.item.embedding" / "0.0"
  _flip(item)
  with pytest.raises(errors.UserError, match=f"best checkpoint, of step {best}, is damaged"):
    train.train_and_evaluate(tiny.config(), workdir)
  assert results.finished(workdir) is None
  shutil.rmtree(workdir / "checkpoints")
  train.train_and_evaluate(tiny.config(), workdir)
  _assert_same_run(workdir, tiny.finished("tgt"))


def test_keeps_latest_and_best_and_nothing_else():
  workdir = tiny.finished("tgt")
  best = results.finished(workdir)["run"]["best_step"]
  assert best < 16
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(
    [str(best), "16", "18"])
  assert sorted(p.name for p in workdir.iterdir()) == [
    "checkpoints", "config.json", "metrics.jsonl", "per_user_test.npz", "report.json"]


# Transfer.

def _initial(monkeypatch, tmp_path, name, **fields):
  """Returns {leaf: array} of the parameters that the optimizer first sees."""
  seen = []
  original = state_lib.create
  class Seen(BaseException):
    pass
  def create(params, tx, seed):
    state = original(params, tx, seed)
    seen.append(state)
    raise Seen
  monkeypatch.setattr(state_lib, "create", create)
  with pytest.raises(Seen):
    train.train_and_evaluate(tiny.config(**fields), tmp_path / name)
  monkeypatch.setattr(state_lib, "create", original)
  state = seen[0]
  # Optimizer state never crosses: all its slots start at zero.
  assert all(not np.any(np.asarray(x)) for x in jax.tree.leaves(state.opt_state))
  assert len(jax.tree.leaves(state.opt_state)) > 10
  return {n: np.asarray(x) for n, x in trees.flatten(state.params).items()}


CARRIED = {"none": "^$", "embedding": "embed/(user|genre)", "model": "(embed|encoder)/"}


@pytest.mark.parametrize("mode", ["none", "embedding", "model"])
def test_transfer_carries_what_it_says(tmp_path, monkeypatch, mode):
  import re
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
  from recjax import experiment
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
  slots = [n for n in _state(tmp_path / "frozen") if "embed/user/embedding" in n]
  assert slots == ["params/embed/user/embedding"]
  assert results.finished(tmp_path / "frozen")["run"]["trained_parameters"] == sum(
    start[leaf].size for leaf in moved["frozen"])


def test_transfer_is_not_repeated_on_resume(tmp_path, monkeypatch):
  source = pathlib.Path(shutil.copytree(tiny.source(), tmp_path / "source"))
  fields = {"transfer.checkpoint": str(source), "transfer.mode": "model", "total_steps": 8}
  workdir = _interrupted(tmp_path, at=6, **fields)
  shutil.rmtree(source)
  monkeypatch.setattr(train, "transfer_from", lambda *_: pytest.fail("transferred again"))
  moved = {**fields, "transfer.checkpoint": str(tmp_path / "elsewhere" / tmp_path.name / "source")}
  train.train_and_evaluate(tiny.config(**moved), workdir)
  same = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model", "total_steps": 8}
  for name, x in _state(tiny.finished("tgt", *same.items())).items():
    assert np.array_equal(x, _state(workdir)[name])
  assert (workdir / "restore_report.json").exists()


def test_transfer_reads_nothing_else(tmp_path):
  for mode, spared in (("embedding", r"embed\.(user|genre)"), ("model", r"(embed|encoder)\.")):
    import re
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


# Devices.

def test_one_device_and_four_agree_and_take_over_from_each_other(tmp_path):
  four, one = tiny.finished(), tiny.finished("tgt", ("num_devices", 1))
  a, b = _state(four), _state(one)
  for name in a:
    if name.startswith("params"):
      np.testing.assert_allclose(a[name], b[name], atol=2e-5, rtol=1e-4, err_msg=name)
  for first, second in ((4, 1), (1, 4)):
    workdir = _interrupted(tmp_path / str(first), num_devices=first)
    train.train_and_evaluate(tiny.config(num_devices=second), workdir)
    c = _state(workdir)
    for name in a:
      if name.startswith("params"):
        np.testing.assert_allclose(a[name], c[name], atol=2e-5, rtol=1e-4, err_msg=name)


# Several processes.

def _processes(workdir, config, port):
  return [tiny.start(tiny.command(workdir, config), devices=2,
                     JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2",
                     JAX_PROCESS_ID=str(index)) for index in range(2)]


def _port():
  import socket
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one(tmp_path):
  fields = {"total_steps": 100, "eval.every_steps": 50, "checkpoint.every_steps": 20}
  reference = tiny.finished("tgt", *fields.items())
  config, workdir = tiny.config(**fields), tmp_path / "run"
  pair = _processes(workdir, config, _port())
  deadline = time.monotonic() + 200
  while not checkpoint.has_checkpoint(workdir) and time.monotonic() < deadline:
    assert all(p.poll() is None for p in pair), [p.communicate()[1] for p in pair]
    time.sleep(0.05)
  pair[1].send_signal(signal.SIGTERM)  # One is told, all leave.
  said = [p.communicate(timeout=200)[1] for p in pair]
  assert [p.returncode for p in pair] == [75, 75], said
  assert 0 < _steps(workdir)[-1] < 100
  pair = _processes(workdir, config, _port())
  said = [p.communicate(timeout=300)[1] for p in pair]
  assert [p.returncode for p in pair] == [0, 0], said
  assert "resumed at step" in said[0] and "resumed" not in said[1]
  a, b = (checkpoint.Reader(w, fields["total_steps"]).params() for w in (reference, workdir))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], atol=1e-3, rtol=1e-3, err_msg=name)
  assert tiny.metric_rows(workdir).keys() == tiny.metric_rows(reference).keys()
  assert record.read_metrics(workdir / "metrics.jsonl")
