"""Contestants as processes that take turns, on a machine that may have other things to do."""

import contextlib
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from launch.bench import serving

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAUSE_S = 60  # other jobs stand still no longer than this
TURN_S = 2  # a turn takes no less


class Failed(Exception):
  """A contestant that ended before its answer; the last line that it wrote to stderr."""


class Process:
  """A contestant that is asked for steps; it sleeps in memory between its turns.

  The process is its own group, so that what it started ends with it.
  """

  def __init__(self, command):
    """Starts `command`, a list whose first entry is a Python interpreter."""
    self._errors = tempfile.TemporaryFile()
    # What PYTHONPATH adds is made for the interpreter that runs this.
    path = str(ROOT)
    if command[0] == sys.executable and os.environ.get("PYTHONPATH"):
      path += os.pathsep + os.environ["PYTHONPATH"]
    environment = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS="ignore")
    self._process = subprocess.Popen(
      [*command, "--serve"], cwd=ROOT, env=environment, text=True, start_new_session=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
    self.rows, self.answer = [], None  # of all requests that counted; the last line

  def take(self, steps, *, count=True):
    """Has `steps` steps taken; they are among `rows` if they `count`."""
    self.ask(steps)
    self.hear(count=count)

  def ask(self, steps):
    """Asks for steps without waiting for them."""
    with contextlib.suppress(BrokenPipeError):  # `hear` says why
      self._process.stdin.write(f"{steps}\n")
      self._process.stdin.flush()

  def hear(self, *, count=True):
    """Waits for what was asked for."""
    line = self._process.stdout.readline()
    if not line:
      raise Failed(self._reason())
    self.answer = json.loads(line)
    if count:
      self.rows += self.answer["rows"]

  def result(self):
    """Returns the answer as if all steps that count had been one request."""
    found = serving.summary(self.rows, [self.answer["first_loss"], self.answer["last_loss"]])
    keep = ("peak_memory_gb", "steps_taken")
    return {**self.answer, **found, "rows": self.rows,
            **{name: self.answer[name] for name in keep}}

  def close(self):
    """Ends the process."""
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    end(self._process)
    self._errors.close()

  def _reason(self):
    self._process.wait()
    self._errors.seek(0)
    lines = self._errors.read().decode(errors="replace").strip().splitlines()
    return (lines or [f"exit code {self._process.returncode}"])[-1][:300]


def end(process):
  """Ends a process that was started as a group of its own, and what it has started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def timed(command, **options):
  """Returns (what `subprocess.run` returns, {"wall_s": by the clock, "cores_s": of all cores})."""
  cores = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # user and system
  start, before = time.monotonic(), cores()
  done = subprocess.run(command, cwd=ROOT, text=True, check=False, **options)
  return done, {"wall_s": time.monotonic() - start, "cores_s": cores() - before}


@contextlib.contextmanager
def paused(pids):
  """Stops the processes `pids` (of the same user) for the `with` block, at most PAUSE_S seconds.

  A process of its own wakes them up again, should this one be killed.
  """
  if not pids:
    yield
    return
  names = " ".join(map(str, pids))
  script = f"kill -STOP {names}; sleep {PAUSE_S}; kill -CONT {names}"
  guard = subprocess.Popen(["sh", "-c", script], start_new_session=True,
                           stderr=subprocess.DEVNULL)
  try:
    yield
  finally:
    end(guard)
    for pid in pids:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def take_turns(commands, *, rounds, seconds=TURN_S, warmup=1, pids=(), say=lambda text: None):
  """Returns ({name: result}, {name: why there is none}).

  Rounds go A B C, then C B A, and so on: whatever disturbs the machine disturbs all alike.

  Args:
    commands: {name: command}.
    rounds: how often each has its turn.
    seconds: of a turn, which is one step where that takes longer. The first step of a turn finds
      caches that others have filled, and so weighs more the shorter steps are.
    warmup: steps that do not count, the first of which compiles.
    pids: processes that stand still meanwhile, see `paused`.
    say: told what goes on.
  """
  running, failed = {}, {}
  try:
    for name, command in commands.items():
      say(f"{name} starts")
      running[name] = Process(command)
      _turn(running, failed, name, warmup, count=False)
    for number in range(rounds):
      order = list(running)
      for name in order[::-1] if number % 2 else order:
        with paused(pids):
          _turn(running, failed, name, 1, count=True, seconds=seconds)
      say(f"round {number + 1} of {rounds}: " + ", ".join(
        f"{name} {running[name].rows[-1]['wall_s']:.2f} s" for name in running))
    return {name: process.result() for name, process in running.items()}, failed
  finally:
    for process in running.values():
      process.close()


def _turn(running, failed, name, steps, *, count, seconds=0):
  process, begin = running[name], time.perf_counter()
  try:
    process.take(steps, count=count)
    while time.perf_counter() - begin < seconds:
      process.take(1, count=count)
  except Failed as error:
    failed[name] = str(error)
    running.pop(name).close()


def ratios(results, base="recjax"):
  """Returns {name: (users a second of `base` / of `name`, the same in seconds of all cores)}."""
  over = lambda key, name: results[base][key] / results[name][key]
  return {name: (over("users_per_s", name), over("users_per_core_s", name)) for name in results}


def merge(one, other):
  """Returns the result of a contestant's turns in two groups."""
  losses = [one["first_loss"], one["last_loss"]]
  peak = max(one["peak_memory_gb"], other["peak_memory_gb"])
  rows = one["rows"] + other["rows"]
  return {**one, **serving.summary(rows, losses), "rows": rows, "peak_memory_gb": peak,
          "steps_taken": one["steps_taken"]}


def python_of(envs, name):
  """Returns the interpreter of an environment in the folder `envs`; None if it is not there.

  The name "" is recjax's own.
  """
  if not name:
    return sys.executable
  path = pathlib.Path(envs, name, "bin", "python")
  return str(path) if path.exists() else None


def default_envs():
  """Returns the folder where run.sh makes the environments."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(cache, "recjax", "bench")


def spread(values):
  """Returns (half of the interquartile range) / median of numbers, how noisy they are."""
  if len(values) < 2:
    return 0.0
  low, middle, high = statistics.quantiles(values, n=4)
  return (high - low) / 2 / middle
