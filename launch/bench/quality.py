"""How long it takes to a validation NDCG@10, in seconds of training: recjax and PyTorch.

    python -m launch.bench.quality --data_dir=DATA --out=OUT [--sides=fast,plain,torch]
      [--epochs=200] [--every=5] [--options=bf16=1,...] [--smoke]

BERT4Rec of the comparison's size on MovieLens-1M, leave-one-out; full ranking, context `train`, by
recjax's evaluator for all sides (PyTorch's weights are converted, see contestants/tuned_model.py).
Training seconds leave out compiling, evaluating and saving. The sides run one after the other; the
same command resumes. Writes OUT/quality.md, quality.json and quality.png. Hours on two cores;
`--smoke` is a tiny model for ten epochs, minutes, and says nothing.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import flags

from launch.bench import processes, serving, settings, tune, workload
from recjax import cli, errors, experiment, partition, record, train, trees
from recjax import setting as setting_lib

FLAGS = flags.FLAGS
SIDES = {"fast": "recjax, fast path", "plain": "recjax, plain path", "torch": "hand-tuned PyTorch"}
METRIC = "full/ndcg@10"
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95)  # of the best value that every side reached


def main(_):
  cli.require(FLAGS, "data_dir")
  if FLAGS.epochs is None:
    FLAGS.epochs = 10.0 if FLAGS.smoke else 200.0
  for side in FLAGS.sides:
    errors.choose(SIDES, side, "--sides")
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  curves = {}
  for side in FLAGS.sides:
    config = make_config(side)
    run = run_torch if side == "torch" else run_recjax
    run(config, out / side)
    curves[side] = curve(out / side, config)
    report(out, curves)
  print((out / "quality.md").read_text())


def make_config(side):
  """Returns the config of a side; PyTorch's says what it is evaluated as."""
  size = workload.Size(layers=1, width=32, heads=2, hidden=64) if FLAGS.smoke else workload.Size()
  config = settings.get_config(
    "bert4rec", path="plain" if side == "torch" else side, data_dir=FLAGS.data_dir, size=size,
    dtype=FLAGS.dtype if side == "fast" else "float32",
    **{"eval.every_epochs": FLAGS.every, "log.every_epochs": FLAGS.every, "log.tensorboard": False,
       "log.every_steps": None, "total_epochs": FLAGS.epochs})
  config.eval.max_users = 500 if FLAGS.smoke else None
  return config


def run_recjax(config, workdir):
  """Trains to the end, or goes on: recjax's own command, in a process of its own."""
  code = ("import sys; from launch.bench import quality; "
          "quality.train_one(sys.argv[1], sys.argv[2])")
  done = subprocess.run([sys.executable, "-c", code, config.to_json(), str(workdir)],
                        cwd=processes.ROOT, check=False)
  if done.returncode:
    raise errors.UserError(f"the run in {workdir} ended with exit code {done.returncode}; the same "
                           "command goes on")


def train_one(config, workdir):
  """Trains the config, JSON, in `workdir`."""
  import ml_collections
  config = ml_collections.ConfigDict(json.loads(config))
  try:
    train.train_and_evaluate(config, workdir)
  except errors.UserError as error:
    cli.fail(error)
  except errors.Preempted:
    sys.exit(errors.EXIT_PREEMPTED)


def run_torch(config, workdir):
  """Trains the hand-tuned PyTorch; after every few epochs its weights are evaluated here."""
  workdir.mkdir(parents=True, exist_ok=True)
  python = processes.python_of(FLAGS.envs or processes.default_envs(), "torch")
  if python is None:
    raise errors.UserError("no environment with torch; bash launch/bench/run.sh makes it, or leave "
                           "torch out of --sides")
  path, state = workdir / "metrics.jsonl", workdir / "state.npz"
  rows = record.read_metrics(path) if path.exists() and state.exists() else []
  total = _steps(config, FLAGS.epochs)
  if not rows or rows[-1]["step"] < total:
    setting = setting_lib.set_up(experiment.build(config))
    size = workload.Size(**{field.name: getattr(config.model, name) for field, name in zip(
      dataclasses.fields(workload.Size)[:5],
      ("num_layers", "item_width", "heads", "hidden", "max_len"), strict=True)})
    taken = rows[-1]["step"] if rows else 0
    command = [python, "-m", "launch.bench.contestants.torch_run", f"--data_dir={FLAGS.data_dir}",
               f"--options={FLAGS.options}", f"--taken={taken}",
               *serving.flags(size)]
    if taken:
      command.append(f"--state={state}")
    with subprocess.Popen(command, cwd=processes.ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
      while taken < total:
        steps = min(_steps(config, FLAGS.every), total - taken)
        draft = workdir / "next.npz"
        process.stdin.write(f"{steps} {draft}\n")
        process.stdin.flush()
        if not (line := process.stdout.readline()):
          raise errors.UserError(f"the PyTorch run in {workdir} ended; its message is above")
        answer, taken = json.loads(line), taken + steps
        value = evaluate(setting, draft)
        rows.append({"step": taken, "split": "val", METRIC: value, **answer})
        os.replace(draft, state)
        record.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"torch: step {taken} of {total}, {METRIC} {value:.4f}", file=sys.stderr, flush=True)
      process.stdin.close()


def evaluate(setting, path):
  """Returns the validation metric of weights that contestants/torch_run.py wrote."""
  shapes = trees.flatten(setting.exp.params_shapes())
  with np.load(path, allow_pickle=False) as arrays:
    leaves = {name: arrays[name] for name in shapes}
  params = partition.put(trees.unflatten(leaves), partition.replicated(setting.exp.mesh))
  protocol, metric = METRIC.split("/")
  return float(setting.validation.run(setting.exp.predict, params).means()["train"][protocol][
    metric])


def curve(workdir, config):
  """Returns [(training seconds, value)] of a side's rows."""
  rows = record.read_metrics(workdir / "metrics.jsonl")
  if any("train_s" in row for row in rows):
    seconds = np.cumsum([row["train_s"] for row in rows])
    return [(float(s), row[METRIC]) for s, row in zip(seconds, rows, strict=True)]
  found, spent, before = [], 0.0, 0
  users = len(workload.windows(workload.load(FLAGS.data_dir), 1))
  per_epoch = math.ceil(users / config.batch_size)
  values = {row["step"]: row[METRIC] for row in rows if row["split"] == "val"}
  for row in (row for row in rows if row["split"] == "train"):
    epochs = (row["step"] - before) / per_epoch
    spent += epochs * users / row["examples_per_s"]
    before = row["step"]
    if row["step"] in values:
      found.append((spent, values[row["step"]]))
  return found


def report(out, curves):
  """Writes the table, the numbers and the plot."""
  best = min(max(value for _, value in points) for points in curves.values())
  lines = ["| validation NDCG@10, percent | " + " | ".join(SIDES[side] for side in curves) + " |",
           "|---:|" + "---:|" * len(curves)]
  for share in SHARES:
    goal = share * best
    cells = []
    for points in curves.values():
      reached = next((seconds for seconds, value in points if value >= goal), None)
      cells.append("" if reached is None else f"{reached:,.0f} s")
    lines.append(f"| {100 * goal:.2f} | " + " | ".join(cells) + " |")
  lines.append("| best: | " + " | ".join(
    f"{100 * max(value for _, value in points):.2f}" for points in curves.values()) + " |")
  note = "\nA smoke run: these numbers say nothing.\n" if FLAGS.smoke else ""
  record.write_text(out / "quality.json", json.dumps(curves) + "\n")
  record.write_text(out / "quality.md", "\n".join(lines) + "\n" + note)
  draw(out / "quality.png", curves)


def draw(path, curves):
  """Writes the curves as a picture."""
  from recjax import plots
  figure, axis = plots.plt.subplots(figsize=(6, 4), layout="constrained")
  for (side, points), color in zip(curves.items(), plots.COLORS[1::2], strict=False):
    axis.plot(*zip(*points, strict=True), marker=".", color=color, label=SIDES[side])
  axis.set_xlabel("seconds of training")
  axis.set_ylabel("validation NDCG@10, full ranking")
  axis.legend()
  draft = f"{path}.{os.getpid()}.tmp"
  figure.savefig(draft, format="png", dpi=150)
  plots.plt.close(figure)
  os.replace(draft, path)


def _steps(config, epochs):
  users = len(workload.windows(workload.load(FLAGS.data_dir), 1))
  return max(round(epochs * users / config.batch_size), 1)


if __name__ == "__main__":
  tune.define_flags()
  flags.DEFINE_list("sides", list(SIDES), "Out of " + ", ".join(SIDES))
  flags.DEFINE_float("epochs", None, "How long every side trains: 200, or 10 with --smoke.")
  flags.DEFINE_float("every", 5.0, "Epochs between validations.")
  flags.DEFINE_string("options", "", "Of contestants/tuned_torch.py, as in OUT/tuned.json.")
  flags.DEFINE_string("dtype", "float32", "Of recjax's fast path.")
  flags.DEFINE_bool("smoke", False, "A tiny model, to see that everything works.")
  cli.run(main)
