"""Runs on a sharded data set: those on arrays, bit for bit; killed and resumed; two hosts."""

import functools
import signal
import socket
import time

import evaluator_data
import numpy as np
import pytest
import tiny

from recjax import checkpoint, cohort, experiment, train
from recjax import feed as feed_lib
from recjax.data import sequences, streams

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SHARDS = 5


@functools.cache
def _data_dir():
  folder = tiny.root() / "sharded"
  evaluator_data.shard(sequences.load(tiny.root() / "data", "tgt"), folder, SHARDS)
  return str(folder)


def _fields(**fields):
  return {"data_dir": _data_dir(), **fields}


@pytest.mark.slow
@pytest.mark.optimized
def test_a_run_on_shards_is_the_run_on_arrays(tmp_path, monkeypatch):
  monkeypatch.setattr(streams, "MAX_STEPS", 4)  # Stacks end where nothing is due.
  train.train_and_evaluate(tiny.config(**_fields()), tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tiny.finished())


def test_killed_in_an_epoch_and_resumed(tmp_path, monkeypatch):
  # Shards are mixed two by two: an order that no array has. An epoch is 5 steps.
  fields = _fields(mixed_shards=2, **{"objective.window": "random"})
  train.train_and_evaluate(tiny.config(**fields), tmp_path / "whole")
  monkeypatch.setattr(streams, "MAX_STEPS", 3)
  workdir = tiny.interrupted(tmp_path, at=8, **fields)
  train.train_and_evaluate(tiny.config(**fields), workdir)
  tiny.assert_same_run(workdir, tmp_path / "whole")


def test_the_feed_says_how_far_its_tables_serve(monkeypatch):
  monkeypatch.setattr(streams, "MAX_STEPS", 4)
  feed = feed_lib.make(experiment.build(tiny.config(**_fields())))
  tables, served = feed.at(6)
  assert served == 4 and feed.at(8) == (tables, 2) and int(tables["first"]) == 6
  assert tables["stack"]["items"].shape == (4, 12, feed.length)
  # Rows are split over the devices, as those of a batch are.
  assert {s.data.shape for s in tables["stack"]["users"].addressable_shards} == {(4, 3)}
  after, served = feed.at(10)
  assert served == 4 and int(after["first"]) == 10
  back, _ = feed.at(6)  # Not only onwards.
  np.testing.assert_array_equal(back["stack"]["items"], tables["stack"]["items"])


def test_a_cohort_trains_sharded_runs_one_by_one(tmp_path, monkeypatch):
  monkeypatch.setattr(cohort, "_together", lambda *_: pytest.fail("trained at once"))
  monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: config.seed)
  configs = [tiny.config(**_fields(seed=seed)) for seed in range(2)]
  assert cohort.train_and_evaluate(configs, [tmp_path / "0", tmp_path / "1"]) == [0, 1]


def test_a_shard_that_is_damaged_ends_the_command_with_one_line(tmp_path):
  folder = tmp_path / "data"
  data = evaluator_data.shard(sequences.load(tiny.root() / "data", "tgt"), folder, SHARDS)
  path = data.shards.paths[3]
  path.write_bytes(path.read_bytes()[:-7])
  code, stderr = tiny.run(tiny.command(tmp_path / "run", tiny.config(data_dir=str(folder))))
  assert code == 2
  line = stderr.strip().splitlines()[-1]
  assert line.startswith("error: ") and path.name in line and "prepare the data again" in line
  assert "Traceback" not in stderr


def _processes(workdir, config):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  return [tiny.start(tiny.command(workdir, config), devices=2,
                     JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2",
                     JAX_PROCESS_ID=str(index)) for index in range(2)]


def _finish(pair, code=0):
  said = [process.communicate(timeout=300)[1] for process in pair]
  assert [process.returncode for process in pair] == [code, code], said
  return said


@pytest.mark.slow
def test_two_hosts_stream_their_own_shards_and_resume(tmp_path):
  fields = _fields(mixed_shards=2, total_steps=60, **{"eval.every_steps": 30,
                                                     "checkpoint.every_steps": 7})
  config, workdir = tiny.config(**fields), tmp_path / "run"
  _finish(_processes(tmp_path / "whole", config))
  pair = _processes(workdir, config)
  deadline = time.monotonic() + 200
  while not checkpoint.has_checkpoint(workdir) and time.monotonic() < deadline:
    time.sleep(0.05)
  pair[0].send_signal(signal.SIGTERM)
  _finish(pair, 75)
  assert 0 < tiny.steps(workdir)[-1] < 60
  said = _finish(_processes(workdir, config))
  assert "resumed at step" in said[0]
  mine, theirs = (checkpoint.Reader(w, 60).params() for w in (workdir, tmp_path / "whole"))
  for name in theirs:
    np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
