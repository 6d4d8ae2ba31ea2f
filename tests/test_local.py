"""launch/local.py: the grid as commands, how they are run, resumed and stopped, and its table."""

import ast
import csv
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from recjax import errors, trials

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"

GRID = """
import ml_collections
from recjax import spec

def get_config(arg=None):
  arg = spec.parse_arg(arg, small=False)
  return ml_collections.ConfigDict({
    "seed": 0, "data_dir": "", "name": "", "layers": (8,), "small": arg.small,
    "optim": {"lr": 0.1}})

def sweep(add):
  for seed in (0, 1):
    add(**{"optim.lr": 0.1, "seed": seed})
  add(layers=(1, 2), small=True, name="a b/c")
"""

LAST = {"layers": (1, 2), "small": True, "name": "a b/c"}


def _write_grid(folder, text=GRID):
  path = folder / "grid.py"
  path.write_text(text)
  return path


def _local(*arguments, **kwargs):
  return subprocess.run([sys.executable, LAUNCH / "local.py", *map(str, arguments)], text=True,
                        capture_output=True, timeout=60, check=False, **kwargs)


def test_dry_run_prints_commands(tmp_path):
  config = _write_grid(tmp_path)
  arguments = (f"--config={config}:small", "--workdir=w w", "--data_dir=/d", "--dry_run")
  result = _local(*arguments, cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  first, second, third = map(shlex.split, result.stdout.splitlines())
  assert first == [sys.executable, "-m", "recjax.train", f"--config={config}:small",
                   f"--workdir={tmp_path}/w w/optim.lr=0.1,seed=0", "--config.data_dir=/d",
                   "--config.optim.lr=0.1", "--config.seed=0"]
  assert second[-1] == "--config.seed=1" and "--config.layers=(1, 2)" in third
  line = _local(*arguments, "--print_line=2", cwd=tmp_path).stdout
  assert line == result.stdout.splitlines()[1] + "\n"
  assert not (tmp_path / "w w").exists()


def test_trials_that_differ_in_numbers_become_one_command(tmp_path):
  config = _write_grid(tmp_path)
  arguments = (f"--config={config}", "--workdir=/w", "--data_dir=/d", "--dry_run", "--cohort=4")
  first, second = map(shlex.split, _local(*arguments).stdout.splitlines())
  assert first == [
    sys.executable, "-m", "recjax.cohort", f"--config={config}", "--workdir=/w",
    "--config.data_dir=/d", '--trials={"optim.lr=0.1,seed=0": {"optim.lr": 0.1, "seed": 0}, '
    '"optim.lr=0.1,seed=1": {"optim.lr": 0.1, "seed": 1}}']
  assert second[2] == "recjax.train" and "--config.small=True" in second
  line = _local(*arguments, "--print_line=1").stdout
  assert shlex.split(line) == first
  wrong = _local(*arguments, "--print_line=3")
  assert wrong.returncode == 2 and "2 commands" in wrong.stderr


def test_what_trials_of_one_command_share_is_set_for_all(local, tmp_path):
  config = _write_grid(tmp_path)
  grid = {"a": {"layers": (3,), "seed": 1}, "b": {"layers": (3,), "seed": 2}, "c": {"seed": 1}}
  both, alone = local.make_tasks(str(config), grid, workdir="/w", data_dir="/d", size=4)
  assert both.trials == ("a", "b") and both.log == "cohort_1.log"
  assert both.command[-2:] == ["--config.layers=(3,)", '--trials={"a": {"seed": 1}, '
                               '"b": {"seed": 2}}']
  assert alone.trials == ("c",) and alone.log == "c/trial.log"


def test_printed_flags_set_what_the_grid_says(tmp_path):
  config = _write_grid(tmp_path)
  line = _local(f"--config={config}", "--workdir=/w", "--data_dir=/d", "--print_line=3").stdout
  script = tmp_path / "show.py"
  script.write_text("from absl import flags\nfrom recjax import cli\ncli.define_config('config')\n"
                    "flags.DEFINE_string('workdir', None, '')\n"
                    "cli.run(lambda _: print(repr(flags.FLAGS.config.to_dict())))\n")
  shown = subprocess.run([sys.executable, script, *shlex.split(line)[3:]], text=True, check=True,
                         capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT))).stdout
  values = ast.literal_eval(shown)
  assert {name: values[name] for name in LAST} == LAST


@pytest.fixture
def local(monkeypatch):
  monkeypatch.syspath_prepend(str(LAUNCH))
  import local  # launch/local.py
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  yield local
  for number, handler in handlers.items():
    signal.signal(number, handler)


def test_names_are_readable_safe_and_distinct(local):
  assert local.name_trial({"optim.lr": 1e-3, "seed": 1}) == "optim.lr=0.001,seed=1"
  assert local.name_trial({}) == "default"
  grid = [LAST, {**LAST, "name": "a-b-c"}, {**LAST, "name": "a b c"},
          {"name": "x" * 300}, {"name": "x" * 301}]
  names = [local.name_trial(values) for values in grid]
  assert len(set(names)) == len(grid) and names == [local.name_trial(values) for values in grid]
  for name in names:
    assert len(name) < 200 and re.fullmatch(r"[\w.,=+-]+", name)


def test_config_without_sweep_is_one_trial(local, tmp_path):
  config = _write_grid(tmp_path, GRID.partition("def sweep")[0])
  assert local.make_trials(str(config)) == {"default": {}}


@pytest.mark.parametrize("grid, word", [
  ("add(**{'optim.rate': 1})", "optim.rate"),
  ("add(seed=1); add(seed=1)", "twice"),
  ("pass", "no trial")])
def test_wrong_grid_is_an_error(tmp_path, grid, word):
  config = _write_grid(tmp_path, GRID.partition("def sweep")[0] + f"def sweep(add):\n  {grid}\n")
  result = _local(f"--config={config}", "--workdir=w", "--data_dir=d", "--dry_run")
  assert result.returncode == 2 and re.fullmatch(f"error: [^\n]*{word}[^\n]*\n", result.stderr)


@pytest.mark.parametrize("flag, word", [
  ("--config=absent.py", "absent.py"), ("--print_line=4", "3 trials"), ("--jobs=0", "jobs"),
  ("--workdir=", "--workdir"), ("stray", "stray")])
def test_wrong_command_is_an_error(tmp_path, flag, word):
  config = _write_grid(tmp_path)
  result = _local(f"--config={config}", "--workdir=w", "--data_dir=d", "--dry_run", flag)
  assert result.returncode == 2 and re.fullmatch(f"error: [^\n]*{word}[^\n]*\n", result.stderr)


def test_local_never_imports_jax():
  script = ("import sys, local\n"
            "assert not {'jax', 'flax', 'recjax.train', 'recjax.models'} & set(sys.modules)")
  subprocess.run([sys.executable, "-c", script], check=True,
                 env=dict(os.environ, PYTHONPATH=str(LAUNCH)))


def _tasks(local, commands):
  return [local.Task(command, (name,), f"{name}/trial.log") for name, command in commands.items()]


def _trial(folder, body):
  """Returns a command that runs `body` with `folder` (existing) and `tries` (starts so far) set."""
  script = ("import json, os, pathlib, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
            "marks = folder / 'starts'\nmarks.open('a').write('x')\n"
            "tries = len(marks.read_text())\nreport = json.dumps({'run': {'finished': True}})\n"
            "finish = lambda: (folder / 'report.json').write_text(report)\n")
  return [sys.executable, "-c", script + body, str(folder)]


def test_run_skips_resumes_and_keeps_going(local, tmp_path, capsys):
  bodies = {"good": "finish()", "preempted": "sys.exit(75) if tries < 3 else finish()",
            "bad": "print('error: no such thing'); sys.exit(2)", "last": "finish()"}
  commands = {name: _trial(tmp_path / name, body) for name, body in bodies.items()}
  starts = lambda: [len((tmp_path / name / "starts").read_text()) for name in bodies]
  assert local.run(_tasks(local, commands), str(tmp_path), jobs=2) == 1
  assert starts() == [1, 3, 1, 1]
  assert "bad: exit code 2" in (text := capsys.readouterr().err) and "no such thing" in text
  commands["bad"] = _trial(tmp_path / "bad", "finish()")
  assert local.run(_tasks(local, commands), str(tmp_path), jobs=2) == 0
  assert starts() == [1, 3, 2, 1]


def test_run_gives_up_on_endless_preemption(local, tmp_path):
  assert local.run(_tasks(local, {"a": _trial(tmp_path / "a", "sys.exit(75)")}), str(tmp_path),
                   tries=3) == 1
  assert (tmp_path / "a" / "starts").read_text() == "xxx"
  assert json.loads((tmp_path / "a/trial.json").read_text())["state"] == "failed"


def test_run_bounds_parallelism_and_shares_gpus(local, tmp_path):
  # Every trial notes how many hold a place when it starts, and which GPU it got.
  body = ("places = folder.parent / 'places'\nplaces.mkdir(exist_ok=True)\n"
          "gpu = os.environ['CUDA_VISIBLE_DEVICES']\n(places / gpu).open('x').close()\n"
          "time.sleep(0.3)\n(places / gpu).unlink()\nprint(gpu)\nfinish()\n")
  commands = {str(i): _trial(tmp_path / str(i), body) for i in range(5)}
  # Two at once on one GPU would fail.
  assert local.run(_tasks(local, commands), str(tmp_path), jobs=2, gpus=["3", "5"]) == 0
  assert {(tmp_path / name / "trial.log").read_text().strip() for name in commands} == {"3", "5"}


def test_damaged_or_partial_report_is_not_finished(tmp_path):
  for text in ("", "{", "[]", "{}", json.dumps({"run": {"finished": False}}), '{"run": 3}'):
    (tmp_path / "report.json").write_text(text)
    assert not trials.is_finished(tmp_path)
  (tmp_path / "report.json").write_text(json.dumps({"run": {"finished": True}}))
  assert trials.is_finished(tmp_path)


def test_signal_reaches_the_trials(tmp_path):
  body = ("import signal\n"
          "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75)))\n"
          "(folder / 'ready').touch()\ntime.sleep(60)\n")
  commands = {name: _trial(tmp_path / name, body) for name in "abc"}
  program = ("import sys, local\n"
             f"tasks = [local.Task(c, (n,), n + '/trial.log') for n, c in {commands!r}.items()]\n"
             f"sys.exit(local.run(tasks, {str(tmp_path)!r}, jobs=2))")
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                             env=dict(os.environ, PYTHONPATH=str(LAUNCH)))
  deadline = time.monotonic() + 30
  while not all((tmp_path / name / "ready").exists() for name in "ab"):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode == errors.EXIT_PREEMPTED
  assert [(tmp_path / name / "trial.log").read_text() for name in "ab"] == ["saved\n"] * 2
  assert not (tmp_path / "c").exists()
  states = [json.loads((tmp_path / name / "trial.json").read_text())["state"] for name in "ab"]
  assert states == ["preempted"] * 2


# Several trials in one command.

COHORT = ("import json, pathlib, sys\nfolder = pathlib.Path(sys.argv[1])\n"
          "report = json.dumps({'run': {'finished': True}})\n"
          "write = lambda name: (folder / name / 'report.json').write_text(report)\n")


def test_one_command_of_several_trials_is_counted_by_trial(local, tmp_path, capsys):
  body = ("write('a')\nprint('error: b: training diverged')\nprint('error: c: too')\n"
          "sys.exit(1)")
  task = local.Task([sys.executable, "-c", COHORT + body, str(tmp_path)], ("a", "b"),
                    "cohort_1.log")
  assert local.run([task], str(tmp_path)) == 1
  out, err = capsys.readouterr()
  assert "a: complete" in out and "1 of 2 trials complete, 1 failed" in out
  assert "b: exit code 1" in err and "training diverged" in err
  assert not (tmp_path / "a/trial.json").exists()
  assert json.loads((tmp_path / "b/trial.json").read_text()) == {
    "state": "failed", "exit_code": 1, "reason": "error: b: training diverged"}
  again = local.Task([sys.executable, "-c", COHORT + "write('b')", str(tmp_path)], ("a", "b"),
                     "cohort_1.log")
  assert local.run([again], str(tmp_path)) == 0
  assert "1 of 2 trials are complete already" in capsys.readouterr().out
  assert not (tmp_path / "b/trial.json").exists()


# The table.

def _finished(folder, validation, *, test=0.5, metric="full/ndcg@10", seconds=12.34):
  folder.mkdir(parents=True)
  protocol, name = metric.split("/")
  (folder / "report.json").write_text(json.dumps({
    "run": {"finished": True, "best_validation": validation, "steps": 1200, "best_step": 800},
    "test": {protocol: {name: test}, "other": {"mrr": 1.0}}, "speed": {"wall_s": seconds}}))


def test_the_table_has_every_trial_and_marks_the_best(tmp_path):
  grid = {"a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.2}, "c": {"optim.lr": 0.3, "model.width": 8},
          "d": {}, "e": {}, "f": {}}
  _finished(tmp_path / "a", 0.25, test=0.9)
  _finished(tmp_path / "b", 0.5)
  trials_dir = tmp_path / "c"
  trials_dir.mkdir()
  trials.note(trials_dir, "failed", exit_code=2, reason="error: a | b")
  (tmp_path / "d").mkdir()
  (tmp_path / "d/config.json").write_text("{}")
  (tmp_path / "f").mkdir()
  trials.note(tmp_path / "f", "preempted", exit_code=75, reason="goes on")
  rows = trials.collect(grid, tmp_path, metric="full/ndcg@10")
  assert [row["state"] for row in rows] == [
    "done", "done", "failed", "unfinished", "not started", "preempted"]
  assert [row["name"] for row in rows if row["best"]] == ["b"]  # not by its test value
  trials.write(tmp_path, rows, metric="full/ndcg@10")
  lines = (tmp_path / "trials.md").read_text().splitlines()
  assert lines[0] == ("| optim.lr | model.width | validation full/ndcg@10 | test ndcg@10 | steps |"
                      " best step | seconds | state |")
  assert lines[2] == "| 0.1 |  | 25.00 | 90.00 | 1,200 | 800 | 12.3 | done |"
  assert lines[3].startswith("| **0.2** |  | **50.00** | **50.00** | **1,200** |")
  assert lines[4] == r"| 0.3 | 8 | – | – | – | – | – | failed (exit code 2: error: a \| b) |"
  assert lines[-1].startswith(
    "6 trials: 2 done, 1 failed, 1 preempted, 1 unfinished, 1 not started. Bold: the largest")
  table = list(csv.DictReader((tmp_path / "trials.csv").open()))
  assert [row["trial"] for row in table] == list(grid)
  assert [row["best"] for row in table] == ["0", "1", "0", "0", "0", "0"]
  assert table[1]["validation full/ndcg@10"] == "0.5" and table[2]["validation full/ndcg@10"] == ""


@pytest.mark.parametrize("metric, best", [("full/ndcg@10", "b"), ("rating/rmse", "a")])
def test_the_best_is_the_smallest_error(tmp_path, metric, best):
  for name, value in (("a", 0.8), ("b", 0.9), ("c", 0.9), ("d", None)):
    _finished(tmp_path / name, value, metric=metric)
  rows = trials.collect(dict.fromkeys("abcd", {}), tmp_path, metric=metric)
  assert [row["name"] for row in rows if row["best"]] == [best]
  assert ("0.8000" in trials.markdown(rows, metric=metric)) == (metric == "rating/rmse")


def test_the_table_is_written_at_the_end_and_at_any_time(tmp_path):
  config = _write_grid(tmp_path, GRID.replace('"seed": 0, "data', '"seed": 0, "eval": '
                                              '{"metric": "full/mrr"}, "data'))
  arguments = (f"--config={config}", f"--workdir={tmp_path}/w", "--data_dir=d")
  early = _local(*arguments, "--table")
  assert early.returncode == 2 and "no such folder" in early.stderr
  # The configs are of no model, so that every trial fails at once.
  result = _local(*arguments, "--jobs=3", env=dict(os.environ, PYTHONPATH=str(ROOT)))
  assert result.returncode == 1
  text = (tmp_path / "w/trials.md").read_text()
  assert "3 trials: 3 failed" in text and "exit code" in text
  _finished(tmp_path / "w/x", 0.5)
  (tmp_path / "w/x/report.json").rename(tmp_path / "w/optim.lr=0.1,seed=1/report.json")
  table = _local(*arguments, "--table")
  assert table.returncode == 0 and "| **0.1** | **1** |" in table.stdout
  assert table.stdout == (tmp_path / "w/trials.md").read_text()
