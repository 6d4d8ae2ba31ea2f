"""Scoring a stored checkpoint gives what training reported, or says why it cannot."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tiny

from recjax import errors, evaluate, record

TABLES = ("test", "contexts", "popularity", "chance", "context", "data")


@pytest.fixture
def copied(tmp_path):
  return pathlib.Path(shutil.copytree(tiny.finished(), tmp_path / "run"))


def test_the_best_step_gives_the_reported_numbers(copied):
  before = json.loads((copied / "report.json").read_text())
  report = evaluate.evaluate(copied)
  step = report["run"]["step"]
  assert step == before["run"]["best_step"]
  assert {k: report[k] for k in TABLES} == {k: before[k] for k in TABLES}
  assert report["run"]["parameters"] == before["run"]["parameters"]
  stored = json.loads((copied / f"evaluation_test_{step}.json").read_text())
  assert {k: stored[k] for k in TABLES} == {k: before[k] for k in TABLES}
  assert json.loads((copied / "report.json").read_text()) == before  # Left alone.
  with np.load(copied / "per_user_test.npz") as a:
    with np.load(copied / f"per_user_test_{step}.npz") as b:
      assert set(a.files) == set(b.files)
      assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_another_step_has_other_numbers(copied):
  before = json.loads((copied / "report.json").read_text())
  report = evaluate.evaluate(copied, step=18)
  assert report["run"]["step"] == 18 != before["run"]["best_step"]
  assert report["test"] != before["test"] and report["popularity"] == before["popularity"]


def test_validation_is_what_training_saw(copied):
  report = evaluate.evaluate(copied, split="val")
  assert set(report["contexts"]) == {"train"} and "test" not in report
  rows = record.read_metrics(copied / "metrics.jsonl")
  row = next(r for r in rows if r["split"] == "val" and r["step"] == report["run"]["step"])
  for metric, value in report["val"]["full"].items():
    assert row[f"full/{metric}"] == value
  assert (copied / f"per_user_val_{report['run']['step']}.npz").is_file()


def test_data_may_have_moved(copied, tmp_path):
  moved = shutil.copytree(tiny.root() / "data", tmp_path / "moved")
  config = copied / "config.json"
  config.write_text(config.read_text().replace(str(tiny.root() / "data"), "/nowhere"))
  report = evaluate.evaluate(copied, data_dir=str(moved))
  assert report["test"] == json.loads((copied / "report.json").read_text())["test"]


def test_a_run_on_one_device_is_read_on_all(tmp_path):
  workdir = shutil.copytree(tiny.finished("tgt", ("num_devices", 1)), tmp_path / "run")
  before = json.loads((workdir / "report.json").read_text())
  report = evaluate.evaluate(workdir)
  for metric, value in report["test"]["full"].items():
    # A rounding error may turn one near-tie among 55 users.
    assert value == pytest.approx(before["test"]["full"][metric], abs=0.02)


def test_data_prepared_anew_are_refused(copied, tmp_path):
  moved = shutil.copytree(tiny.root() / "data", tmp_path / "moved")
  shutil.rmtree(moved / "tgt")
  shutil.copytree(moved / "src", moved / "tgt")
  with pytest.raises(errors.UserError, match="does not fit.*embed/user/embedding"):
    evaluate.evaluate(copied, data_dir=str(moved))


def test_parameters_that_are_no_good_are_a_clear_error(copied, monkeypatch):
  original = evaluate.experiment.restore
  def restore(*args, **kwargs):
    exp, params, reader = original(*args, **kwargs)
    params["head"]["scores"]["bias"] = params["head"]["scores"]["bias"].at[2].set(np.nan)
    return exp, params, reader
  monkeypatch.setattr(evaluate.experiment, "restore", restore)
  with pytest.raises(errors.UserError, match="NaN among the scores"):
    evaluate.evaluate(copied)


def test_the_command(copied):
  command = [sys.executable, "-m", "recjax.evaluate", f"--workdir={copied}"]
  code, stderr = tiny.run([*command, "--step=99"])
  assert (code, stderr.count("\n")) == (2, 1)
  assert f"{copied}: no checkpoint of step 99; there are [" in stderr
  process = tiny.start([*command, "--split=val"])
  stdout, stderr = process.communicate(timeout=300)
  assert process.returncode == 0, stderr
  assert "val split of tgt" in stdout and "popularity" in stdout
