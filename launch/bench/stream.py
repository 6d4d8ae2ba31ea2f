"""Times one epoch of batches of a sharded data set, without a model, and takes its peak memory.

    python -m launch.bench.stream --rows=20000000 [--shards=16] [--held=4]

The data are those of launch/bench/prepare.py. A process of its own streams them as training does,
256 users a batch, their last 50 items each: `users_per_s` is how many users it delivers,
`users_per_core_s` the same for each second of a core that it took, `peak_mb` its largest resident
memory, and `growth_mb` how much of it came after it had started jax and opened the data set.
"""

import itertools
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from launch.bench import prepare, processes

FLAGS = flags.FLAGS


def main(_):
  if FLAGS.data_dir:
    print(measure(FLAGS.data_dir, FLAGS.held))
    return
  with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
    folder = pathlib.Path(folder)
    path = folder / "interactions.parquet"
    prepare.generate(path, FLAGS.rows)
    prepare.prepare(path, folder / "data", shards=FLAGS.shards)
    command = [sys.executable, "-m", "launch.bench.stream", f"--data_dir={folder / 'data'}",
               f"--held={FLAGS.held}"]
    found = subprocess.run(command, cwd=processes.ROOT, check=True, text=True, capture_output=True)
  names = ("rows", "shards", "held", "users_per_s", "users_per_core_s", "growth_mb", "peak_mb")
  print(f"| {' | '.join(names)} |\n|{'---:|' * len(names)}\n| {FLAGS.rows:,} | {FLAGS.shards} | "
        f"{FLAGS.held} | {found.stdout.strip()} |")


def measure(data_dir, held):
  """Returns "users_per_s | users_per_core_s | growth_mb | peak_mb" of one epoch."""
  import grain  # noqa: F401  What it takes itself is no growth.
  from recjax import memory
  from recjax.data import sequences, streams

  peak_mb = lambda: memory.peak_gib() * 1024
  stream = streams.Stream(sequences.load(data_dir, "table"), batch_size=256, longest=50,
                          window="last", seed=0, held=held)
  before, cores, begin = peak_mb(), time.process_time(), time.monotonic()
  stacks = stream.stacks(0, stream.per_epoch)
  users = sum(int((stack["users"] > 0).sum()) for stack in itertools.islice(
    stacks, -(-stream.per_epoch // stream.depth)))
  seconds, cores = time.monotonic() - begin, time.process_time() - cores
  return (f"{users / seconds:,.0f} | {users / cores:,.0f} | "
          f"{peak_mb() - before:,.0f} | {peak_mb():,.0f}")


if __name__ == "__main__":
  prepare.define_flags()
  flags.DEFINE_integer("held", 4, "Shards that are mixed at once.", lower_bound=1)
  flags.DEFINE_string("data_dir", None, "Of the data; for the program's own use.")
  app.run(main)
