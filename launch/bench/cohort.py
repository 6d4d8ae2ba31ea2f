"""Times the same runs one by one and as a cohort (recjax/cohort.py) with either kind of lanes.

    python launch/bench/cohort.py --config=configs/bert4rec_ml1m.py:data=tgt,size=cpu \\
      --config.data_dir=DATA --config.total_epochs=2 [--members=5] [--rounds=1]

Each side is a process of its own that trains the seeds 0..members-1 in a folder that is thrown
away, with a cache of compiled programs that starts empty, as one that trains them in a row for the
first time. Printed are its seconds from start to end, those of all its cores (which tell the truth
on a busy machine too), those that went into compiling the steps, taking them and evaluating (the
rest reads data, initializes and saves), and how many examples a second the steps took. A gain above
1 is for the cohort: that many times less time, or more examples a second.
"""

import json
import os
import pathlib
import shlex
import sys
import tempfile

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from launch.bench import processes  # noqa: E402
from recjax import cli, errors, spec  # noqa: E402

FLAGS = flags.FLAGS
SIDES = ("one by one", "map", "vmap")
PARTS = ("compile_s", "train_s", "evaluate_s")


def main(_):
  cli.require(FLAGS, "config")
  if FLAGS.side:
    train(FLAGS.side, FLAGS.workdir)
    return
  found = {side: [] for side in SIDES}
  for number in range(FLAGS.rounds):
    for side in SIDES[::-1] if number % 2 else SIDES:
      with tempfile.TemporaryDirectory() as folder:
        found[side].append(measure(side, folder))
      print(f"round {number + 1}, {side}: {found[side][-1]['wall_s']:.1f} s", flush=True)
  print(table(found))


def measure(side, folder):
  """Returns {"wall_s", "cores_s", *PARTS, "examples_per_s"} of a side, all its runs together."""
  command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}", f"--workdir={folder}/runs"]
  environment = dict(os.environ, XDG_CACHE_HOME=f"{folder}/cache")
  done, took = processes.timed(command, env=environment, capture_output=True)
  if done.returncode:
    raise errors.UserError(f"{shlex.join(command)} failed: {done.stderr[-500:]}")
  speeds = [json.loads(path.read_text())["speed"]
            for path in pathlib.Path(folder, "runs").glob("*/report.json")]
  parts = {name: sum(speed[name] for speed in speeds) for name in PARTS}
  examples = sum(speed["examples_per_s"] * speed["train_s"] for speed in speeds)
  return {**took, **parts,
          "examples_per_s": examples / parts["train_s"]}


def train(side, workdir):
  """Trains all runs of a side."""
  from recjax import cohort
  from recjax import train as train_lib

  configs = [spec.override(FLAGS.config.copy_and_resolve_references(), {"seed": seed})
             for seed in range(FLAGS.members)]
  workdirs = [f"{workdir}/seed{seed}" for seed in range(FLAGS.members)]
  if side == SIDES[0]:
    found = list(map(train_lib.train_and_evaluate, configs, workdirs))
  else:
    found = cohort.train_and_evaluate(configs, workdirs, lanes=side)
  for report in found:
    if isinstance(report, errors.UserError):
      raise report


def table(found):
  """Returns the means over rounds of all sides, and how they compare, as markdown."""
  names = ("wall_s", "cores_s", *PARTS, "examples_per_s")
  mean = {side: {name: sum(m[name] for m in measured) / len(measured) for name in names}
          for side, measured in found.items()}
  lines = [f"| {FLAGS.members} runs | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
  for side in SIDES:
    lines.append(f"| {side} | " + " | ".join(f"{mean[side][name]:,.1f}" for name in names) + " |")
  for side in SIDES[1:]:
    less = [mean[SIDES[0]][name] / max(mean[side][name], 1e-9) for name in names[:-1]]
    more = mean[side][names[-1]] / mean[SIDES[0]][names[-1]]
    lines.append(f"| gain of {side} | " + " | ".join(f"{x:.2f}" for x in (*less, more)) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  cli.define_config("config")
  flags.DEFINE_integer("members", 5, "How many runs.", lower_bound=2)
  flags.DEFINE_integer("rounds", 1, "How often each side is timed.", lower_bound=1)
  flags.DEFINE_enum("side", None, SIDES, "Runs this side; for the program's own use.")
  flags.DEFINE_string("workdir", None, "Folder of the side's runs; for the program's own use.")
  cli.run(main)
