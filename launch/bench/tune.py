"""Finds the options with which the hand-tuned PyTorch is quickest on this machine.

    python -m launch.bench.tune --data_dir=DATA --out=OUT [--tasks=bert4rec] [--pause=PID,...]

One option after the other is tried against the best so far, in turns, and kept if it helps. Writes
OUT/tuned.json, {task: {contestant: options}}, which launch.bench.compare reads.
"""

import json
import pathlib
import shutil

from absl import flags

from launch.bench import processes, workload
from launch.bench.contestants import table
from recjax import cli, record

FLAGS = flags.FLAGS
START = {"bf16": 0, "compile": 0, "attention": "sdpa", "micro": 0, "cut": 0, "threads": 0}
FLOAT32 = (("attention", "manual"), ("micro", 64), ("micro", 32), ("compile", 1),
           ("attention", "sdpa"), ("micro", 0), ("micro", 64), ("threads", 1))
WINS_BY = 0.97  # share of the time; less is noise
FILE = "tuned.json"


def main(_):
  cli.require(FLAGS, "data_dir")
  path = pathlib.Path(FLAGS.out, FILE)
  path.parent.mkdir(parents=True, exist_ok=True)
  found = json.loads(path.read_text()) if path.exists() else {}
  for task in FLAGS.tasks:
    found[task] = tune(task)
    record.write_text(path, json.dumps(found, indent=2) + "\n")
  print(json.dumps(found, indent=2))


def tune(task):
  """Returns {contestant: options} of a task."""
  python = processes.python_of(FLAGS.envs or processes.default_envs(), "torch")
  def duel(best, *rivals):
    names = {write(options): options for options in (best, *rivals)}
    commands = {name: table.command("tuned_torch", task, python=python, data_dir=FLAGS.data_dir,
                                    options=(f"--options={name}",)) for name in names}
    pids = [int(pid) for pid in FLAGS.pause]
    results, failed = processes.take_turns(commands, rounds=FLAGS.rounds, warmup=1, pids=pids)
    for name, why in failed.items():
      print(f"{task}: {name} does not work here: {why}", flush=True)
    seconds = {name: workload.Size.batch / result["users_per_s"]
               for name, result in results.items()}
    print(task, {name: round(value, 2) for name, value in seconds.items()}, flush=True)
    quickest = min(seconds, key=seconds.get)
    first = seconds.get(write(best), float("inf"))
    return names[quickest] if seconds[quickest] < WINS_BY * first else best

  best = dict(START)
  has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
  for name, value in FLOAT32:
    if best[name] != value and (name != "compile" or has_compiler):
      best = duel(best, {**best, name: value})
  overall = duel(best, {**best, "bf16": 1})
  cut = duel(*({**overall, "cut": 1, "micro": micro} for micro in (32, 64)))
  return {"tuned_torch": write(overall), "tuned_torch_f32": write(best),
          "tuned_torch_cut": write(cut)}


def write(options):
  """Returns options as contestants/tuned_torch.py reads them."""
  return ",".join(f"{name}={value}" for name, value in options.items())


def define_flags():
  """Defines the flags that this command and launch.bench.compare share."""
  flags.DEFINE_string("data_dir", None, "Folder with the prepared data set ml1m.")
  flags.DEFINE_string("out", "runs/bench", "Folder of what is written.")
  flags.DEFINE_string("envs", None, "Folder of the peers' environments (default: run.sh's).")
  flags.DEFINE_list("tasks", ["bert4rec"], f"Out of {', '.join(workload.TASKS)}.")
  flags.DEFINE_integer("rounds", 3, "How often each contestant has its turn.", lower_bound=1)
  flags.DEFINE_list("pause", [], "Process ids of your own jobs that may stand still while a "
                    "contestant takes its steps, a minute at most.")


if __name__ == "__main__":
  define_flags()
  cli.run(main)
