"""Times training steps over catalogs of thousands to millions of items, and the memory they take.

    python -m launch.bench.catalog [--items=4000,40000,400000,4000000] [--cases=...] [--seconds=5]
      [--output=untied]

Every cell is a process of its own: SASRec with one table of d = 64, 64 users of 50 positions a step
(3,200 labels), Adam, generated histories (item ranks by Zipf's law). Printed are milliseconds of
the quickest step, after compilation; those of all cores together, which tell the truth on a busy
machine too; and the peak memory of the process.

    dense         softmax, all scores at once (left out where they alone would be above 3 GiB)
    chunked       softmax in blocks (recjax/catalog.py)
    sampled       sampled softmax, 256 negatives shared by a batch; every row updated
    sampled_rows  the same; only rows that the batch meets are updated (recjax/sparse.py)
    gbce_rows     gBCE with as many, likewise
    popular_rows  sampled softmax, negatives by popularity, likewise
    in_batch_rows sampled softmax against labels of the batch, likewise
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

FLAGS = flags.FLAGS
SAMPLED = dict(criterion="sampled_softmax", negatives="batch")
CASES = {
  "dense": (dict(criterion="softmax"), False),
  "chunked": (dict(criterion="softmax"), False),
  "sampled": (SAMPLED, False),
  "sampled_rows": (SAMPLED, True),
  "gbce_rows": (dict(SAMPLED, criterion="gbce"), True),
  "popular_rows": (dict(SAMPLED, proposal="popularity"), True),
  "in_batch_rows": (dict(SAMPLED, proposal="in_batch"), True),
}
USERS, LENGTH, BATCH, WIDTH = 2048, 50, 64, 64  # whole batches, since the quickest counts


def main(_):
  if FLAGS.run:
    print(json.dumps(measure(FLAGS.run, int(FLAGS.items[0]))))
    return
  print(f"| ms a step / of cores / peak GiB | {' | '.join(f'{int(n):,}' for n in FLAGS.items)} |")
  print("|---|" + "---:|" * len(FLAGS.items))
  for case in FLAGS.cases:
    cells = [cell(case, int(items)) for items in FLAGS.items]
    print(f"| {case} | {' | '.join(cells)} |", flush=True)


def cell(case, items):
  """Returns "ms / ms / GiB" of a process that measures it."""
  if case == "dense" and 4 * BATCH * LENGTH * items > 3 * 2**30:
    return "-"
  command = [sys.executable, "-m", "launch.bench.catalog", f"--run={case}", f"--items={items}",
             f"--seconds={FLAGS.seconds}", f"--output={FLAGS.output}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    print(done.stderr[-1000:], file=sys.stderr)
    return f"exit {done.returncode}"
  found = json.loads(done.stdout.splitlines()[-1])
  return f"{found['step_ms']:,.0f} / {found['cores_ms']:,.0f} / {found['peak_gib']:.1f}"


def measure(case, items):
  """Returns {"step_ms", "cores_ms", "peak_gib"} of steps in this process."""
  import numpy as np

  from configs import common
  from launch.bench.contestants import recjax_step
  from recjax import catalog, memory, softmax

  if case == "dense":
    catalog.WHOLE, softmax.SCORES = 2**62, 0  # never in blocks
  loss, rows = CASES[case]
  config = common.get_config()
  config.update(dataset="catalog", batch_size=BATCH, total_steps=1000)
  config.model.update(name="sasrec", variant="sasrec", item_width=WIDTH, max_len=LENGTH,
                      output=FLAGS.output)
  config.objective.name = "causal_next_item"
  config.objective.causal_next_item.update(loss)
  config.optim.sparse_rows = rows
  config.eval.update(protocols=("full",), max_users=8)
  with tempfile.TemporaryDirectory() as folder:
    config.data_dir = folder
    generate(pathlib.Path(folder) / "catalog", items)
    take, _ = recjax_step.make(config)
  taken, begin = [], time.monotonic()
  while len(taken) < 4 or time.monotonic() - begin < FLAGS.seconds:  # the first clear their pages
    start = time.monotonic(), time.process_time()
    sums = take(1)
    taken.append((time.monotonic() - start[0], time.process_time() - start[1]))
  assert np.isfinite(sums["loss"])
  wall_s, cores_s = map(min, zip(*taken, strict=True))
  return {"step_ms": 1000 * wall_s, "cores_ms": 1000 * cores_s, "peak_gib": memory.peak_gib()}


def generate(folder, items):
  """Writes a data set of USERS histories of LENGTH + 3 items."""
  import numpy as np

  from recjax.data import sequences

  rng, length = np.random.default_rng(0), LENGTH + 3
  drawn = np.exp(rng.uniform(0, np.log(items + 1), (USERS, length)))  # P ~ 1 / rank
  ranks = np.minimum(drawn, items).astype(np.int32)
  lengths = np.full(USERS + 1, length)
  lengths[0] = 0
  splits = np.zeros((USERS + 1, 3, 2), np.int32)
  splits[1:] = [[0, length - 2], [length - 2, length - 1], [length - 1, length]]
  in_domain = np.ones(items + 1, bool)
  in_domain[0] = False
  names = lambda count: np.array([b"", *(b"%d" % n for n in range(1, count + 1))])
  sequences.save(folder, sequences.Dataset(
    manifest=dict(name="catalog", title="generated", generated=True, users=USERS, items=items,
                  interactions=ranks.size, raw_sha256="0" * 64, split={}),
    user_ids=names(USERS), item_ids=names(items), in_domain=in_domain,
    offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items=ranks.ravel(),
    times=np.arange(ranks.size), splits=splits))


if __name__ == "__main__":
  flags.DEFINE_list("items", ["4000", "40000", "400000", "4000000"], "Sizes of the catalog.")
  flags.DEFINE_list("cases", list(CASES), "Rows of the table.")
  flags.DEFINE_float("seconds", 5.0, "How long each case takes steps, at least four.")
  flags.DEFINE_enum("output", "tied", ["tied", "untied"],
                    "Whether the head has a table of its own.")
  flags.DEFINE_string("run", None, "Measures this case for one size; for the program's own use.")
  app.run(main)
