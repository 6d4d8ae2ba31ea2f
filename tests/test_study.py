"""The graph of runs: what is refused at once, what is skipped, and what a failure blocks."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import fake_runs
import pytest

from recjax import errors, partition, plots, report, spec, study, study_plan

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
  """Plots take longer than all the rest; tests/test_report.py and the command here draw them."""
  monkeypatch.setattr(plots, "draw", lambda workdir, report: [])
  monkeypatch.setattr(study.gc, "collect", lambda: None)  # takes longer than a fake run


def run(config, folder, *, calls=None, **kw):
  trainer = fake_runs.make_trainer({"model": 0.02}, calls=calls, broken=kw.pop("broken", ()))
  return study.run_study(config, folder / "w", train=trainer, **kw)


def states(result):
  return {(s["name"], s["seed"]): s["state"] for s in result["states"]}


def test_every_run_comes_after_its_source_with_its_own_config(tmp_path):
  calls = []
  result = run(fake_runs.make_study(tmp_path), tmp_path, calls=calls)
  assert result["finished"] and len(calls) == 15
  seen = set()
  for config in calls:
    if config.transfer.mode != "none":
      assert config.transfer.checkpoint in seen
      assert config.transfer.checkpoint.endswith(f"seed{config.seed}")
    seen.add(str(tmp_path / "w" / "runs" / name_of(config) / f"seed{config.seed}"))
  assert {c.objective.name for c in calls if c.dataset == "src"} == {"masked_item", "next_item"}
  assert [c.seed for c in calls] == sorted(c.seed for c in calls)  # all rows of one seed first


def name_of(config):
  sources = {"masked_item": "a_source", "next_item": "z_source"}
  return sources[config.objective.name] if config.dataset == "src" else config.transfer.mode


def test_started_again_nothing_runs(tmp_path, capsys):
  config = fake_runs.make_study(tmp_path)
  first = run(config, tmp_path)
  calls = []
  capsys.readouterr()
  again = run(config, tmp_path, calls=calls)
  assert calls == []
  assert again["rows"] == first["rows"] and again["comparisons"] == first["comparisons"]
  assert "[15/15] " in (out := capsys.readouterr().out)
  assert "[1/15] none seed 0: done in 1 min 15 s (cached)" in out


def test_a_cut_run_is_trained_again_and_the_others_are_not(tmp_path):
  config = fake_runs.make_study(tmp_path)
  run(config, tmp_path)
  (tmp_path / "w/runs/model/seed1/report.json").unlink()
  calls = []
  run(config, tmp_path, calls=calls)
  assert [(c.transfer.mode, c.seed) for c in calls] == [("model", 1)]


def test_a_changed_config_is_named_before_anything_runs(tmp_path):
  run(fake_runs.make_study(tmp_path), tmp_path)
  calls = []
  changed = fake_runs.make_study(tmp_path, overrides=(("total_epochs", 9),))
  with pytest.raises(errors.UserError, match=r"total_epochs was 2, is now 9; delete that folder"):
    run(changed, tmp_path, calls=calls)
  assert calls == []
  result = run(changed, tmp_path, report_only=True)  # still reports, but says so
  assert all("total_epochs" in s["note"] for s in result["states"])
  assert "need attention" in (tmp_path / "w/report.md").read_text()


def test_a_moved_study_is_still_complete(tmp_path):
  config = fake_runs.make_study(tmp_path)
  run(config, tmp_path)
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "w").rename(tmp_path / "elsewhere/w")
  (tmp_path / "data").rename(tmp_path / "elsewhere/data")
  config.data_dir = str(tmp_path / "elsewhere/data")
  calls = []
  run(config, tmp_path / "elsewhere", calls=calls)
  assert calls == []


def test_other_data_under_the_same_name_are_noticed(tmp_path):
  config = fake_runs.make_study(tmp_path)
  run(config, tmp_path)
  path = tmp_path / "data/tgt/manifest.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "raw_sha256": "b"}))
  with pytest.raises(errors.UserError, match="raw_sha256 of the data set 'tgt' was 'a', is now"):
    run(config, tmp_path)


def test_a_failure_blocks_what_transfers_from_it_and_nothing_else(tmp_path, capsys):
  config = fake_runs.make_study(tmp_path, seeds=(0,))
  config.runs.second = {"config": config.runs.none.config, "source": "model", "mode": "embedding"}
  result = run(config, tmp_path, broken=("model",))
  assert not result["finished"]
  assert states(result) == {
    ("none", 0): "done", ("z_source", 0): "done", ("model", 0): "failed", ("second", 0): "blocked",
    ("a_source", 0): "done", ("embedding", 0): "done"}
  text = (tmp_path / "w/report.md").read_text()
  assert "`model` seed 0: failed (ValueError: it broke in two lines)" in text
  assert "model seed 0: failed in 0 s: ValueError: it broke" in capsys.readouterr().out
  assert "Traceback" in (tmp_path / "w/status.json").read_text() and "Traceback" not in text
  # The failure is remembered, and mended by the next start.
  assert states(run(config, tmp_path, report_only=True))["model", 0] == "failed"
  assert run(config, tmp_path)["finished"]


def test_a_signal_that_comes_as_a_run_ends_stops_the_study(tmp_path):
  config, calls = fake_runs.make_study(tmp_path), []
  trainer = fake_runs.make_trainer(calls=calls)
  def train(config, workdir):
    with partition.Preemption():  # as a run has it, which ends before it looks again
      os.kill(os.getpid(), signal.SIGTERM)
    trainer(config, workdir)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(errors.Preempted, match="14 runs are left; run the same command"):
    study.run_study(config, tmp_path / "w", train=train)
  assert len(calls) == 1 and signal.getsignal(signal.SIGTERM) is before
  assert run(config, tmp_path, calls=calls)["finished"] and len(calls) == 15


def test_a_signal_that_comes_before_a_run_looks_for_it_is_seen_then(tmp_path):
  def train(config, workdir):
    os.kill(os.getpid(), signal.SIGTERM)  # as it reads data or compiles
    with partition.Preemption() as preemption:
      if preemption.requested(1):
        raise errors.Preempted("saved step 1")
  with pytest.raises(errors.Preempted, match="saved step 1"):
    study.run_study(fake_runs.make_study(tmp_path), tmp_path / "w", train=train)


def test_preemption_passes_through_and_the_next_start_goes_on(tmp_path):
  config = fake_runs.make_study(tmp_path)
  trainer, calls = fake_runs.make_trainer(), []

  def cut(run_config, workdir):
    if calls:
      raise errors.Preempted("saved")
    calls.append(run_config)
    trainer(run_config, workdir)

  with pytest.raises(errors.Preempted):
    study.run_study(config, tmp_path / "w", train=cut)
  later = []
  assert run(config, tmp_path, calls=later)["finished"] and len(later) == 14


def test_a_trainer_that_leaves_no_report_failed(tmp_path):
  result = study.run_study(fake_runs.make_study(tmp_path), tmp_path / "w", train=lambda c, w: None)
  assert {s["state"] for s in result["states"]} == {"failed", "blocked"}
  assert "No run is complete" in (tmp_path / "w/report.md").read_text()


def test_only_trains_a_run_and_its_sources(tmp_path):
  calls = []
  result = run(fake_runs.make_study(tmp_path), tmp_path, calls=calls, only=("model",))
  assert {name_of(c) for c in calls} == {"model", "z_source"} and len(calls) == 6
  assert states(result)["none", 0] == "not run" and not result["finished"]
  assert states(result)["model", 0] == "done"
  assert "| none  " in (text := (tmp_path / "w/report.md").read_text()) and "– |" in text
  with pytest.raises(errors.UserError, match="there is no 'modle'"):
    run(fake_runs.make_study(tmp_path), tmp_path, only=("modle",))


def test_report_only_trains_nothing(tmp_path):
  config = fake_runs.make_study(tmp_path)
  with pytest.raises(errors.UserError, match="no run in .* is complete"):
    run(config, tmp_path, report_only=True)
  run(config, tmp_path, command="the first command")
  (tmp_path / "w/report.md").unlink()
  (tmp_path / "data").rename(tmp_path / "gone")  # a report needs no data
  calls = []
  assert run(config, tmp_path, report_only=True, calls=calls, command="x")["finished"]
  assert calls == [] and "the first command" in (tmp_path / "w/report.md").read_text()


def test_one_pretraining_can_serve_all_seeds(tmp_path):
  config = fake_runs.make_study(tmp_path)
  config.runs.z_source.seeds = (7,)
  config.runs.model.source_seeds = (7, 7, 7)
  calls = []
  assert run(config, tmp_path, calls=calls)["finished"]
  assert {c.transfer.checkpoint for c in calls if c.transfer.mode == "model"} == {
    str(tmp_path / "w/runs/z_source/seed7")}


def test_a_run_can_transfer_from_several(tmp_path):
  config = fake_runs.make_study(tmp_path)
  config.runs.model.source = "z_source,a_source"
  calls = []
  assert run(config, tmp_path, calls=calls)["finished"]
  assert [c.transfer.checkpoint for c in calls if name_of(c) == "model"][0] == ",".join(
    str(tmp_path / f"w/runs/{name}/seed0") for name in ("z_source", "a_source"))
  names = [(name_of(c), c.seed) for c in calls]
  assert names.index(("model", 0)) > max(names.index(("z_source", 0)), names.index(("a_source", 0)))


def change(path, value):
  return lambda config: spec.override(config, {path: value})


@pytest.mark.parametrize("spoil, message", [
  (change("data_dir", ""), "--config.data_dir=DIR is required"),
  (change("runs.model.source", "nobody"), "there is no 'nobody'"),
  (change("runs.model.source", "model"), "circle: model <- model"),
  (change("runs.model.mode", None), "a source needs a transfer mode"),
  (change("runs.none.config", "absent.py"), "run 'none': no config file 'absent.py'"),
  (change("baseline", "a_source"), "baseline: there is no 'a_source'"),
  (change("rows", (("none", "nope"),)), "rows: there is no 'nope'"),
  (change("seeds", (1, 1)), "holds one of them twice"),
  (change("comparisons", (("x", "popularity", "none"),)), "there is no 'popularity'"),
  (change("comparisons", (("x", "none", "nobody"),)), "comparisons: there is no 'nobody'"),
  (change("published", {"nobody": {}}), "published: there is no 'nobody'"),
  (lambda config: config.published.update({"none": {"ndcg@10": 1.0}}),
   "published: 'ndcg@10' is not \"PROTOCOL/METRIC\""),
  (lambda config: config.update(baselines={"model": "nobody"}), "baselines: there is no 'nobody'"),
  (lambda config: config.update(baselines={"z_source": "none"}), "there is no 'z_source'"),
  (lambda config: config.update(baseline=None), "lacks baseline"),
  (lambda config: config.update(claims=(("x", ()),)), "claims: each is"),
  (lambda config: config.update(claims=(("x", ("none",)),)), "claims: each is"),
  (lambda config: config.update(claims=(("x", (("none", "nobody"),)),)), "there is no 'nobody'"),
  (lambda config: config.update(claims=(("x", (("model", "none"),), "mrr"),)),
   "claim 'x': 'mrr' is not"),
  (lambda config: config.update(data_rows=(("x", "tgt"),)), "data_rows: each is"),
  (lambda config: config.update(data_rows=(("x", "tgt", {"users": "many"}),)),
   "data_rows: x, users: 'many' is no printed number"),
  (lambda config: config.update(data_rows=(("x", "gone", {"users": None}),)),
   "no prepared data set 'gone'"),
  (change("runs.a_source.overrides", (("objective.nome", 1),)),
   "run 'a_source': unknown config field 'objective.nome'"),
  (change("runs.a_source.overrides", ("objective.name", "x")), "run 'a_source': config .* fails"),
  (lambda config: config.runs.none.update(sauce="x"), "run 'none': unknown field 'sauce'"),
  (lambda config: config.update(run={}), "the study: unknown field 'run'"),
  (lambda config: config.runs.model.update(source_seeds=(0, 1)), "must be one each for"),
  (lambda config: config.runs.model.update(source_seeds=(0, 1, 9)), "there is no 9"),
])
def test_mistakes_are_found_before_anything_runs(tmp_path, spoil, message):
  config, calls = fake_runs.make_study(tmp_path), []
  with config.unlocked():
    spoil(config)
  with pytest.raises(errors.UserError, match=message):
    run(config, tmp_path, calls=calls)
  assert calls == [] and not (tmp_path / "w").exists()


def test_a_longer_circle_is_named():
  config = spec.load_config(str(ROOT / "configs/studies/demo.py"))
  with config.unlocked():
    config.runs.source_nip.update(source="model_nip", mode="model")
  with pytest.raises(errors.UserError, match="circle"):
    study_plan.ordered(config)


def test_a_config_file_that_raises_is_a_users_mistake(tmp_path):
  config = fake_runs.make_study(tmp_path)
  (tmp_path / "run.py").write_text("def get_config(arg=None):\n  return 1 / 0\n")
  with pytest.raises(errors.UserError, match="fails: ZeroDivisionError"):
    run(config, tmp_path)


def test_missing_data_tell_the_command(tmp_path):
  config = fake_runs.make_study(tmp_path, data_dir="/absent")
  with pytest.raises(errors.UserError, match="no prepared data set 'src' in '/absent'; run: pyth"):
    run(config, tmp_path)
  with config.unlocked():
    config.prepare = "make {data_dir}"
  with pytest.raises(errors.UserError, match="run: make /absent$"):
    run(config, tmp_path)


def _shipped(name):
  """Returns the config of a study of this repository, checked."""
  config = spec.load_config(str(ROOT / "configs/studies" / name))
  with config.unlocked():
    config.data_dir = "anywhere"
  study_plan.check(config)
  return config


@pytest.mark.parametrize("name, seeds, names, runs, model", [
  ("demo.py", 3, 7, 17, ""), ("table2.py", 5, 33, 161, "bert4rec_meta_"),
  ("table2.py:cpu", 5, 33, 129, "bert4rec_meta_"), ("table2.py:proof", 1, 33, 33, "bert4rec_meta_"),
  ("food_kitchen.py:proof", 1, 15, 15, "bert4rec_")])
def test_the_shipped_studies_are_well_formed(name, seeds, names, runs, model):
  config = _shipped(name)
  assert len(config.seeds) == seeds
  order = study_plan.ordered(config)
  assert len(order) == names
  assert order.index(f"{model}source_mip") < order.index(f"{model}model_mip")
  assert len(study_plan.plan(config, "w")) == runs


STUDIES = sorted(path.stem for path in (ROOT / "configs/studies").glob("*.py")
                 if path.stem not in ("common", "table1"))  # which have no runs


@pytest.mark.parametrize("file", [
  pytest.param(f"{name}.py{size}", marks=[pytest.mark.slow] * (f"{name}{size}" == "matrix"))
  for name in STUDIES for size in ("", ":cpu")
  if f"{name}{size}" not in ("demo:cpu", "caser_legacy:cpu")])
def test_every_run_of_every_study_can_be_configured(file):
  assert study_plan.plan(_shipped(file), "w")


def test_ratings_have_rows_that_say_why():
  config = _shipped("table3.py:cpu")
  assert len(study_plan.plan(config, "w")) == 64
  assert len(study_plan.plan(_shipped("table3.py:proof"), "w")) == 16
  assert config.runs.oppermann_biases.overrides == (("model.biases", True),)


def test_a_table_of_data_is_a_study_without_runs():
  config = _shipped("table1.py")
  assert study_plan.plan(config, "w") == []
  with pytest.raises(errors.UserError, match="no prepared data set 'ml1m' in 'anywhere'"):
    study_plan.check_data(config, [])
  with config.unlocked():
    config.runs = {"none": {"config": "x.py"}}
  with pytest.raises(errors.UserError, match="lacks seeds, rows, baseline"):
    study_plan.check(config)


def test_configs_are_found_from_another_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert study_plan._resolve("configs/studies/demo.py:x") == f"{ROOT}/configs/studies/demo.py:x"
  (tmp_path / "own.py").write_text("")
  assert study_plan._resolve("own.py:x") == "own.py:x"


COMMAND = """
import sys
sys.path.insert(0, {tests!r})
import fake_runs
from recjax import cli, study
study._trainer = lambda: fake_runs.make_trainer(broken={broken!r})
study.define_flags()
cli.run(study.main)
"""


def command(folder, *args, broken=()):
  script = folder / "command.py"
  script.write_text(COMMAND.format(tests=str(ROOT / "tests"), broken=broken))
  return subprocess.run(
    [sys.executable, str(script), f"--config={folder}/study.py", f"--workdir={folder}/w", *args],
    cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)


def test_the_command_and_its_exit_codes(tmp_path):
  config = fake_runs.make_study(tmp_path, seeds=(0,))
  (tmp_path / "study.py").write_text(
    "import ml_collections\n"
    f"def get_config():\n  return ml_collections.ConfigDict({config.to_dict()!r})\n")
  failed = command(tmp_path, broken=("model",))
  assert failed.returncode == 1 and "model seed 0 (failed)" in failed.stderr.splitlines()[-1]
  assert "Traceback" not in failed.stderr
  done = command(tmp_path)
  assert done.returncode == 0, done.stderr
  assert "uniform100_global NDCG@10" in done.stdout and "[5/5] " in done.stdout
  wrong = command(tmp_path, "--config.data_dir=/absent")
  assert wrong.returncode == 2 and wrong.stderr.startswith("error: no prepared data set")
  assert len(wrong.stderr.splitlines()) == 1
  assert command(tmp_path, "--report_only", "--config.data_dir=/absent").returncode == 0
  assert "command.py" not in report.read_json(tmp_path / "w/report.json")["command"]
