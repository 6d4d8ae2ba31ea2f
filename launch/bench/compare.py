"""Compares recjax's training step with its peers', in turns, on the same data.

    python -m launch.bench.compare --data_dir=DATA --out=OUT [--tasks=bert4rec,sasrec,...]
      [--only=recjax,plain_torch] [--rounds=5] [--envs=FOLDER] [--pause=PID,...]

Writes OUT/comparison.json and OUT/comparison.md. Every contestant is a process of its own with all
cores while it is its turn; a peer whose environment is missing is left out and named. What is
reported is the median over the turns. `bash launch/bench/run.sh` makes the environments and the
data first.
"""

import json
import os
import pathlib
import platform
import sys

from absl import flags

from launch.bench import flops
from launch.bench import peak as peak_lib
from launch.bench import processes, tune, workload
from launch.bench.contestants import table
from recjax import cli, errors, record

FLAGS = flags.FLAGS
TITLES = {"bert4rec": "BERT4Rec, cloze task", "sasrec": "SASRec, next item, full softmax",
          "sasrec_bce": "SASRec, next item, BCE with one negative",
          "caser": "Caser, examples are windows"}


def main(_):
  cli.require(FLAGS, "data_dir")
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  for name in FLAGS.only:
    errors.choose(table.CONTESTANTS, name, "--only")
  for task in FLAGS.tasks:
    errors.choose(dict.fromkeys(workload.TASKS), task, "--tasks")
  path = out / "comparison.json"
  found = json.loads(path.read_text()) if path.exists() and FLAGS.keep else {"tasks": {}}
  found.update(machine=machine(), peak=peak() if FLAGS.peak else found.get("peak"))
  for task in FLAGS.tasks:
    found["tasks"][task] = compare(task, out)
    record.write_text(path, json.dumps(found, indent=1) + "\n")
    record.write_text(out / "comparison.md", markdown(found))
  print(markdown(found))


def compare(task, out):
  """Returns {"results": {contestant: ...}, "missing": {contestant: why}, ...} of a task."""
  envs, pids = FLAGS.envs or processes.default_envs(), [int(pid) for pid in FLAGS.pause]
  tuned = out / tune.FILE
  tuned = json.loads(tuned.read_text()) if tuned.exists() else {}
  tuned = tuned.get(task) or tuned.get("bert4rec", {})  # the same blocks
  commands, missing = {}, {}
  for name, one in table.CONTESTANTS.items():
    if task not in one.tasks or FLAGS.only and name not in FLAGS.only:
      continue
    python = processes.python_of(envs, one.env)
    if python is None:
      missing[name] = f"no environment {one.env} in {envs}; bash launch/bench/run.sh makes it"
      continue
    options = [f"--options={tuned[name]}"] if name in tuned else []
    commands[name] = table.command(name, task, python=python, data_dir=FLAGS.data_dir,
                                   options=options)
  say = lambda text: print(f"{task}: {text}", file=sys.stderr, flush=True)
  # In small groups, each with recjax, so that the memory of all does not have to fit at once.
  peers = [name for name in commands if name != "recjax"]
  step = FLAGS.group - 1
  groups = [peers[low:low + step] for low in range(0, len(peers), step)] or [[]]
  results = {}
  for group in groups:
    names = ["recjax"] * ("recjax" in commands) + group
    part, failed = processes.take_turns(
      {name: commands[name] for name in names}, rounds=FLAGS.rounds, warmup=FLAGS.warmup,
      pids=pids, say=say)
    missing |= {name: f"failed: {why}" for name, why in failed.items()}
    if "recjax" in part:
      for name, (wall, cores) in processes.ratios(part).items():
        part[name].update(ratio=wall, ratio_cores=cores)
    base = results.get("recjax")
    results |= part
    if base is not None and "recjax" in part:  # the median of all its turns
      results["recjax"] = processes.merge(base, part["recjax"])
  for result in results.values():
    result["noise"] = processes.spread([row["step_s"] for row in result["rows"]])
  found = {"results": results, "missing": missing}
  if task != "caser":
    found["flops_per_user"] = needed(task)
  return found


def needed(task):
  """Returns the necessary FLOPs of training on a user, see launch/bench/flops.py."""
  data, size = workload.load(FLAGS.data_dir), workload.Size()
  return flops.of_task(task, workload.lengths(data, task, size), size=size,
                       num_items=data.num_items)


def peak():
  """Returns what launch.bench.peak measures in jax and in torch, as a list."""
  envs, found = FLAGS.envs or processes.default_envs(), []
  for env in ("", "torch"):
    if python := processes.python_of(envs, env):
      with processes.paused([int(pid) for pid in FLAGS.pause]):
        found.append(peak_lib.ask(python))
  return [one for one in found if one]


def machine():
  """Returns what the figures depend on and no contestant knows."""
  model = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")]
    model = names[0] if names else model
  return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(),
          "system": platform.system()}


def best_peak(found, dtype):
  """Returns the largest FLOP/s of any shape and library, or None."""
  return max((value for side in found.get("peak") or () for value in side[dtype].values()),
             default=None)


def markdown(found):
  """Returns comparison.md."""
  where = found["machine"]
  lines = [f"{where['cpu']}, {where['cores']} cores, Python {where['python']}.", ""]
  for task, part in found["tasks"].items():
    lines += [f"### {TITLES[task]}", "", *_rows(part, found), ""]
    for name, why in part["missing"].items():
      lines.append(f"- `{name}` is missing: {why}")
    lines += [f"- `{name}`: {table.CONTESTANTS[name].what}. {result['settings']}; "
              + ", ".join(f"{key} {value}" for key, value in result["versions"].items())
              for name, result in part["results"].items()]
    lines.append("")
  if found.get("peak"):
    lines += ["### Matrix products, GFLOP/s", "", *_peaks(found["peak"])]
  return "\n".join(lines) + "\n"


def _rows(part, found):
  yield ("| | users/s | items/s | recjax is faster by | by core seconds | share of peak "
         "| memory, GB | loss, first to last | noise |")
  yield "|---|" + "---:|" * 8
  for name, result in part["results"].items():
    share = ""
    top = best_peak(found, result["precision"])
    if top and "flops_per_user" in part:
      share = f"{100 * result['users_per_s'] * part['flops_per_user'] / top:.0f} %"
    factor = lambda key, result=result: f"{result[key]:.2f}" if key in result else ""
    yield (f"| {name} ({result['precision']}) | {result['users_per_s']:,.1f} "
           f"| {result['tokens_per_s']:,.0f} | {factor('ratio')} | {factor('ratio_cores')} "
           f"| {share} | {result['peak_memory_gb']:.2f} "
           f"| {result['first_loss']:.2f} to {result['last_loss']:.2f} "
           f"| {100 * result['noise']:.0f} % |")


def _peaks(sides):
  yield "| M x K x N | " + " | ".join(
    f"{side['library']} {dtype}" for side in sides for dtype in ("float32", "bfloat16")) + " |"
  yield "|---|" + "---:|" * (2 * len(sides))
  for shape in sides[0]["float32"]:
    yield f"| {shape} | " + " | ".join(
      f"{side[dtype][shape] / 1e9:,.0f}" for side in sides for dtype in ("float32", "bfloat16")
    ) + " |"


if __name__ == "__main__":
  tune.define_flags()
  flags.DEFINE_list("only", [], "Contestants; all by default.")
  flags.DEFINE_integer("warmup", 2, "Steps that do not count.", lower_bound=1)
  flags.DEFINE_integer("group", 5, "Contestants that are in memory at once.", lower_bound=2)
  flags.DEFINE_bool("peak", True, "Also measures what matrix products reach.")
  flags.DEFINE_bool("keep", False, "Keeps the other tasks of OUT/comparison.json.")
  cli.run(main)
