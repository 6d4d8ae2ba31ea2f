"""Estimates how a step scales from 8 to 256 chips, from the bytes and FLOPs of the compiled step.

    python -m launch.bench.scaling [--items=1000000] [--width=256] [--layers=4] [--length=200]
      [--rows=64] [--model_devices=8] [--chips=8,16,32,64,128,256] [--paper]

Compiles a training step of SASRec (full softmax, Adam, float32 parameters, bfloat16 products) for
simulated devices, data x model, runs nothing, and reads off the program how much one device
computes and what it tells the others: `cost_analysis` for FLOPs, the collective operations of the
HLO for bytes. Those do not depend on how many devices there are along the data axis, which is what
weak scaling adds. SCALING.md has the formulas, the chips' figures and what is left out.
"""

import collections
import dataclasses
import math
import os
import pathlib
import re
import sys
import unittest.mock

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip is assumed to do; SCALING.md has the sources."""
  flops: float  # a second, bfloat16
  link: float  # bytes a second that it sends while it receives as many, inside a slice
  memory: float  # bytes


CHIPS = {"TPU v5e": Chip(197e12, 200e9, 16e9), "TPU v5p": Chip(459e12, 600e9, 95e9)}
UTILIZATION = 0.4  # share of the peak that the products of a step reach


@dataclasses.dataclass(frozen=True)
class Step:
  """What one device does in a step."""
  flops: float
  data_bytes: float  # reduced over the data axis: gradients
  model_bytes: float  # reduced over the model axis: vectors and scores of positions
  largest_gather: int  # bytes of the largest all-gather; 0 where there is none


def collectives(hlo):
  """Returns [(kind, bytes of the result, devices of a group, their stride)] of an HLO text.

  Groups are read in both notations: {{0,1},{2,3}} and [2,2]<=[4] with an optional transpose.
  """
  found = []
  for line in hlo.splitlines():
    kind = re.search(rf" ({'|'.join(KINDS)})(-start)?\(", line)
    if not kind or " = " not in line:
      continue
    result = line[:kind.start()].split(" = ", 1)[1]
    size = sum(BYTES.get(dtype, 4) * math.prod(map(int, filter(None, shape.split(","))))
               for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result))
    found.append((kind.group(1), size, *_group(line)))
  return found


def _group(line):
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    ids = [int(n) for n in match.group(1).split(",")]
    return len(ids), ids[1] - ids[0] if len(ids) > 1 else 0
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](T\([\d,]+\))?", line):
    count, size = int(match.group(1)), int(match.group(2))
    return size, count if match.group(4) else 1
  return 0, 0


def read(compiled, *, model_devices):
  """Returns the Step of a compiled program on a mesh of data x model devices, model innermost."""
  totals, largest = collections.Counter(), 0
  for kind, size, devices, stride in collectives(compiled.as_text()):
    along_model = model_devices > 1 and devices == model_devices and stride == 1
    totals["model" if along_model else "data"] += size
    if kind == "all-gather":
      largest = max(largest, size)
  cost = compiled.cost_analysis()
  return Step((cost[0] if isinstance(cost, list) else cost)["flops"], totals["data"],
              totals["model"], largest)


def all_reduce_s(size, devices, link):
  """Returns the seconds of a ring all-reduce of `size` bytes: 2 (n - 1) / n of them are sent."""
  return 2 * (devices - 1) / devices * size / link


def estimate(step, chip, *, chips, model_devices, rows):
  """Returns {"step_s", "compute_s", "model_s", "data_s", "rows_per_s", "efficiency"}.

  Nothing is overlapped: efficiency is against a device that does the same alone.

  Args:
    step: Step of a device.
    chip: Chip.
    chips: all of them.
    model_devices: M; chips / M are along the data axis.
    rows: of each device along the data axis.
  """
  data = chips // model_devices
  compute = step.flops / (chip.flops * UTILIZATION)
  model = all_reduce_s(step.model_bytes, model_devices, chip.link)
  gradients = all_reduce_s(step.data_bytes, data, chip.link)
  total = compute + model + gradients
  return {"step_s": total, "compute_s": compute, "model_s": model, "data_s": gradients,
          "rows_per_s": data * rows / total, "efficiency": compute / total}


def predicted(*, items, width, layers, length, rows, model_devices):
  """Returns the Step that the formulas of SCALING.md give, without norms and the optimizer."""
  positions, share = rows * length, items / model_devices
  block = 12 * width**2  # weights: 4 W^2 of attention, 8 W^2 of a feed-forward part of 4 W
  products = 2 * block + 4 * length * width  # of a position: weights, and looking at all others
  encoder = 3 * positions * layers * products
  head = 4 * 2 * positions * width * share  # scores twice, the gradients of x and of the rows
  gradients = 4 * (layers * block + width * (length + share))
  exchanged = positions * (4 * width + 4 * width + 3 * 4)  # looked up, d x, and three scalars
  return Step(encoder + head, gradients, exchanged, 0)


def compile_step(*, items, width, layers, length, rows, data_devices, model_devices):
  """Returns the compiled step of a SASRec on data x model simulated devices; nothing is run."""
  import jax
  import jax.numpy as jnp
  import ml_collections
  import numpy as np

  from configs import common
  from recjax import catalog, models, objectives, optim, partition, softmax
  from recjax import state as state_lib
  from recjax import step as step_lib

  model = models.make(
    "sasrec", variant="sasrec", num_items=items, num_users=1, field_rows={}, num_layers=layers,
    item_width=width, hidden=4 * width, heads=max(width // 64, 1), max_len=length,
    dtype="bfloat16", layout="rows")
  objective = objectives.make("causal_next_item", num_items=items, known=model.objectives)
  mesh = partition.make_mesh(data_devices * model_devices, model_devices)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs(), tables={}))["params"]
  split = partition.split_rows(shapes, {"embed/item/embedding": 0}, mesh)
  padded = partition.pad_rows(shapes, split, mesh)
  config = ml_collections.ConfigDict(common.get_config().optim)
  plan = optim.plan(config, shapes)
  tx = optim.make(config, shapes, schedule=lambda step: 1e-3, plan=plan)
  total = rows * data_devices
  resident = {"users": jax.ShapeDtypeStruct((total,), jnp.int32),
              "items": jax.ShapeDtypeStruct((total, length + 1), jnp.int32)}
  run = step_lib.make_train_steps(
    apply_fn=step_lib.make_apply(model, {}), objective=objective, tx=tx, mesh=mesh,
    sample=lambda resident, rng, step: resident, micro_batches=data_devices,
    trainable=dict.fromkeys(plan, True), rooms={length: rows * length}, split=split)
  state = jax.eval_shape(lambda p: state_lib.create(p, tx, 0), padded)
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  state = jax.tree.map(place, state, partition.shardings(state, split, mesh))
  rows_split = partition.by_rows(mesh)
  resident = jax.tree.map(lambda x: place(x, rows_split), resident)
  # In one block: `cost_analysis` counts the body of a loop once.
  with (unittest.mock.patch.dict(catalog.BLOCK, cpu=2**62),
        unittest.mock.patch.object(softmax, "SCORES", 0)):
    return run.lower(state, resident, np.int32(1)).compile()


def table(step, *, chips, model_devices, rows):
  """Returns the lines of a Markdown table: a row for every number of chips of every kind."""
  head = ("chip", "chips", "step, ms", "compute", "model axis", "data axis", "sequences/s",
          "efficient")
  lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
  for name, chip in CHIPS.items():
    for count in chips:
      e = estimate(step, chip, chips=count, model_devices=model_devices, rows=rows)
      times = " | ".join(f"{1e3 * e[key]:,.1f}"
                         for key in ("step_s", "compute_s", "model_s", "data_s"))
      lines.append(f"| {name} | {count} | {times} | {e['rows_per_s']:,.0f} | "
                   f"{100 * e['efficiency']:.0f} % |")
  return lines


def main(_):
  size = dict(items=FLAGS.items, width=FLAGS.width, layers=FLAGS.layers, length=FLAGS.length,
              rows=FLAGS.rows, model_devices=FLAGS.model_devices)
  formulas = predicted(**size)
  steps = {"formulas": formulas}
  if not FLAGS.paper:
    # Two along the data axis: what they exchange is that of any number.
    os.environ["XLA_FLAGS"] = (
      f"--xla_force_host_platform_device_count={2 * FLAGS.model_devices}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    steps["compiled"] = read(compile_step(**size, data_devices=2),
                             model_devices=FLAGS.model_devices)
  print(f"| of one device, a step | {' | '.join(steps)} |\n|---|{'---:|' * len(steps)}")
  for label, name, scale in (("TFLOP", "flops", 1e12), ("MB over the data axis", "data_bytes", 1e6),
                             ("MB over the model axis", "model_bytes", 1e6),
                             ("MB of the largest all-gather", "largest_gather", 1e6)):
    cells = [f"{getattr(step, name) / scale:,.3f}" for step in steps.values()]
    print(f"| {label} | {' | '.join(cells)} |")
  print()
  print("\n".join(table(steps.get("compiled", formulas), chips=list(map(int, FLAGS.chips)),
                        model_devices=FLAGS.model_devices, rows=FLAGS.rows)))


def define_flags():
  """Defines the command's flags; not at import, as other benchmarks have flags of these names."""
  flags.DEFINE_integer("items", 10**6, "N, items of the catalog.")
  flags.DEFINE_integer("width", 256, "W, of item vectors and of the encoder.")
  flags.DEFINE_integer("layers", 4, "Transformer blocks.")
  flags.DEFINE_integer("length", 200, "T, positions of a sequence.")
  flags.DEFINE_integer("rows", 64, "Sequences that each device along the data axis reads a step.")
  flags.DEFINE_integer("model_devices", 8, "M, devices that split the item table.")
  flags.DEFINE_bool("paper", False, "Compile nothing: take what the formulas give.")
  flags.DEFINE_list("chips", ["8", "16", "32", "64", "128", "256"], "Rows of the table.")


if __name__ == "__main__":
  define_flags()
  app.run(main)
