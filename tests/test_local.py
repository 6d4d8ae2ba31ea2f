"""launch/local.py: the grid as commands, and how they are run, resumed and stopped."""

import ast
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

from recjax import errors

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
  assert local.run(commands, str(tmp_path), jobs=2) == 1
  assert starts() == [1, 3, 1, 1]
  assert "bad: exit code 2" in (text := capsys.readouterr().err) and "no such thing" in text
  commands["bad"] = _trial(tmp_path / "bad", "finish()")
  assert local.run(commands, str(tmp_path), jobs=2) == 0
  assert starts() == [1, 3, 2, 1]


def test_run_gives_up_on_endless_preemption(local, tmp_path):
  assert local.run({"a": _trial(tmp_path / "a", "sys.exit(75)")}, str(tmp_path), tries=3) == 1
  assert (tmp_path / "a" / "starts").read_text() == "xxx"


def test_run_bounds_parallelism_and_shares_gpus(local, tmp_path):
  # Every trial notes how many hold a place when it starts, and which GPU it got.
  body = ("places = folder.parent / 'places'\nplaces.mkdir(exist_ok=True)\n"
          "gpu = os.environ['CUDA_VISIBLE_DEVICES']\n(places / gpu).open('x').close()\n"
          "time.sleep(0.3)\n(places / gpu).unlink()\nprint(gpu)\nfinish()\n")
  commands = {str(i): _trial(tmp_path / str(i), body) for i in range(5)}
  # Two at once on one GPU would fail.
  assert local.run(commands, str(tmp_path), jobs=2, gpus=["3", "5"]) == 0
  assert {(tmp_path / name / "trial.log").read_text().strip() for name in commands} == {"3", "5"}


def test_damaged_or_partial_report_is_not_finished(local, tmp_path):
  for text in ("", "{", "[]", "{}", json.dumps({"run": {"finished": False}}), '{"run": 3}'):
    (tmp_path / "report.json").write_text(text)
    assert not local.is_finished(tmp_path)
  (tmp_path / "report.json").write_text(json.dumps({"run": {"finished": True}}))
  assert local.is_finished(tmp_path)


def test_signal_reaches_the_trials(tmp_path):
  body = ("import signal\n"
          "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75)))\n"
          "(folder / 'ready').touch()\ntime.sleep(60)\n")
  commands = {name: _trial(tmp_path / name, body) for name in "abc"}
  program = f"import sys, local\nsys.exit(local.run({commands!r}, {str(tmp_path)!r}, jobs=2))"
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
