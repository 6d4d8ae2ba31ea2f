"""recjax on one accelerator: tokens a second, share of the card's peak, and where the time goes.

    python -m launch.bench.gpu --data_dir=DATA --out=OUT [--torch_python=PYTHON]
      [--batches=256,1024,4096] [--sizes=base,large] [--ways=written_out,flash,cut,fused,torch]
      [--smoke]

Made for one H100 or H200; `--smoke` runs a tiny model anywhere. Each case is a process of its own,
so that one that runs out of memory ends no other. Sizes: base (6 layers, width 128, T = 100) and
large (8 layers, width 512, T = 200). Ways:

    written_out  attention as XLA makes it, the whole batch at once
    flash        attention in one kernel with dropout on its weights (recjax/models/flash.py)
    cut          the same, rows sorted by length, in parts cut to half of the columns where that does
    fused        cuDNN's attention, which has no dropout on its weights (bfloat16 alone)
    torch        the hand-tuned PyTorch, where `--torch_python` can import one that sees the card

Utilization is of the necessary FLOPs (launch/bench/flops.py) and of all that a padded batch with
logits at labels costs ("model"), over the card's dense bfloat16 or TF32 peak. A trace of three steps
is kept in OUT/trace and its three largest terms are printed. Writes OUT/gpu.json and OUT/gpu.md.
"""

import argparse
import dataclasses
import glob
import gzip
import json
import pathlib
import subprocess
import sys
import time

from launch.bench import flops, processes, workload

# Dense FLOP/s of one card by NVIDIA's data sheets (H100 SXM and H200 alike), without sparsity.
PEAKS = {"bfloat16": 989e12, "float32": 494e12}  # float32 products in TF32
CARDS = ("H100", "H200")
SIZES = {"base": workload.Size(),
         "large": workload.Size(layers=8, width=512, heads=8, hidden=2048, max_len=200),
         "smoke": workload.Size(layers=1, width=32, heads=2, hidden=32, max_len=20)}
FLASH = {"model.attention_kernel": "flash"}
WAYS = {"written_out": {}, "flash": FLASH, "cut": FLASH,
        "fused": {"model.attention_kernel": "fused"}, "torch": None}
PARTS = 8  # of a batch, where it is cut
CONTAINERS = ("while", "cond", "conditional", "call")  # their time is that of what is in them


def main():
  args = parse()
  if args.case:
    print(json.dumps(run_case(json.loads(args.case), args)))
    return
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  rows = []
  for case in cases(args):
    row = {**case, **start(case, args)}
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
  parser.add_argument("--batches", default="256,1024,4096")
  parser.add_argument("--sizes", default="base,large")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--ways", default=",".join(WAYS))
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--smoke", action="store_true")
  parser.add_argument("--case", default="", help="for the program's own use")
  args = parser.parse_args(arguments)
  if args.smoke:
    args.sizes, args.batches, args.steps = "smoke", "64", 2
  return args


def cases(args):
  """Yields what is run: every way, for every size, batch and type."""
  for size in args.sizes.split(","):
    for batch in map(int, args.batches.split(",")):
      for dtype in args.dtypes.split(","):
        for way in args.ways.split(","):
          if way != "fused" or dtype == "bfloat16":
            yield {"way": way, "size": size, "batch": batch, "dtype": dtype}


def fields(case):
  """Returns {dotted name: value}, what a way of recjax sets in a config."""
  chosen = dict(WAYS[case["way"]])
  if case["way"] == "cut":
    chosen["micro_batch"] = max(case["batch"] // PARTS, 8)
    chosen["micro_lengths"] = (SIZES[case["size"]].max_len // 2,)
  return chosen


def start(case, args):
  """Returns the numbers of a case, from a process of its own, or why there are none."""
  if case["way"] == "torch":
    return start_torch(case, args)
  command = [sys.executable, "-m", "launch.bench.gpu", f"--data_dir={args.data_dir}",
             f"--out={args.out}", f"--steps={args.steps}", f"--case={json.dumps(case)}"]
  return _answer(command)


def start_torch(case, args):
  """Returns the same of the hand-tuned PyTorch, on the card (or, with --smoke, the CPU)."""
  probe = "import torch, sys; sys.exit(not torch.cuda.is_available())"
  on_card = not subprocess.run([args.torch_python, "-c", probe], check=False,
                               capture_output=True).returncode
  if not on_card and not args.smoke:
    return {"failed": f"{args.torch_python} has no torch that sees a card"}
  size = dataclasses.asdict(SIZES[case["size"]])
  options = f"bf16={int(case['dtype'] == 'bfloat16')},compile={int(on_card)}"
  command = [args.torch_python, "-m", "launch.bench.contestants.tuned_torch",
             f"--data_dir={args.data_dir}", f"--device={'cuda' if on_card else 'cpu'}",
             f"--options={options}", f"--steps={args.steps}", "--warmup=3",
             *[f"--{name}={size[name]}" for name in
               ("layers", "width", "heads", "hidden", "max_len")], f"--batch={case['batch']}"]
  found = _answer(command)
  if "failed" in found:
    return found
  # Its memory is what the process takes of the host, not of the card.
  return _facts(case, found["users_per_s"], found["tokens_per_s"], found.get("card", "cpu"),
                args.data_dir)


def _answer(command):
  done = subprocess.run(command, cwd=processes.ROOT, check=False, capture_output=True, text=True)
  if done.returncode:
    return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
  return json.loads(done.stdout.strip().splitlines()[-1])


def run_case(case, args):
  """Returns the numbers of a case of recjax, measured in this process."""
  import jax

  from launch.bench import settings
  from launch.bench.contestants import recjax_step
  from recjax import partition
  size = dataclasses.replace(SIZES[case["size"]], batch=case["batch"])
  config = settings.get_config("bert4rec", path="plain", data_dir=args.data_dir, size=size,
                               dtype=case["dtype"], **fields(case))
  # Products of float32 in TF32, as PyTorch's "high".
  jax.config.update("jax_default_matmul_precision", "tensorfloat32")
  begin = time.perf_counter()
  take, extra = recjax_step.make(config)
  take(3)
  started = time.perf_counter() - begin
  begin = time.perf_counter()
  sums = take(args.steps)
  seconds = time.perf_counter() - begin
  folder = pathlib.Path(args.out, "trace", "-".join(map(str, case.values())))
  with jax.profiler.trace(str(folder)):
    take(3)
  found = _facts(case, float(sums["examples"]) / seconds,
                 float(sums["tokens"] - extra * sums["examples"]) / seconds,
                 jax.devices()[0].device_kind, args.data_dir)
  return {**found, "memory_gb": partition.peak_memory_gb(), "ready_s": started,
          "largest": largest(folder)}


def _facts(case, users_per_s, tokens_per_s, card, data_dir):
  """Returns the numbers of a case; utilization where the card's peak is known."""
  size, data = SIZES[case["size"]], workload.load(data_dir)
  lengths = (workload.windows(data, size.max_len) > 0).sum(1)
  needed = flops.of_task("bert4rec", lengths, size=size, num_items=data.num_items)
  padded = flops.padded(size, num_items=data.num_items)
  found = {"users_per_s": users_per_s, "tokens_per_s": tokens_per_s, "card": card}
  if any(name in card for name in CARDS):
    peak = PEAKS[case["dtype"]]
    found.update(necessary=users_per_s * needed / peak, model=users_per_s * padded / peak)
  return found


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
  lines = ["| | size | batch | type | users/s | items/s | necessary | model | largest terms |",
           "|---|---|---:|---|---:|---:|---:|---:|---|"]
  percent = lambda row, key: f"{100 * row[key]:.1f} %" if key in row else ""
  for row in rows:
    head = f"| {row['way']} | {row['size']} | {row['batch']} | {row['dtype']} "
    if "failed" in row:
      lines.append(head + f"| | | | | {row['failed']} |")
      continue
    terms = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.get("largest", ()))
    lines.append(head + f"| {row['users_per_s']:,.0f} | {row['tokens_per_s']:,.0f} "
                 f"| {percent(row, 'necessary')} | {percent(row, 'model')} | {terms} |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
