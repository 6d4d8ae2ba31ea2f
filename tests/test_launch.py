"""launch/*.sh and jobset.yaml: with fakes of python, srun and gcloud that record their calls."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from recjax import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh")) + [ROOT / ".ci" / "run"]

REAL_PYTHON = shlex.quote(sys.executable)

# `-c` is the real interpreter; `-m venv DIR` makes an environment of this fake; the rest is
# recorded, and fails with the code in $FAKE_FAIL/<module> if that file exists.
FAKE_PYTHON = """#!/usr/bin/env bash
if [[ "$1" == -c ]]; then exec {python} "$@"; fi
printf '%s\\t' "$(basename "$PWD")" "$@" >>"$FAKE_LOG"; echo >>"$FAKE_LOG"
if [[ "$2" == venv ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [[ -f "$FAKE_FAIL/$2" ]]; then exit "$(cat "$FAKE_FAIL/$2")"; fi
"""

RECORD = """#!/usr/bin/env bash
printf '%s\\t' {name} "$@" >>"$FAKE_LOG"; echo >>"$FAKE_LOG"
"""


class Machine:
  """A machine of fakes: `run` a script on it, read what was called with `calls`."""

  def __init__(self, folder):
    self.folder = folder
    self.bin = folder / "bin"
    self.log = folder / "log"
    self.fail = folder / "fail"
    self.home = folder / "a home"
    for path in (self.bin, self.fail, self.home):
      path.mkdir(parents=True)
    self.venv = self.home / "venv"
    self.python = self.command("fake python", FAKE_PYTHON.replace("{python}", REAL_PYTHON))
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith(("RECJAX_", "SLURM_", "JAX_", "XDG_", "VIRTUAL_ENV"))}
    self.environment = dict(
      kept, PATH=f"{self.bin}:{os.environ['PATH']}", HOME=str(self.home), FAKE_LOG=str(self.log),
      FAKE_FAIL=str(self.fail), RECJAX_PYTHON=str(self.python), RECJAX_VENV=str(self.venv))

  def command(self, name, text):
    path = self.bin / name
    path.write_text(text)
    path.chmod(0o755)
    return path

  def run(self, *command, cwd=None, **environment):
    environment = {k: v for k, v in {**self.environment, **environment}.items() if v is not None}
    return subprocess.run(list(map(str, command)), cwd=cwd or self.home, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          check=False)

  def calls(self, *words):
    """Returns the recorded calls that contain `words`, each a list of arguments."""
    lines = self.log.read_text().splitlines() if self.log.exists() else []
    return [call for line in lines if set(words) <= set(call := line.rstrip("\t").split("\t"))]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def _set_up(machine, **environment):
  script = f"set -euo pipefail; . {shlex.quote(str(LAUNCH))}/environment.sh; recjax_environment; " \
           'echo "PYTHON=$PYTHON"'
  return machine.run("bash", "-c", script, **environment)


# -- all scripts

@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_tells_its_usage(path):
  subprocess.run(["bash", "-n", path], check=True)
  lines = path.read_text().splitlines()
  assert lines[1].startswith("#") and (os.access(path, os.X_OK) or path.name == "environment.sh")
  shellcheck = shutil.which("shellcheck")
  if shellcheck:
    subprocess.run([shellcheck, "-x", path], cwd=ROOT, check=True)


# -- the virtual environment

def test_environment_is_made_once(machine):
  first = _set_up(machine)
  assert first.returncode == 0, first.stderr
  assert first.stdout.splitlines()[-1] == f"PYTHON={machine.venv}/bin/python"
  assert len(machine.calls("venv")) == 1
  assert [c[-1] for c in machine.calls("pip", "-r")] == [f"{ROOT}/requirements.txt"]
  second = _set_up(machine)
  assert second.returncode == 0 and len(machine.calls("venv")) == 1


def test_environment_defaults_to_the_cache_folder(machine):
  result = _set_up(machine, RECJAX_VENV=None)
  assert f"PYTHON={machine.home}/.cache/recjax/venv/bin/python" in result.stdout
  result = _set_up(machine, RECJAX_VENV=None, XDG_CACHE_HOME=f"{machine.folder}/cache")
  assert f"PYTHON={machine.folder}/cache/recjax/venv/bin/python" in result.stdout


def test_half_made_environment_is_made_anew(machine):
  (machine.fail / "pip").write_text("1")
  result = _set_up(machine)
  assert result.returncode == 1 and "error: pip install" in result.stderr
  (machine.fail / "pip").unlink()
  (machine.venv / "rest").write_text("of the first try")
  assert _set_up(machine).returncode == 0
  assert len(machine.calls("venv")) == 2 and not (machine.venv / "rest").exists()


def test_environment_follows_requirements_and_jax(machine):
  shutil.copytree(LAUNCH, machine.folder / "copy" / "launch")
  requirements = machine.folder / "copy" / "requirements.txt"
  requirements.write_text("a\n")
  script = "set -euo pipefail; . launch/environment.sh; recjax_environment"

  def builds(**environment):
    result = machine.run("bash", "-c", script, cwd=machine.folder / "copy", **environment)
    assert result.returncode == 0, result.stderr
    return len(machine.calls("venv"))

  assert [builds(), builds()] == [1, 1]
  requirements.write_text("a\nb\n")
  assert [builds(), builds()] == [2, 2]
  assert builds(RECJAX_JAX="jax[tpu]") == 3
  # jax with its accelerator comes before the requirements, which are then met already.
  assert [c[-1] for c in machine.calls("pip")[-2:]] == ["jax[tpu]", str(requirements)]
  (machine.venv / "bin" / "python").unlink()
  assert builds(RECJAX_JAX="jax[tpu]") == 4


def test_environment_spares_other_folders(machine):
  machine.venv.mkdir()
  (machine.venv / "thesis.txt").write_text("precious")
  result = _set_up(machine)
  assert result.returncode == 2
  assert result.stderr.startswith("error:") and "RECJAX_VENV" in result.stderr
  assert (machine.venv / "thesis.txt").read_text() == "precious" and not machine.calls("venv")


@pytest.mark.parametrize("fake, words", [
  ('if [[ "$1" == --version ]]; then echo Python 3.9.1; fi\n[[ "$2" != *version_info* ]]',
   "3.11 or newer"),
  ('[[ "$2" != *ensurepip* ]]', "no venv module"),
  ("exit 127", "unfit does not run"),
])
def test_unfit_python_is_one_line(machine, fake, words):
  python = machine.command("unfit", f"#!/usr/bin/env bash\n{fake}\n")
  result = _set_up(machine, RECJAX_PYTHON=str(python))
  assert result.returncode == 2
  assert re.fullmatch(f"error: [^\n]*{words}[^\n]*\n", result.stderr), result.stderr


def test_newer_python_is_found_behind_an_old_one(machine):
  machine.command("python3", "#!/usr/bin/env bash\n[[ \"$2\" != *version_info* ]]\n")
  machine.command("python3.13", "#!/usr/bin/env bash\nexit 127\n")  # a shim of what is not there
  machine.command("python3.12", machine.python.read_text())
  result = _set_up(machine, RECJAX_PYTHON=None)
  assert result.returncode == 0, result.stderr


# -- quickstart.sh and test.sh

def test_quickstart_prepares_then_studies(machine):
  result = machine.run("bash", LAUNCH / "quickstart.sh", "my runs/first")
  assert result.returncode == 0, result.stderr
  work = f"{machine.home}/my runs/first"
  assert [c[1:] for c in machine.calls() if c[2].startswith("recjax.")] == [
    ["-m", "recjax.prepare", "--config=configs/data/demo.py", f"--data_dir={work}/data"],
    ["-m", "recjax.study", "--config=configs/studies/demo.py", f"--workdir={work}/study",
     f"--config.data_dir={work}/data"]]
  assert {c[0] for c in machine.calls("recjax.study")} == {ROOT.name}  # in the repository's root
  assert f"{work}/study/report.md" in result.stdout and re.search(r"done in \d+s", result.stdout)


def test_quickstart_has_a_default_and_resumes(machine):
  (machine.fail / "recjax.study").write_text("75")
  result = machine.run("bash", LAUNCH / "quickstart.sh")
  assert result.returncode == 75 and "the same command goes on" in result.stderr
  (machine.fail / "recjax.study").unlink()
  result = machine.run("bash", LAUNCH / "quickstart.sh")
  assert result.returncode == 0 and len(machine.calls("venv")) == 1
  assert machine.calls("recjax.study", f"--workdir={machine.home}/runs/quickstart/study")


@pytest.mark.parametrize("arguments", [["a", "b"], ["--help"], ["file/x"]])
def test_quickstart_refuses(machine, arguments):
  (machine.home / "file").write_text("")
  result = machine.run("bash", LAUNCH / "quickstart.sh", *arguments)
  assert result.returncode == 2 and "error: " in result.stderr and not machine.calls()


PARALLEL = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]


@pytest.mark.parametrize("arguments, expected", [
  ([], ["tests"]),
  (["-k", "a and b"], ["-k", "a and b", "tests"]),
  (["-x", "tests/test_cli.py::test_x"], ["-x", "tests/test_cli.py::test_x"]),
])
def test_test_runs_all_unless_told(machine, arguments, expected):
  result = machine.run("bash", LAUNCH / "test.sh", *arguments)
  assert result.returncode == 0, result.stderr
  assert machine.calls("pytest") == [[ROOT.name, "-m", "pytest", *PARALLEL, *expected]]
  (machine.fail / "pytest").write_text("1")
  assert machine.run("bash", LAUNCH / "test.sh").returncode == 1


def test_ci_runs_the_tests(machine):
  assert machine.run(ROOT / ".ci" / "run").returncode == 0
  assert machine.calls("pytest") == [[ROOT.name, "-m", "pytest", *PARALLEL, "tests"]]


# -- retry.sh

def _counting(machine, codes):
  """Returns a command that exits with each of `codes` in turn, the last one for ever."""
  log = shlex.quote(str(machine.log))
  machine.command("flaky", f"#!/usr/bin/env bash\necho x >>{log}\n"
                  f"codes=({' '.join(map(str, codes))})\nn=$(wc -l <{log})\n"
                  'exit "${codes[n - 1 < ${#codes[@]} ? n - 1 : ${#codes[@]} - 1]}"\n')
  return "flaky"


@pytest.mark.parametrize("codes, code, runs", [
  ([0], 0, 1), ([1, 75, 137, 0], 0, 4), ([75, 2], 2, 2), ([3], 3, 5)])
def test_retry(machine, codes, code, runs):
  result = machine.run("bash", LAUNCH / "retry.sh", _counting(machine, codes),
                       RECJAX_TRIES="5", RECJAX_BACKOFF_S="0")
  assert (result.returncode, len(machine.log.read_text().split())) == (code, runs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_retry_forwards_signals_and_waits(machine, number):
  machine.command("saver", "#!/usr/bin/env bash\ntrap 'sleep 0.5; echo saved; exit 75' TERM\n"
                  "echo ready\nwhile :; do sleep 0.05; done\n")
  # A suite that was itself started in the background ignores SIGINT, and bash cannot trap what it
  # inherits as ignored.
  restored = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
              "os.execvp(sys.argv[1], sys.argv[1:])")
  process = subprocess.Popen(
    [sys.executable, "-c", restored, "bash", LAUNCH / "retry.sh", "saver"],
    env=machine.environment, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(number)
  output, _ = process.communicate(timeout=20)
  assert (output, process.returncode) == ("saved\n", 75)  # not started again


def test_retry_needs_a_command(machine):
  for arguments in ([], ["no-such-command"]):
    result = machine.run("bash", LAUNCH / "retry.sh", *arguments)
    assert result.returncode == 2 and result.stderr.startswith("error: ")


# -- clusters

def _slurm(machine, *arguments, code=0, **environment):
  machine.command("srun", RECORD.format(name="srun") + f"exit {code}\n")
  machine.command("scontrol", RECORD.format(name="scontrol"))
  return machine.run("bash", LAUNCH / "slurm.sh", *arguments, SLURM_SUBMIT_DIR=str(ROOT),
                     SLURM_JOB_ID="7", **environment)


def test_slurm_runs_one_task_for_each_gpu(machine):
  result = _slurm(machine, "--config=configs/x.py", "--workdir=a b", SLURM_NTASKS="8")
  assert result.returncode == 0, result.stderr
  (call,) = machine.calls("srun")
  assert call[1:4] == ["--kill-on-bad-exit=1", "bash", "-c"]
  assert shlex.split(call[4]) == ["exec", f"{machine.venv}/bin/python", "-m", "recjax.train",
                                  "--config=configs/x.py", "--workdir=a b"]
  assert machine.calls("pip", "jax[cuda13]") and not machine.calls("scontrol")


@pytest.mark.parametrize("code, restarts, requeued", [
  (75, "0", True), (137, "3", True), (2, "0", False), (75, "99", False)])
def test_slurm_requeues(machine, code, restarts, requeued):
  result = _slurm(machine, "--workdir=w", code=code, SLURM_RESTART_COUNT=restarts)
  assert (machine.calls("scontrol") == [["scontrol", "requeue", "7"]]) == requeued
  assert result.returncode == (0 if requeued else code)


def test_slurm_array_runs_one_line_of_the_grid(machine):
  # The fake environment's python prints nothing for local.py, so let it be the real one.
  _set_up(machine)
  machine.command("srun", RECORD.format(name="srun"))
  python = machine.venv / "bin" / "python"
  python.write_text(f'#!/usr/bin/env bash\nexec {REAL_PYTHON} "$@"\n')
  config = machine.folder / "grid.py"
  config.write_text("import ml_collections\n\ndef get_config():\n"
                    "  return ml_collections.ConfigDict({'seed': 0})\n\n"
                    "def sweep(add):\n  for seed in range(3):\n    add(seed=seed)\n")
  result = machine.run("bash", LAUNCH / "slurm.sh", f"--config={config}", "--workdir=/w",
                       "--data_dir=/d", SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7",
                       SLURM_ARRAY_TASK_ID="2", RECJAX_JAX="")
  assert result.returncode == 0, result.stderr
  (call,) = machine.calls("srun")
  assert "--workdir=/w/seed=1" in shlex.split(call[4])


def test_slurm_wants_the_root(machine):
  result = machine.run("bash", LAUNCH / "slurm.sh", SLURM_SUBMIT_DIR=str(machine.home))
  assert result.returncode == 2 and "root of recjax" in result.stderr


def test_tpu_vm_starts_once_on_the_hosts(machine):
  # This gcloud is the host too: scp copies to the home folder, ssh runs the command there.
  host = machine.folder / "host"
  host.mkdir()
  machine.command("gcloud", RECORD.format(name="gcloud") + f"""cd {shlex.quote(str(host))}
while [[ $# -gt 0 ]]; do
  case "$1" in
    --command=*) HOME="$PWD" exec bash -c "${{1#--command=}}";;
    scp) cp "$2" recjax.tgz;;
  esac
  shift
done
""")
  machine.command("python", "#!/usr/bin/env bash\nexit 9\n")  # not this one, but the environment's
  command = ("bash", LAUNCH / "tpu_vm.sh", "python", "-m", "recjax.train", "--workdir=/mnt/a b")
  result = machine.run(*command, TPU="v4", ZONE="z", PROJECT="p")
  assert result.returncode == 0, result.stderr
  assert "recjax: exit code 0" in result.stdout
  assert machine.calls("-m", "recjax.train") == [
    ["recjax-job", "-m", "recjax.train", "--workdir=/mnt/a b"]]
  (machine.fail / "recjax.train").write_text("2")
  assert machine.run(*command, TPU="v4", ZONE="z", PROJECT="p").returncode != 0
  assert machine.calls("pip", "jax[tpu]") and (host / "recjax-job" / "recjax" / "cli.py").is_file()
  for call in machine.calls("gcloud"):
    assert {"--zone=z", "--worker=all", "--project=p"} <= set(call)


def test_tpu_vm_stop(machine):
  machine.command("gcloud", RECORD.format(name="gcloud") + "exit 0\n")
  assert machine.run("bash", LAUNCH / "tpu_vm.sh", "--stop", TPU="v4", ZONE="z").returncode == 0
  (call,) = [line for line in machine.log.read_text().splitlines() if line]
  assert "kill -TERM" in call and "scp" not in call


def test_gce_mig_makes_named_instances(machine):
  startup = machine.folder / "startup"
  machine.command("gcloud", RECORD.format(name="gcloud") + f"""for argument in "$@"; do
  case "$argument" in --metadata-from-file=startup-script=*)
    cp "${{argument#*startup-script=}}" {shlex.quote(str(startup))};;
  esac
done
""")
  result = machine.run("bash", LAUNCH / "gce_mig.sh", "python", "-m", "recjax.train",
                       "--workdir=a b", NAME="r", ZONE="z", NFS="10.0.0.2:/s", HOSTS="2", SPOT="0")
  assert result.returncode == 0, result.stderr
  assert [c[-1] for c in machine.calls("create-instance")] == ["--instance=r-0", "--instance=r-1"]
  assert machine.calls("instance-templates", "--provisioning-model=STANDARD")
  assert machine.calls("create", "--size=0")
  subprocess.run(["bash", "-n", startup], check=True)
  text = startup.read_text()
  assert "JAX_COORDINATOR_ADDRESS=r-0:8476 JAX_NUM_PROCESSES=2" in text
  assert "retry.sh python -m recjax.train --workdir=a\\ b" in text


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gce_mig.sh"])
def test_cloud_scripts_say_what_is_missing(machine, script):
  machine.command("gcloud", RECORD.format(name="gcloud"))
  result = machine.run("bash", LAUNCH / script, "python")
  assert result.returncode == 2 and result.stderr.startswith("error: usage") and not machine.calls()


def test_jobset_agrees_with_itself():
  jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  env = {entry["name"]: entry for entry in container["env"]}
  name = jobset["metadata"]["name"]
  first = f"{name}-{replicated['name']}-0-0.{name}"  # the DNS name of the first job's first pod
  assert env["JAX_COORDINATOR_ADDRESS"]["value"].startswith(f"{first}:")
  assert int(env["JAX_NUM_PROCESSES"]["value"]) == job["completions"] == job["parallelism"]
  assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert rule["onExitCodes"]["values"] == [errors.EXIT_USER_ERROR]
  subprocess.run(["bash", "-n"], input=container["args"][0], text=True, check=True)
