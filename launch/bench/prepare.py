"""Times recjax.prepare, and takes its peak memory, on generated interactions of any number.

    python -m launch.bench.prepare --rows=5000000 [--shards=8] [--form=parquet]

The rows are in the order of their times, as a log's are, so that users are scattered over the whole
file: a hundredth as many users as rows, 50,000 items of which few are chosen often. They are
written block by block and removed in the end, with what was prepared of them. The command runs in a
process of its own; `wall_s` is from its start to its end, `cores_s` what it took of all cores
(which tells the truth on a busy machine too), and `peak_mb` its largest resident memory.
"""

import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from launch.bench import processes

BLOCK = 1 << 20
ITEMS = 50_000
# A process tells its own peak: what is told of a child is at least what its parent has had.
RUN = """
import atexit, runpy
from recjax import memory
atexit.register(lambda: print(memory.peak_gib()))
runpy.run_module("recjax.prepare", run_name="__main__", alter_sys=True)
"""

FLAGS = flags.FLAGS


def main(_):
  with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
    folder = pathlib.Path(folder)
    path = folder / f"interactions.{FLAGS.form}"
    users = generate(path, FLAGS.rows)
    measured = prepare(path, folder / "data", shards=FLAGS.shards)
    written_mb = size_mb(folder / "data")
    names = ("rows", "users", "shards", "read_mb", "written_mb", "wall_s", "cores_s",
             "s_per_million", "peak_mb")
    values = (f"{FLAGS.rows:,}", f"{users:,}", FLAGS.shards, f"{size_mb(path):,.0f}",
              f"{written_mb:,.0f}", f"{measured['wall_s']:.1f}", f"{measured['cores_s']:.1f}",
              f"{measured['wall_s'] / FLAGS.rows * 1e6:.2f}", f"{measured['peak_mb']:,.0f}")
  print(f"| {' | '.join(names)} |\n|{'---:|' * len(names)}\n| {' | '.join(map(str, values))} |")


def generate(path, rows, *, seed=0):
  """Writes user, item, time and rating of so many interactions; returns how many users there are.

  Args:
    path: of a .parquet or .csv file.
    rows: how many; their times ascend.
    seed: of all choices.
  """
  rng, users = np.random.default_rng(seed), max(rows // 100, 10)
  schema = pa.schema({"user": pa.int32(), "item": pa.int32(), "time": pa.int64(),
                      "rating": pa.float32()})
  write = pa_parquet.ParquetWriter if path.suffix == ".parquet" else pa_csv.CSVWriter
  with write(path, schema) as out:
    for low in range(0, rows, BLOCK):
      n = min(BLOCK, rows - low)
      items = (ITEMS * rng.random(n)**3).astype(np.int32)
      columns = [rng.integers(users, size=n, dtype=np.int32), items,
                 1_000_000_000 + np.arange(low, low + n),
                 rng.integers(1, 6, n).astype(np.float32)]
      out.write_table(pa.table(columns, schema=schema))
  return users


def prepare(path, data_dir, *, shards):
  """Returns {"wall_s", "cores_s", "peak_mb"} of `python -m recjax.prepare` on a table."""
  command = [sys.executable, "-c", RUN, "--config=configs/data/table.py",
             f"--raw_dir={path.parent}", f"--data_dir={data_dir}",
             f"--config.interactions={path.name}", f"--config.shards={shards}"]
  done, took = processes.timed(command, stdout=subprocess.PIPE)
  if done.returncode:
    sys.exit("error: recjax.prepare failed")
  return {**took, "peak_mb": float(done.stdout.split()[-1]) * 1024}


def size_mb(path):
  """Returns the size of a file or of all files in a folder."""
  files = [path] if path.is_file() else path.rglob("*")
  return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def define_flags():
  """Defines the flags of what is generated and prepared, here and in launch/bench/stream.py."""
  flags.DEFINE_integer("rows", 5_000_000, "How many interactions.", lower_bound=1000)
  flags.DEFINE_integer("shards", 8, "Files to write; 0 writes arrays.", lower_bound=0)
  flags.DEFINE_string("folder", None, "Where to do it; a temporary folder by default.")


if __name__ == "__main__":
  define_flags()
  flags.DEFINE_enum("form", "parquet", ("parquet", "csv"), "Of the interactions.")
  app.run(main)
