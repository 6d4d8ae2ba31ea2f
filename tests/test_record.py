"""metrics.jsonl, progress lines and atomic files."""

import json
import math
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest

from recjax import record


def _recorder(folder, *, start_step=0, total_steps=100, **kw):
  return record.Recorder(folder, start_step=start_step, total_steps=total_steps,
                         **{"tensorboard": False, **kw})


def _write_steps(folder, steps, **kw):
  recorder = _recorder(folder, **kw)
  for step in steps:
    recorder.write(step, "train", {"loss": step / 10})
  recorder.close()


def test_rows_come_back(tmp_path):
  recorder = _recorder(tmp_path)
  recorder.write(3, "val", {"full/ndcg@10": np.float32(0.5), "count": jnp.int32(7), "x": 1.25})
  rows = record.read_metrics(tmp_path / "metrics.jsonl")  # each row is on disk as soon as written
  assert rows == [{"step": 3, "split": "val", "full/ndcg@10": 0.5, "count": 7, "x": 1.25}]
  recorder.close()


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
  _write_steps(tmp_path, [10, 20, 30, 40])
  _write_steps(tmp_path, [30, 40, 50], start_step=20)
  rows = record.read_metrics(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]


def test_a_half_written_last_line_is_left_out(tmp_path):
  _write_steps(tmp_path, [10, 20])
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  for cut in range(len(whole.splitlines()[0]) + 2, len(whole) - 1):
    path.write_text(whole[:cut])
    assert [row["step"] for row in record.read_metrics(path)] == [10]
  _write_steps(tmp_path, [20], start_step=15)
  assert path.read_text() == whole


def test_no_file_has_no_rows(tmp_path):
  assert record.read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), np.float64("-inf"),
                                   jnp.float32("nan")])
def test_what_json_lacks_is_null(tmp_path, value):
  recorder = _recorder(tmp_path, tensorboard=True)
  recorder.write(1, "train", {"loss": value})
  recorder.close()
  strict = lambda text: json.loads(text, parse_constant=lambda name: pytest.fail(f"wrote {name}"))
  assert strict((tmp_path / "metrics.jsonl").read_text())["loss"] is None
  record.write_json(tmp_path / "report.json", {"a": [{"b": value}, (value,)], "c": 1})
  assert strict((tmp_path / "report.json").read_text()) == {"a": [{"b": None}, [None]], "c": 1}


def test_a_step_is_a_number_whatever_carries_it(tmp_path):
  recorder = _recorder(tmp_path)
  recorder.write(np.int64(5), "train", {})
  recorder.close()
  assert record.read_metrics(tmp_path / "metrics.jsonl")[0]["step"] == 5


def test_arrays_have_no_place_in_json(tmp_path):
  with pytest.raises((TypeError, ValueError)):
    record.write_json(tmp_path / "x.json", {"a": np.zeros(3)})
  assert not list(tmp_path.iterdir())  # neither a file nor a draft of it


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "report.json"
  record.write_json(path, {"a": 1})
  def fail(*_):
    raise OSError("disk full")
  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError):
    record.write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 1}


def test_progress_without_a_terminal_is_a_line(tmp_path, capsys):
  recorder = _recorder(tmp_path, start_step=100, total_steps=400)
  recorder.progress(200, {"loss": 2.3456}, examples_per_s=1234.5)
  recorder.say("hello")
  recorder.close()
  out, err = capsys.readouterr()
  assert out == ""
  line, said = err.splitlines()
  assert re.fullmatch(r"step 200/400 \[50\.0%\] loss 2\.346 \| 1,23[45] ex/s \| eta \d+s", line)
  assert said == "hello"


def test_the_eta_counts_from_where_the_run_resumed(tmp_path, capsys, monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(record.time, "monotonic", lambda: now[0])
  recorder = _recorder(tmp_path, start_step=300, total_steps=400)
  now[0] += 10  # 20 steps in 10 s, so 80 more take 40 s
  recorder.progress(320, {}, examples_per_s=1)
  recorder.close()
  assert capsys.readouterr().err.endswith("eta 40s\n")


def test_other_processes_are_silent(tmp_path, capsys):
  recorder = _recorder(tmp_path, active=False, tensorboard=True)
  recorder.write(1, "train", {"loss": 1.0})
  recorder.progress(1, {"loss": 1.0}, examples_per_s=1)
  recorder.say("hello")
  recorder.close()
  assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_tensorboard_is_written_where_asked(tmp_path):
  for wanted in (False, True):
    folder = tmp_path / str(wanted)
    folder.mkdir()
    recorder = _recorder(folder, tensorboard=wanted)
    recorder.write(1, "test", {"train+val/full/ndcg@10": 0.1, "bad": math.nan})
    recorder.close()
    events = list(folder.glob("tensorboard/events*"))
    assert len(events) == int(wanted)
    if wanted:
      data = events[0].read_bytes()
      assert b"ndcg_at_10" in data and b"test/bad" not in data
