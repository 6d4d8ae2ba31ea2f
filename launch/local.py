"""Runs a config's grid on this machine: one training run a trial, a bounded number at once.

    python launch/local.py --config=configs/NAME.py[:arg] --workdir=W --data_dir=D [--jobs=1]
    python launch/local.py ... --dry_run         prints one command a line and starts nothing
    python launch/local.py ... --print_line=N    prints the N-th of them, from 1 on (array jobs)
    python launch/local.py ... --table           prints the table of trials as it stands
    python launch/local.py ... --cohort=K        trains up to K trials in one program, see below

The grid is the config file's `sweep(add)`: each `add(**{"optim.lr": 1e-3, "seed": 1})` is a trial;
without it the config itself is the only one. That trial runs as
`python -m recjax.train --config=... --workdir=W/optim.lr=0.001,seed=1 ...` and leaves what it
prints in trial.log there. A complete trial is skipped, a preempted one goes on, a failed one is
kept and reported while the others go on; the same command again runs what is left.

W/trials.md and W/trials.csv hold a row for every trial, the failed ones too, with the best one by
validation marked; they are written at the end, and by --table at any time. Trials of an array job
that failed or run are both "unfinished" there: only their logs tell them apart.

With --cohort=K, trials that differ only in seed, learning rate and the like (recjax/cohort.py) are
trained K at once as one command, whose output is W/cohort_N.log; each trial's folder is as without.

Exit code: 0 if every trial is complete, 1 if some failed, 2 for a mistake in the command, 75 when
stopped by a signal (which the trials receive too, so that they save themselves).
"""

import dataclasses
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

from recjax import cli, cohort_plan, errors, spec, trials  # noqa: E402

FLAGS = flags.FLAGS
LONGEST_NAME = 120  # characters; file systems stop at 255 bytes


def main(_):
  cli.require(FLAGS, "config", "workdir", "data_dir")
  grid = make_trials(FLAGS.config)
  workdir, data_dir = _absolute(FLAGS.workdir), _absolute(FLAGS.data_dir)
  tasks = make_tasks(FLAGS.config, grid, workdir=workdir, data_dir=data_dir, size=FLAGS.cohort)
  commands = [task.command for task in tasks]
  if FLAGS.print_line is not None:
    if FLAGS.print_line > len(commands):
      raise errors.UserError(
        f"--print_line={FLAGS.print_line}, but the grid has {len(commands)} "
        f"{'trials' if FLAGS.cohort == 1 else 'commands'}")
    print(shlex.join(commands[FLAGS.print_line - 1]))
  elif FLAGS.dry_run:
    print("\n".join(map(shlex.join, commands)))
  elif FLAGS.table:
    print(write_table(FLAGS.config, grid, workdir), end="")
  else:
    if FLAGS.gpus and len(FLAGS.gpus) < FLAGS.jobs:
      raise errors.UserError(f"--jobs={FLAGS.jobs} needs as many --gpus, not {len(FLAGS.gpus)}")
    code = run(tasks, workdir, jobs=FLAGS.jobs, tries=FLAGS.tries, gpus=FLAGS.gpus)
    write_table(FLAGS.config, grid, workdir)
    print(f"table of trials: {workdir}/trials.md")
    sys.exit(code)


@dataclasses.dataclass(frozen=True)
class Task:
  """A command and the trials that it runs."""
  command: list
  trials: tuple  # names of folders
  log: str  # below the workdir


def make_trials(config):
  """Returns {trial name: {"a.b": value}} of the config file's grid, in its order."""
  grid = {}

  def add(**values):
    # Fails on an unknown field now rather than in every trial.
    spec.override(base.copy_and_resolve_references(), values)
    name = name_trial(values)
    if name in grid:
      raise errors.UserError(f"{config}: sweep adds the trial {name!r} twice")
    grid[name] = values

  base = spec.load_config(config)
  sweep = runpy.run_path(config.partition(":")[0]).get("sweep", lambda add: add())
  sweep(add)
  if not grid:
    raise errors.UserError(f"{config}: sweep adds no trial")
  return grid


def name_trial(values):
  """Returns a folder name that tells `values`; equal values give equal names, others other ones."""
  full = ",".join(f"{name}={_format(value)}" for name, value in values.items()) or "default"
  name = re.sub(r"[^\w.,=+-]+", "-", full, flags=re.ASCII)
  if name == full and len(name) <= LONGEST_NAME:
    return name
  return f"{name[:LONGEST_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def make_tasks(config, grid, *, workdir, data_dir, size=1):
  """Returns the Tasks that run the {trial name: values} of a grid, up to `size` trials in each."""
  base = spec.load_config(config)
  configs = {name: spec.override(base.copy_and_resolve_references(), values)
             for name, values in grid.items()}
  tasks = []
  for names in cohort_plan.groups(configs, size):
    if len(names) == 1:
      command = make_command(config, grid[names[0]], workdir=f"{workdir}/{names[0]}",
                             data_dir=data_dir)
      tasks.append(Task(command, (names[0],), f"{names[0]}/trial.log"))
    else:
      own = {name: {field: value for field, value in grid[name].items()
                    if field in cohort_plan.VARY} for name in names}
      shared = {field: value for field, value in grid[names[0]].items()
                if field not in cohort_plan.VARY}
      command = make_command(config, shared, workdir=workdir, data_dir=data_dir, module="cohort")
      tasks.append(Task([*command, f"--trials={json.dumps(own)}"], tuple(names),
                        f"cohort_{len(tasks) + 1}.log"))
  return tasks


def make_command(config, values, *, workdir, data_dir, module="train"):
  """Returns the argument list of one command, to be run in the repository's root."""
  path, colon, arg = config.partition(":")
  path = os.path.realpath(path)
  if path.startswith(f"{ROOT}{os.sep}"):
    path = os.path.relpath(path, ROOT)
  return [sys.executable, "-m", f"recjax.{module}", f"--config={path}{colon}{arg}",
          f"--workdir={workdir}", f"--config.data_dir={data_dir}",
          *(f"--config.{name}={_format(value)}" for name, value in values.items())]


def write_table(config, grid, workdir):
  """Writes W/trials.md and W/trials.csv; returns the former."""
  if not os.path.isdir(workdir):
    raise errors.UserError(f"--workdir {workdir}: no such folder; run the grid without --table")
  metric = spec.load_config(config).get("eval", {}).get("metric") or ""
  rows = trials.collect(grid, workdir, metric=metric)
  trials.write(workdir, rows, metric=metric)
  return trials.markdown(rows, metric=metric)


def run(tasks, workdir, *, jobs=1, tries=100, gpus=()):
  """Runs the Tasks, `jobs` at once; returns this program's exit code."""
  stop, told = [], False
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: stop.append(number))
  left = lambda task: [n for n in task.trials if not trials.is_finished(f"{workdir}/{n}")]
  total = sum(len(task.trials) for task in tasks)
  waiting = [(task, 1) for task in tasks if left(task)]
  done, failed = total - sum(len(left(task)) for task, _ in waiting), {}
  free = list(gpus) or [None] * jobs
  running = []  # (task, its trials to be run, process, try, start, slot)
  if done:
    print(f"{done} of {total} trials are complete already", flush=True)

  while running or (waiting and not stop):
    while waiting and len(running) < jobs and not stop:
      task, attempt = waiting.pop(0)
      slot, names = free.pop(0), left(task)
      running.append((task, names, _start(task, names, workdir, slot), attempt, time.monotonic(),
                      slot))
      print(f"{', '.join(names)}: started{f' (try {attempt})' if attempt > 1 else ''}", flush=True)
    if stop and not told:
      told = True
      for _, _, process, *_ in running:
        process.terminate()
    for entry in list(running):
      task, names, process, attempt, start, slot = entry
      if (code := process.poll()) is None:
        continue
      running.remove(entry)
      free.append(slot)
      wall_s = f"{time.monotonic() - start:.0f}s"
      for name in names:
        if trials.is_finished(f"{workdir}/{name}"):
          done += 1
          print(f"{name}: complete in {wall_s} ({done}/{total})", flush=True)
        elif code == errors.EXIT_PREEMPTED or stop:
          said = "goes on when started again" if code == errors.EXIT_PREEMPTED else "stopped"
          trials.note(f"{workdir}/{name}", "preempted", exit_code=code, reason=said)
          if stop:
            print(f"{name}: stopped after {wall_s}, exit code {code}", flush=True)
        else:
          failed[name] = _fail(name, code, wall_s, workdir, task.log)
      if not stop and code == errors.EXIT_PREEMPTED:
        if attempt < tries:
          waiting.append((task, attempt + 1))
        else:
          failed |= {name: _fail(name, code, wall_s, workdir, task.log) for name in left(task)}
    time.sleep(0.1)

  print(f"{done} of {total} trials complete, {len(failed)} failed", flush=True)
  for name, reason in failed.items():
    print(f"  {name}: {reason}", file=sys.stderr)
  if stop:
    return errors.EXIT_PREEMPTED
  return 1 if failed else 0


def _fail(name, code, wall_s, workdir, log):
  """Notes and says that a trial failed; returns why."""
  said = _last_line(f"{workdir}/{log}", about=f"error: {name}: ")
  trials.note(f"{workdir}/{name}", "failed", exit_code=code, reason=said)
  reason = f"exit code {code} after {wall_s}: {said} (see {workdir}/{log})"
  print(f"{name}: failed, {reason}", flush=True)
  return reason


def _start(task, names, workdir, gpu):
  for name in names:
    os.makedirs(f"{workdir}/{name}", exist_ok=True)
    trials.forget(f"{workdir}/{name}")
  environment = dict(os.environ, PYTHONUNBUFFERED="1")
  if gpu is not None:
    environment["CUDA_VISIBLE_DEVICES"] = gpu
  with open(f"{workdir}/{task.log}", "ab") as log:
    # A session of its own: Ctrl-C reaches this program only, which lets the trial save itself.
    return subprocess.Popen(task.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _absolute(path):
  return os.path.abspath(os.path.expanduser(path))


def _format(value):
  """Returns `value` as config flags parse it."""
  return value if isinstance(value, str) else repr(value)


def _last_line(path, about):
  """Returns the last line of a log that begins with `about`, else the last that is not empty."""
  with open(path, "rb") as log:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 16384))
    lines = [line.strip() for line in log.read().decode(errors="replace").split("\n")]
  lines = [line for line in lines if line] or ["no output"]
  return next((line for line in reversed(lines) if line.startswith(about)), lines[-1])


if __name__ == "__main__":
  flags.DEFINE_string("config", None, "Config file, FILE.py or FILE.py:arg.")
  flags.DEFINE_string("workdir", None, "Folder of the trials' folders.")
  flags.DEFINE_string("data_dir", None, "Folder of the prepared data sets.")
  flags.DEFINE_integer("jobs", 1, "Trials at once.", lower_bound=1)
  flags.DEFINE_list("gpus", [], "Ids of GPUs, such as 0,1: each trial running gets one of them.")
  flags.DEFINE_integer("tries", 100, "Starts of one trial that is preempted.", lower_bound=1)
  flags.DEFINE_boolean("dry_run", False, "Print the commands only.")
  flags.DEFINE_integer("print_line", None, "Print only this command, counted from 1.",
                       lower_bound=1)
  flags.DEFINE_boolean("table", False, "Write and print the table of trials only.")
  flags.DEFINE_integer("cohort", 1, "Trials of one command, where they fit.", lower_bound=1)
  cli.run(main)
