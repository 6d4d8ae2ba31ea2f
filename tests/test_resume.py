"""Interrupted, damaged or moved to other devices: a run ends as if nothing had happened."""

import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import time

import numpy as np
import pytest
import tiny

from recjax import checkpoint, errors, record, results, train

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# Resume.

def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
  before = signal.getsignal(signal.SIGTERM)
  tiny.stop_at(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(errors.Preempted, match="run the same command"):
    train.train_and_evaluate(tiny.config(), tmp_path / "run")
  assert signal.getsignal(signal.SIGTERM) is before
  assert results.finished(tmp_path / "run") is None
  saved = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
  assert 8 < saved < 18
  train.train_and_evaluate(tiny.config(), tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tiny.finished("tgt"))


@pytest.mark.parametrize("step", [7, 18])
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
    assert tiny.steps(tmp_path / "run")[-1] == 7
  else:
    tiny.stop_at(monkeypatch, step, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(tiny.config(), tmp_path / "run")
  monkeypatch.undo()
  train.train_and_evaluate(tiny.config(), tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tiny.finished("tgt"))


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
  tiny.assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_the_command_survives_kill_9(tmp_path):
  said = _kill_until_done(tmp_path / "run", tiny.config(), kills=1, kind=signal.SIGKILL)
  assert said[0][0] in (-9, 0)
  tiny.assert_same_run(tmp_path / "run", tiny.finished())


@pytest.mark.slow
def test_a_run_that_updates_rows_alone_goes_on_as_well(tmp_path):
  fields = {"optim.sparse_rows": True, "objective.masked_item.criterion": "sampled_softmax",
            "objective.masked_item.num_negatives": 6, "objective.masked_item.negatives": "row",
            "total_steps": 14}
  reference = tiny.finished("tgt", *fields.items())
  workdir = tiny.interrupted(tmp_path, at=8, **fields)
  train.train_and_evaluate(tiny.config(**fields), workdir)
  tiny.assert_same_run(workdir, reference)
  # And its checkpoints have the layout of any other.
  plain = tiny.state(tiny.finished("tgt"))
  assert {n: x.shape for n, x in tiny.state(workdir).items()} == {
    n: x.shape for n, x in plain.items()}


# Damage.

def _spoil(workdir, step):
  tiny.flip(workdir / "checkpoints" / str(step) / "opt_state" / _slot(workdir, step) / "0.0")


def _slot(workdir, step):
  folder = workdir / "checkpoints" / str(step) / "opt_state"
  return next(p.name for p in folder.iterdir() if p.name.endswith("mu.embed.item.embedding"))


def test_damaged_newest_is_replaced_by_the_one_before(tmp_path, capfd):
  workdir = tiny.interrupted(tmp_path)
  newest = tiny.steps(workdir)[-1]
  assert newest == 12
  _spoil(workdir, newest)
  train.train_and_evaluate(tiny.config(), workdir)
  stderr = capfd.readouterr().err
  assert f"warning: checkpoint {newest} is damaged" in stderr and "resumed at step 8" in stderr
  tiny.assert_same_run(workdir, tiny.finished("tgt"))
  assert (workdir / "damaged_checkpoints" / str(newest)).is_dir()


def test_all_damaged_starts_again_with_the_transfer(tmp_path, capfd):
  fields = {"transfer.checkpoint": str(tiny.source()), "transfer.mode": "model", "total_steps": 8}
  reference = tiny.finished("tgt", *fields.items())
  workdir = tiny.interrupted(tmp_path, at=6, **fields)
  damaged = tiny.steps(workdir)
  for step in damaged:
    _spoil(workdir, step)
  train.train_and_evaluate(tiny.config(**fields), workdir)
  stderr = capfd.readouterr().err
  assert stderr.count("is damaged") == len(damaged) and "resumed" not in stderr
  tiny.assert_same_run(workdir, reference)


def test_damaged_best_is_a_clear_error_and_its_advice_works(tmp_path):
  workdir = pathlib.Path(shutil.copytree(tiny.finished("tgt"), tmp_path / "run"))
  (workdir / "report.json").unlink()
  best = checkpoint.Reader(workdir).step
  assert best != 18
  item = workdir / "checkpoints" / str(best) / "params" / "embed.item.embedding" / "0.0"
  tiny.flip(item)
  with pytest.raises(errors.UserError, match=f"best checkpoint, of step {best}, is damaged"):
    train.train_and_evaluate(tiny.config(), workdir)
  assert results.finished(workdir) is None
  shutil.rmtree(workdir / "checkpoints")
  train.train_and_evaluate(tiny.config(), workdir)
  tiny.assert_same_run(workdir, tiny.finished("tgt"))


def test_keeps_latest_and_best_and_nothing_else():
  workdir = tiny.finished("tgt")
  best = results.finished(workdir)["run"]["best_step"]
  assert best < 16
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(
    [str(best), "16", "18"])
  assert sorted(p.name for p in workdir.iterdir()) == [
    "checkpoints", "config.json", "metrics.jsonl", "per_positive_test.npz", "per_user_test.npz",
    "report.json"]


# Devices.

@pytest.mark.parametrize("first,second", [(4, 1), pytest.param(1, 4, marks=pytest.mark.slow)])
def test_one_device_and_four_agree_and_take_over_from_each_other(tmp_path, first, second):
  four, one = tiny.finished(), tiny.finished("tgt", ("num_devices", 1))
  a, b = tiny.state(four), tiny.state(one)
  for name in a:
    if name.startswith("params"):
      np.testing.assert_allclose(a[name], b[name], atol=2e-5, rtol=1e-4, err_msg=name)
  workdir = tiny.interrupted(tmp_path, num_devices=first)
  train.train_and_evaluate(tiny.config(num_devices=second), workdir)
  c = tiny.state(workdir)
  for name in a:
    if name.startswith("params"):
      np.testing.assert_allclose(a[name], c[name], atol=2e-5, rtol=1e-4, err_msg=name)


# Several processes.

def _processes(workdir, config, port):
  return [tiny.start(tiny.command(workdir, config), devices=2,
                     JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2",
                     JAX_PROCESS_ID=str(index)) for index in range(2)]


def _port():
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
  assert 0 < tiny.steps(workdir)[-1] < 100
  pair = _processes(workdir, config, _port())
  said = [p.communicate(timeout=300)[1] for p in pair]
  assert [p.returncode for p in pair] == [0, 0], said
  assert "resumed at step" in said[0] and "resumed" not in said[1]
  a, b = (checkpoint.Reader(w, fields["total_steps"]).params() for w in (reference, workdir))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], atol=1e-3, rtol=1e-3, err_msg=name)
  assert tiny.metric_rows(workdir).keys() == tiny.metric_rows(reference).keys()
  assert record.read_metrics(workdir / "metrics.jsonl")


@pytest.mark.slow
def test_two_processes_one_is_killed_and_other_devices_go_on(tmp_path):
  fields = {"total_steps": 100, "eval.every_steps": 50, "checkpoint.every_steps": 20}
  reference = tiny.finished("tgt", *fields.items())
  workdir = tmp_path / "run"
  pair = _processes(workdir, tiny.config(**fields, model_devices=2), _port())
  deadline = time.monotonic() + 200
  while not checkpoint.has_checkpoint(workdir) and time.monotonic() < deadline:
    assert all(p.poll() is None for p in pair), [p.communicate()[1] for p in pair]
    time.sleep(0.05)
  pair[1].kill()  # The other one waits for it in vain, until jax or whoever started it ends it.
  time.sleep(2)
  pair[0].kill()
  said = [p.communicate(timeout=60)[1] for p in pair]
  assert tiny.steps(workdir)[-1] < 100, said
  # 2 x 2 devices of two processes were killed; 2 of one go on, data x model 2 x 1.
  code, stderr = tiny.run(tiny.command(workdir, tiny.config(**fields)), devices=2)
  assert code == 0 and "resumed at step" in stderr, stderr
  a, b = (checkpoint.Reader(w, fields["total_steps"]).params() for w in (reference, workdir))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], atol=1e-3, rtol=1e-3, err_msg=name)
  assert tiny.metric_rows(workdir).keys() == tiny.metric_rows(reference).keys()
  ours, theirs = (results.finished(w)["test"]["full"] for w in (workdir, reference))
  assert ours == pytest.approx(theirs, abs=0.02)
  code, stderr = tiny.run([sys.executable, "-m", "recjax.evaluate", f"--workdir={workdir}"],
                          devices=1)
  assert code == 0, stderr
