"""recjax on one accelerator: tokens a second, share of the card's peak, and where the time goes.

    python -m launch.bench.gpu --data_dir=DATA --out=OUT [--torch_python=PYTHON]
      [--tasks=bert4rec,sasrec] [--batches=256,1024,4096] [--sizes=base,large] [--at_once=8]
      [--ways=written_out,flash,stream,cut,fused,torch] [--smoke]

Made for one H100 or H200; `--smoke` runs a tiny model anywhere. Each case is a process of its own,
so that one that runs out of memory ends no other. `--at_once` of them get ready (compile) side by
side; then each in turn has the card for itself. Sizes: base (6 layers, width 128, T = 100) and
large (8 layers, width 512, T = 200). Ways:

    written_out  attention as XLA makes it, the whole batch at once
    flash        attention in one kernel with dropout on its weights (recjax/models/flash.py)
    stream       the same, sequences behind each other without padding: the default on a GPU
    cut          flash, rows sorted by length, in 8 parts, cut to half the columns if that does
    fused        cuDNN's attention, which has no dropout on its weights (bfloat16 alone)
    torch        the hand-tuned PyTorch, where `--torch_python` can import one that sees the card

Utilization is of the necessary FLOPs (launch/bench/flops.py) and of all that a padded batch with
logits at labels costs ("model"), over the card's dense bfloat16 or TF32 peak. A trace of one
turn is kept in OUT/trace and its three largest terms are printed (`command_buffer` hides what is in
it: XLA_FLAGS=--xla_gpu_enable_command_buffer= does without). Writes OUT/gpu.json and OUT/gpu.md.
"""

import argparse
import contextlib
import dataclasses
import glob
import gzip
import itertools
import json
import os
import pathlib
import sys
import time

from launch.bench import flops, processes, serving, workload

# Dense FLOP/s of one card by NVIDIA's data sheets (H100 SXM and H200 alike), without sparsity.
PEAKS = {"bfloat16": 989e12, "float32": 494e12}  # float32 products in TF32
CARDS = ("H100", "H200")
SIZES = {"base": workload.Size(),
         "large": workload.Size(layers=8, width=512, heads=8, hidden=2048, max_len=200),
         "smoke": workload.Size(layers=1, width=32, heads=2, hidden=32, max_len=20)}
FLASH = {"model.attention_kernel": "flash"}
WAYS = {"written_out": {"model.attention_kernel": "written_out"}, "flash": FLASH,
        "stream": {"model.layout": "stream"}, "cut": FLASH,
        "fused": {"model.attention_kernel": "fused"}, "torch": None}
PARTS = 8  # of a batch, where it is cut
WARMUP, ROUNDS = 1, 3  # turns of `--steps` steps
CONTAINERS = ("while", "cond", "conditional", "call")  # their time is that of what is in them


def main():
  args = parse()
  if args.case:
    run_case(json.loads(args.case), args)
    return
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  rows, waiting = [], list(cases(args))
  while waiting:
    group, waiting = waiting[:args.at_once], waiting[args.at_once:]
    for row in measure(group, args):
      rows.append(row)
      print(json.dumps(row), file=sys.stderr, flush=True)
      (out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
      (out / "gpu.md").write_text(markdown(rows))
  print(markdown(rows))


def parse(arguments=None):
  """Returns the command line's arguments."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--out", default="runs/gpu")
  parser.add_argument("--torch_python", default=sys.executable)
  parser.add_argument("--tasks", default="bert4rec", help="bert4rec,sasrec")
  parser.add_argument("--batches", default="256,1024,4096")
  parser.add_argument("--sizes", default="base,large")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--ways", default=",".join(WAYS))
  parser.add_argument("--steps", type=int, default=10, help="of a turn")
  parser.add_argument("--at_once", type=int, default=8)
  parser.add_argument("--smoke", action="store_true")
  parser.add_argument("--case", default="", help="for the program's own use, as --serve")
  parser.add_argument("--serve", action="store_true")
  args = parser.parse_args(arguments)
  if args.smoke:
    args.sizes, args.batches, args.steps = "smoke", "64", 2
  return args


def cases(args):
  """Yields what is run: every way, for every task, size, batch and type."""
  named = [getattr(args, name).split(",") for name in
           ("tasks", "sizes", "batches", "dtypes", "ways")]
  for task, size, batch, dtype, way in itertools.product(*named):
    if way != "fused" or dtype == "bfloat16":
      yield {"way": way, "task": task, "size": size, "batch": int(batch), "dtype": dtype}


def fields(case):
  """Returns {dotted name: value}, what a way of recjax sets in a config."""
  chosen = dict(WAYS[case["way"]])
  if case["way"] == "cut":
    chosen["micro_batch"] = max(case["batch"] // PARTS, 8)
    chosen["micro_lengths"] = (SIZES[case["size"]].max_len // 2,)
  return chosen


def measure(group, args):
  """Yields {a case and its numbers, or why there are none}, once all of the group are ready."""
  began, running = time.perf_counter(), []
  try:
    for case in group:
      try:
        running.append((case, processes.Process(_command(case, args))))
      except OSError as error:
        yield {**case, "failed": str(error)}
        continue
      running[-1][1].ask(WARMUP)
    for case, process in list(running):
      try:
        process.hear(count=False)
        case["ready_s"] = round(time.perf_counter() - began, 1)
      except processes.Failed as error:
        running.remove((case, process))
        process.close()
        yield {**case, "failed": str(error)}
    for case, process in running:
      try:
        process.take(ROUNDS)
        found = process.result()
        if case["way"] != "torch":
          process.take(1, count=False)
        facts = {name: process.answer[name] for name in ("memory_gb", "largest")
                 if name in process.answer}
        yield {**case, **_facts(case, found, args.data_dir), **facts}
      except processes.Failed as error:
        yield {**case, "failed": str(error)}
      process.close()
  finally:
    for _, process in running:
      process.close()


def _command(case, args):
  if case["way"] != "torch":
    return [sys.executable, "-m", "launch.bench.gpu", f"--data_dir={args.data_dir}",
            f"--out={args.out}", f"--steps={args.steps}", f"--case={json.dumps(case)}"]
  on_card = not args.smoke
  size = dataclasses.replace(SIZES[case["size"]], batch=case["batch"])
  options = f"bf16={int(case['dtype'] == 'bfloat16')},compile={int(on_card)}"
  return [args.torch_python, "-m", "launch.bench.contestants.tuned_torch",
          f"--task={case['task']}", f"--data_dir={args.data_dir}",
          f"--device={'cuda' if on_card else 'cpu'}",
          f"--options={options}", f"--at_once={args.steps}", *serving.flags(size)]


def run_case(case, args):
  """Answers for a case of recjax, as a contestant does; one more turn is traced."""
  # Others may be there, getting ready; what compiles must not take the card's memory from them.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  import jax

  from launch.bench import settings
  from launch.bench.contestants import recjax_step
  from recjax import partition
  session = serving.Session(args, card=jax.devices()[0].device_kind)
  # Products of float32 in TF32, as PyTorch's "high".
  jax.config.update("jax_default_matmul_precision", "tensorfloat32")
  take, extra = recjax_step.make(settings.get_config(
    case["task"], path="plain", data_dir=args.data_dir, dtype=case["dtype"],
    size=dataclasses.replace(SIZES[case["size"]], batch=case["batch"]), **fields(case)))
  folder = pathlib.Path(args.out, "trace", "-".join(map(str, case.values())))
  turns = 0
  while session.wanted():
    traced = turns == WARMUP + ROUNDS
    with jax.profiler.trace(str(folder)) if traced else contextlib.nullcontext():
      sums = take(args.steps)
    if traced:
      session.facts.update(largest=largest(folder), memory_gb=partition.peak_memory_gb())
    session.took(loss=sums["loss"] / sums["weight"], users=sums["examples"],
                 tokens=sums["tokens"] - extra * sums["examples"], steps=args.steps)
    turns += 1


def _facts(case, found, data_dir):
  """Returns the numbers of a contestant's result; utilization where the card's peak is known."""
  size, data = SIZES[case["size"]], workload.load(data_dir)
  lengths = workload.lengths(data, case["task"], size)
  facts = {name: found[name] for name in ("users_per_s", "tokens_per_s", "last_loss", "card")}
  if any(name in found["card"] for name in CARDS):
    for name, work in (
        ("necessary", flops.of_task(case["task"], lengths, size=size, num_items=data.num_items)),
        ("model", flops.padded(case["task"], size, num_items=data.num_items))):
      facts[name] = found["users_per_s"] * work / PEAKS[case["dtype"]]
  return facts


def largest(folder, count=3):
  """Returns [(name, share of the device's busy time)], the largest terms of a jax trace.

  Kernels of a card stand in the lanes of its streams; a CPU has lanes of threads, whose operations
  are told by their `hlo_op`.
  """
  total = {}
  for path in glob.glob(f"{folder}/plugins/profile/*/*.trace.json.gz"):
    with gzip.open(path, "rt") as file:
      events = json.load(file)["traceEvents"]
    devices = {event["pid"] for event in events if event.get("name") == "process_name"
               and "/device:" in event["args"]["name"]}
    streams = {(event["pid"], event.get("tid")) for event in events
               if event.get("name") == "thread_name" and "Stream" in event["args"]["name"]}
    for event in events:
      args = event.get("args") or {}
      lane = (event.get("pid"), event.get("tid"))
      on_card = lane in streams if streams else event.get("pid") in devices
      if event.get("ph") == "X" and (on_card if devices else "hlo_op" in args):
        name = _kind(args.get("hlo_op") or event["name"])
        if name not in CONTAINERS:
          total[name] = total.get(name, 0.0) + event["dur"]
  busy = sum(total.values())
  order = sorted(total, key=total.get, reverse=True)[:count]
  return [(name, round(total[name] / busy, 3)) for name in order]


def _kind(name):
  """Returns an operation's name without its number."""
  head, _, tail = name.rpartition(".")
  return head if tail.isdigit() else name


def markdown(rows):
  """Returns the table of all cases."""
  lines = ["| | task | size | batch | type | users/s | items/s | necessary | model | largest |",
           "|---|---|---|---:|---|---:|---:|---:|---:|---|"]
  percent = lambda row, key: f"{100 * row[key]:.1f} %" if key in row else ""
  for row in rows:
    head = f"| {row['way']} | {row['task']} | {row['size']} | {row['batch']} | {row['dtype']} "
    if "failed" in row:
      lines.append(head + f"| | | | | {row['failed']} |")
      continue
    terms = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.get("largest", ()))
    lines.append(head + f"| {row['users_per_s']:,.0f} | {row['tokens_per_s']:,.0f} "
                 f"| {percent(row, 'necessary')} | {percent(row, 'model')} | {terms} |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
