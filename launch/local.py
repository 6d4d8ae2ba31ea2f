"""Runs a config's grid on this machine: one training run a trial, a bounded number at once.

    python launch/local.py --config=configs/NAME.py[:arg] --workdir=W --data_dir=D [--jobs=1]
    python launch/local.py ... --dry_run         prints one command a line and starts nothing
    python launch/local.py ... --print_line=N    prints the N-th of them, from 1 on (array jobs)

The grid is the config file's `sweep(add)`: each `add(**{"optim.lr": 1e-3, "seed": 1})` is a trial;
without it the config itself is the only one. That trial runs as
`python -m recjax.train --config=... --workdir=W/optim.lr=0.001,seed=1 ...` and leaves what it
prints in trial.log there. A complete trial is skipped, a preempted one goes on, a failed one is
kept and reported while the others go on; the same command again runs what is left.

Exit code: 0 if every trial is complete, 1 if some failed, 2 for a mistake in the command, 75 when
stopped by a signal (which the trials receive too, so that they save themselves).
"""

import hashlib
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recjax import cli, errors, spec  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "Config file, FILE.py or FILE.py:arg.")
flags.DEFINE_string("workdir", None, "Folder of the trials' folders.")
flags.DEFINE_string("data_dir", None, "Folder of the prepared data sets.")
flags.DEFINE_integer("jobs", 1, "Trials at once.", lower_bound=1)
flags.DEFINE_list("gpus", [], "Ids of GPUs, such as 0,1: each trial running gets one of them.")
flags.DEFINE_integer("tries", 100, "Starts of one trial that is preempted.", lower_bound=1)
flags.DEFINE_boolean("dry_run", False, "Print the commands only.")
flags.DEFINE_integer("print_line", None, "Print only this command, counted from 1.", lower_bound=1)

LONGEST_NAME = 120  # characters; file systems stop at 255 bytes


def main(_):
  cli.require(FLAGS, "config", "workdir", "data_dir")
  trials = make_trials(FLAGS.config)
  workdir, data_dir = _absolute(FLAGS.workdir), _absolute(FLAGS.data_dir)
  commands = {
    name: make_command(FLAGS.config, values, workdir=f"{workdir}/{name}", data_dir=data_dir)
    for name, values in trials.items()}
  if FLAGS.print_line is not None:
    if FLAGS.print_line > len(commands):
      raise errors.UserError(
        f"--print_line={FLAGS.print_line}, but the grid has {len(commands)} trials")
    print(shlex.join(list(commands.values())[FLAGS.print_line - 1]))
  elif FLAGS.dry_run:
    print("\n".join(map(shlex.join, commands.values())))
  else:
    if FLAGS.gpus and len(FLAGS.gpus) < FLAGS.jobs:
      raise errors.UserError(f"--jobs={FLAGS.jobs} needs as many --gpus, not {len(FLAGS.gpus)}")
    sys.exit(run(commands, workdir, jobs=FLAGS.jobs, tries=FLAGS.tries, gpus=FLAGS.gpus))


def make_trials(config):
  """Returns {trial name: {"a.b": value}} of the config file's grid, in its order."""
  trials = {}

  def add(**values):
    # Fails on an unknown field now rather than in every trial.
    spec.override(base.copy_and_resolve_references(), values)
    name = name_trial(values)
    if name in trials:
      raise errors.UserError(f"{config}: sweep adds the trial {name!r} twice")
    trials[name] = values

  base = spec.load_config(config)
  sweep = runpy.run_path(config.partition(":")[0]).get("sweep", lambda add: add())
  sweep(add)
  if not trials:
    raise errors.UserError(f"{config}: sweep adds no trial")
  return trials


def name_trial(values):
  """Returns a folder name that tells `values`; equal values give equal names, others other ones."""
  full = ",".join(f"{name}={_format(value)}" for name, value in values.items()) or "default"
  name = re.sub(r"[^\w.,=+-]+", "-", full, flags=re.ASCII)
  if name == full and len(name) <= LONGEST_NAME:
    return name
  return f"{name[:LONGEST_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def make_command(config, values, *, workdir, data_dir):
  """Returns the argument list of one trial, to be run in the repository's root."""
  path, colon, arg = config.partition(":")
  path = os.path.realpath(path)
  if path.startswith(f"{ROOT}{os.sep}"):
    path = os.path.relpath(path, ROOT)
  return [sys.executable, "-m", "recjax.train", f"--config={path}{colon}{arg}",
          f"--workdir={workdir}", f"--config.data_dir={data_dir}",
          *(f"--config.{name}={_format(value)}" for name, value in values.items())]


def is_finished(folder):
  """Returns whether `folder` holds the report of a complete run."""
  try:
    return json.loads((pathlib.Path(folder) / "report.json").read_text())["run"]["finished"] is True
  except (OSError, ValueError, KeyError, TypeError):
    return False


def run(commands, workdir, *, jobs=1, tries=100, gpus=()):
  """Runs the {trial name: command}, `jobs` at once; returns this program's exit code."""
  stop, told = [], False
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: stop.append(number))
  waiting = {name: 1 for name in commands if not is_finished(f"{workdir}/{name}")}
  done, failed = len(commands) - len(waiting), {}
  free = list(gpus) or [None] * jobs
  running = {}  # name -> (process, try, start, slot)
  if done:
    print(f"{done} of {len(commands)} trials are complete already", flush=True)

  while running or (waiting and not stop):
    while waiting and len(running) < jobs and not stop:
      name, attempt = next(iter(waiting.items()))
      del waiting[name]
      slot = free.pop(0)
      process = _start(commands[name], f"{workdir}/{name}", slot)
      running[name] = (process, attempt, time.monotonic(), slot)
      print(f"{name}: started{f' (try {attempt})' if attempt > 1 else ''}", flush=True)
    if stop and not told:
      told = True
      for process, *_ in running.values():
        process.terminate()
    for name, (process, attempt, start, slot) in list(running.items()):
      if (code := process.poll()) is None:
        continue
      del running[name]
      free.append(slot)
      wall_s = f"{time.monotonic() - start:.0f}s"
      if code == 0:
        done += 1
        print(f"{name}: complete in {wall_s} ({done}/{len(commands)})", flush=True)
      elif stop:
        print(f"{name}: stopped after {wall_s}, exit code {code}", flush=True)
      elif code == errors.EXIT_PREEMPTED and attempt < tries:
        waiting[name] = attempt + 1
      else:
        log = f"{workdir}/{name}/trial.log"
        failed[name] = f"exit code {code} after {wall_s}: {_last_line(log)} (see {log})"
        print(f"{name}: failed, {failed[name]}", flush=True)
    time.sleep(0.1)

  print(f"{done} of {len(commands)} trials complete, {len(failed)} failed", flush=True)
  for name, reason in failed.items():
    print(f"  {name}: {reason}", file=sys.stderr)
  if stop:
    return errors.EXIT_PREEMPTED
  return 1 if failed else 0


def _start(command, folder, gpu):
  os.makedirs(folder, exist_ok=True)
  environment = dict(os.environ, PYTHONUNBUFFERED="1")
  if gpu is not None:
    environment["CUDA_VISIBLE_DEVICES"] = gpu
  with open(f"{folder}/trial.log", "ab") as log:
    # A session of its own: Ctrl-C reaches this program only, which lets the trial save itself.
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _absolute(path):
  return os.path.abspath(os.path.expanduser(path))


def _format(value):
  """Returns `value` as config flags parse it."""
  return value if isinstance(value, str) else repr(value)


def _last_line(path):
  with open(path, "rb") as log:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").split("\n")
  return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


if __name__ == "__main__":
  cli.run(main)
