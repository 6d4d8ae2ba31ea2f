"""What a step of recjax has to compute and to move, what it does, and how near to the floor it is.

    python -m launch.bench.roofline --data_dir=DATA [--tasks=bert4rec,sasrec] [--dtypes=float32]

FLOPs and bytes of the compiled step are XLA's own count (`cost_analysis`) of one micro-batch of
each width, and of the optimizer, times how many a step has of them on average, without adding
gradients up; bytes are the operands and results of every loop and product, wherever they lie, in
the cache for the most part. The floor (Williams et al. 2009, Roofline) is the larger of two times:
the necessary FLOPs (flops.py) at the rate of the best product, and the bytes that no step can
avoid, parameters and Adam's moments read and written once, at the rate of a copy. Prints a table;
minutes a task.
"""

import argparse
import concurrent.futures
import os
import sys
import time
import unittest.mock

import jax
import numpy as np

from launch.bench import flops, peak, processes, serving, settings, workload
from launch.bench.contestants import recjax_step, table
from recjax import catalog, softmax

SLOTS = 3  # a parameter and Adam's two moments
STEPS, BATCHES = 7, 200
COPIED = 1 << 28  # bytes of what is copied, far beyond any cache


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--tasks", default="bert4rec,sasrec")
  parser.add_argument("--dtypes", default="float32")
  args = parser.parse_args()
  measured, bandwidth = peak.ask(sys.executable), copy_rate()
  if measured is None:
    sys.exit("error: python -m launch.bench.peak fails")
  rates = {dtype: max(measured[dtype].values()) for dtype in args.dtypes.split(",")}
  print(markdown([(task, dtype, of_task(task, dtype, args.data_dir, rate, bandwidth))
                  for task in args.tasks.split(",") for dtype, rate in rates.items()]))


def copy_rate():
  """Returns the bytes a second that all cores together read and write as they copy."""
  cores = len(os.sched_getaffinity(0))
  pairs = [(np.ones(COPIED // 8), np.empty(COPIED // 8)) for _ in range(cores)]
  with concurrent.futures.ThreadPoolExecutor(cores) as pool:
    times = []
    for _ in range(5):
      start = time.perf_counter()
      list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
      times.append(time.perf_counter() - start)
  return 2 * COPIED * cores / min(times)


def of_task(task, dtype, data_dir, rate, bandwidth, size=workload.Size()):
  """Returns {name: number} of one task: what the table has."""
  data = workload.load(data_dir)
  config = settings.get_config(task, data_dir=data_dir, dtype=dtype, size=size)
  step = seconds(task, dtype, data_dir, size)
  lengths = workload.lengths(data, task, size)
  found = {width: count_program(task, dtype, data_dir, size, width, config.micro_batch)
           for width in (*config.micro_lengths, size.max_len)}
  parameters = found[size.max_len]["parameters"]
  parts = parts_of(lengths, size.batch, config.micro_batch, sorted(found))
  least = 2 * SLOTS * 4 * parameters
  once = {"flops": 0.0, "bytes": least + 4 * parameters}  # the optimizer reads the gradient as well
  total = {name: once[name] + sum(count * (found[width][name] - once[name])
                                  for width, count in parts.items()) for name in once}
  necessary = size.batch * flops.of_task(task, lengths, size=size, num_items=data.num_items)
  floor = max(necessary / rate, least / bandwidth)
  return {"necessary GFLOP": necessary / 1e9, "GFLOP of the program": total["flops"] / 1e9,
          "unavoidable GB": least / 1e9, "GB of the program": total["bytes"] / 1e9,
          "GFLOP/s of products": rate / 1e9, "GB/s of a copy": bandwidth / 1e9,
          "floor, s": floor, "step, s": step, "share of the roofline": floor / step}


def seconds(task, dtype, data_dir, size):
  """Returns how long a step takes, the median of several, as a contestant of its own."""
  command = table.command({"float32": "recjax", "bfloat16": "recjax_bf16"}[dtype], task,
                          python=sys.executable, data_dir=data_dir, options=serving.flags(size))
  results, failed = processes.take_turns({"recjax": command}, rounds=STEPS)
  if failed:
    sys.exit(f"error: {task} fails: {failed['recjax']}")
  return size.batch / results["recjax"]["users_per_s"]


def count_program(task, dtype, data_dir, size, width, rows):
  """Returns {"flops", "bytes", "parameters"} of a step of `rows` users with `width` columns."""
  config = settings.get_config(task, data_dir=data_dir, dtype=dtype, size=size, **{
    "batch_size": rows, "micro_batch": None, "micro_lengths": (), "num_devices": 1,
    "model.max_len": width})
  # In one block: the body of a loop counts once.
  with (unittest.mock.patch.dict(catalog.BLOCK, cpu=2**62),
        unittest.mock.patch.object(softmax, "SCORES", 0)):
    _, state, _, program = recjax_step.build(config)
  cost = program.cost_analysis()
  return {"flops": cost["flops"], "bytes": cost["bytes accessed"],
          "parameters": sum(x.size for x in jax.tree.leaves(state.params))}


def parts_of(lengths, batch, rows, widths):
  """Returns {width: how many parts of `rows` users a batch has of it}, the mean of many batches."""
  rng, counts = np.random.default_rng(0), dict.fromkeys(widths, 0)
  for _ in range(BATCHES):
    longest = np.sort(rng.choice(lengths, batch, replace=False)).reshape(-1, rows)[:, -1]
    for width in np.asarray(widths)[np.searchsorted(widths, longest)]:
      counts[int(width)] += 1
  return {width: count / BATCHES for width, count in counts.items()}


def markdown(rows):
  """Returns a Markdown table of [(task, dtype, what `of_task` returns)]."""
  names = list(rows[0][2])
  lines = ["| | " + " | ".join(f"{task}, {dtype}" for task, dtype, _ in rows) + " |",
           "|---|" + "---:|" * len(rows)]
  for name in names:
    cells = [f"{100 * found[name]:.0f} %" if name.startswith("share") else f"{found[name]:.3g}"
             for _, _, found in rows]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
