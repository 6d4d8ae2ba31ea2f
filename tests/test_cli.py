"""Mistakes on a command line end in one line on stderr and exit code 2, whatever they are."""

import os
import pathlib
import subprocess
import sys

import pytest

from recjax import cli, errors

ROOT = pathlib.Path(__file__).resolve().parent.parent

SCRIPT = """
import sys
from absl import flags
from recjax import cli, errors

FLAGS = flags.FLAGS
cli.define_config("config")
flags.DEFINE_string("workdir", None, "Folder.")
flags.DEFINE_integer("k", 10, "Number.", lower_bound=1)

def main(_):
  cli.require(FLAGS, "config", "workdir")
  if FLAGS.workdir == "preempted":
    raise errors.Preempted("saved step 3")
  if FLAGS.workdir == "two lines":
    raise errors.UserError("first\\nsecond")
  if FLAGS.workdir == "bug":
    raise RuntimeError("a bug")
  print(FLAGS.config.a.lr, FLAGS.config.a.sizes, FLAGS.config.name, FLAGS.k)

if __name__ == "__main__":
  cli.run(main)
"""

CONFIG = """
import ml_collections
from recjax import spec

def get_config(arg=None):
  arg = spec.parse_arg(arg, small=False, width=8)
  return ml_collections.ConfigDict(
    {"a": {"lr": 0.1, "sizes": (arg.width,)}, "seed": 0, "name": "x"})
"""


@pytest.fixture
def command(tmp_path):
  """A function that runs the script with arguments, where {config} stands for the config file."""
  (tmp_path / "script.py").write_text(SCRIPT)
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "broken.py").write_text("def get_config(:\n")
  (tmp_path / "without.py").write_text("x = 1\n")

  def run(*arguments):
    arguments = [a.format(config=tmp_path / "config.py", folder=tmp_path) for a in arguments]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, tmp_path / "script.py", *arguments], env=environment,
                          capture_output=True, text=True, timeout=60, check=False)
  return run


def assert_user_error(result, *words):
  """Checks exit code, the one line, and that it names each of `words`."""
  lines = result.stderr.splitlines()
  assert result.returncode == errors.EXIT_USER_ERROR, result.stderr
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  for word in words:
    assert word in lines[0]


def test_right_command_works(command):
  result = command("--config={config}:width=3", "--workdir=w", "--config.a.lr=2.5", "--k=4",
                   "--config.a.sizes=(1, 2)", "--config.name=y")
  assert (result.returncode, result.stdout) == (0, "2.5 (1, 2) y 4\n"), result.stderr


@pytest.mark.parametrize("arguments, word", [
  (["--config={config}", "--workdir=w", "--config.a.learning=1"], "learning"),
  (["--config={config}", "--workdir=w", "--config.nothing=1"], "nothing"),
  (["--config={config}", "--workdir=w", "--config.a.lr=fast"], "lr"),
  (["--config={config}", "--workdir=w", "--config.seed=1.5"], "seed"),
  (["--config={config}:height=2", "--workdir=w"], "height"),
  (["--config={config}:width=wide", "--workdir=w"], "width"),
  (["--config={folder}/absent.py", "--workdir=w"], "absent.py"),
  (["--config={folder}/broken.py", "--workdir=w"], "broken.py"),
  (["--config={folder}/without.py", "--workdir=w"], "get_config"),
  (["--config={config}"], "--workdir"),
  (["--workdir=w"], "--config"),
  ([], "--config"),
  (["--config={config}", "--workdir="], "--workdir"),
  (["--config={config}", "--workdir=w", "stray"], "stray"),
  (["--config={config}", "--workdir=w", "--unknown=1"], "unknown"),
  (["--config={config}", "--workdir=w", "--k=many"], "many"),
  (["--config={config}", "--workdir=w", "--k=0"], "k"),
  (["--config={config}", "--workdir=two lines"], "first second"),
])
def test_mistake_is_one_line(command, arguments, word):
  assert_user_error(command(*arguments), word)


def test_preemption_has_a_code_of_its_own(command):
  result = command("--config={config}", "--workdir=preempted")
  assert result.returncode == errors.EXIT_PREEMPTED
  assert result.stderr == "preempted: saved step 3\n"


def test_bug_keeps_its_traceback(command):
  result = command("--config={config}", "--workdir=bug")
  assert result.returncode not in (0, errors.EXIT_USER_ERROR, errors.EXIT_PREEMPTED)
  assert "Traceback" in result.stderr and "a bug" in result.stderr


def test_fail_joins_lines(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.fail("one\ntwo")
  assert stop.value.code == errors.EXIT_USER_ERROR
  assert capsys.readouterr().err == "error: one two\n"


@pytest.mark.parametrize("entry,arguments", [
  pytest.param(entry, arguments, marks=[pytest.mark.slow] * (number not in quick))
  for entry, quick in (("train", (0, 1, 2)), ("evaluate", (0,)), ("study", (2,)),
                       ("recommend", (1,)), ("prepare", (0, 2)))
  for number, arguments in enumerate(([], ["--no_such_flag=1"], ["stray"]))])
def test_entries_fail_clearly(entry, arguments, tmp_path):
  if not (ROOT / "recjax" / f"{entry}.py").is_file():
    pytest.skip(f"no recjax/{entry}.py")
  result = subprocess.run([sys.executable, "-m", f"recjax.{entry}", *arguments],
                          cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
  assert_user_error(result)
