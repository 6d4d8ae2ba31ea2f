"""How a contestant talks: steps are asked for on stdin, what they took is said on stdout, as JSON.

A contestant is `python -m launch.bench.contestants.NAME --task=TASK --data_dir=DATA`, in whatever
environment it needs. By itself it takes `--warmup` and `--steps` and prints one line. With
`--serve` it stays: for every line with a number n on stdin it takes n steps and prints a line, so
that contestants that are ready, and compiled, can take turns.
"""

import argparse
import json
import os
import statistics
import sys
import time

from launch.bench import workload
from recjax import memory

SIZE = ("layers", "width", "heads", "hidden", "max_len", "batch")  # of `workload.Size`


def parse(description, arguments=None, **extra):
  """Returns the command line's arguments.

  Args:
    description: for --help.
    arguments: instead of sys.argv[1:].
    extra: further options and their defaults.
  """
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--task", choices=workload.TASKS, default="bert4rec")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--serve", action="store_true")
  for field in SIZE:
    parser.add_argument(f"--{field}", type=int, default=getattr(workload.Size, field))
  for name, default in extra.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
  return parser.parse_args(arguments)


def size(args):
  """Returns the `workload.Size` that the arguments describe."""
  return workload.Size(**{field: getattr(args, field) for field in SIZE})


def flags(size):
  """Returns the options that describe a `workload.Size`."""
  return [f"--{field}={getattr(size, field)}" for field in SIZE]


class Session:
  """Counts and times steps: `while session.wanted(): ...; session.took(...)`."""

  def __init__(self, args, **facts):
    """Takes stdout for its own: what libraries print there goes to stderr.

    Args:
      args: of `parse`.
      facts: versions and settings, repeated in every line.
    """
    self._out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self._args, self.facts = args, facts
    self._left = None if args.serve else args.warmup + args.steps
    self._rows, self._losses = [], []
    self._started = 0.0

  def wanted(self):
    """Returns whether to take another step; waits until one is asked for."""
    if self._args.serve and not self._left:
      if self._rows:
        self._say(self._rows)
        self._rows = []
      line = sys.stdin.readline()
      self._left = int(line) if line.strip() else None
    elif not self._left:
      self._say(self._rows[self._args.warmup:])
      self._left = None
    if self._left is None:
      return False
    self._left -= 1
    self._cores, self._started = time.process_time(), time.perf_counter()
    return True

  def took(self, *, loss, users, tokens, step_s=None, steps=1):
    """Notes one step that is complete.

    Args:
      loss: a number; taking it from its device is part of the step.
      users: examples in the batch.
      tokens: real items among the inputs, no padding.
      step_s: seconds of the optimizer step alone, where making the batch can be told from it.
      steps: how many optimizer steps these numbers are the sum of.
    """
    wall_s, cores_s = time.perf_counter() - self._started, time.process_time() - self._cores
    self._losses.append(float(loss))
    self._rows.append(dict(wall_s=wall_s, cores_s=cores_s, users=int(users), tokens=int(tokens),
                           step_s=wall_s if step_s is None else step_s, steps=steps))

  def _say(self, rows):
    found = summary(rows, self._losses)
    print(json.dumps({**found, "rows": rows, **self.facts}), file=self._out, flush=True)


def summary(rows, losses):
  """Returns what a line says of the steps in `rows`: medians, the peak of memory, the losses."""
  per = lambda amount, seconds: statistics.median(row[amount] / row[seconds] for row in rows)
  return {"users_per_s": per("users", "step_s"), "tokens_per_s": per("tokens", "step_s"),
          "users_per_s_with_data": per("users", "wall_s"),
          "users_per_core_s": per("users", "cores_s"),
          "peak_memory_gb": memory.peak_gib(),
          "first_loss": losses[0], "last_loss": losses[-1], "steps_taken": len(losses)}
