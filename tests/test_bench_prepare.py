"""The bench of preparing: what it generates is what it says, and the command prints a table."""

import subprocess
import sys

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from launch.bench import prepare, processes


def test_generated_rows_are_the_same_in_both_forms_and_ascend(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, "BLOCK", 700)
  for form in ("parquet", "csv"):
    assert prepare.generate(tmp_path / f"rows.{form}", 2000) == 20
  table = pa_parquet.read_table(tmp_path / "rows.parquet")
  assert table.num_rows == 2000 and pa_csv.read_csv(tmp_path / "rows.csv").to_pylist() == (
    table.to_pylist())
  times = table.column("time").to_pylist()
  assert times == sorted(set(times))  # No row twice.
  assert set(table.column("user").to_pylist()) == set(range(20))


def printed(*command):
  """Returns the table that a command prints, {name: value}."""
  done = subprocess.run([sys.executable, "-m", *command], cwd=processes.ROOT, text=True,
                        capture_output=True, check=True)
  names, _, values = ([cell.strip() for cell in line.strip("|").split("|")]
                      for line in done.stdout.strip().splitlines())
  return dict(zip(names, values, strict=True))


def test_the_command_prints_what_it_took():
  found = printed("launch.bench.prepare", "--rows=3000", "--shards=2")
  assert (found["rows"], found["users"], found["shards"]) == ("3,000", "30", "2")
  assert float(found["wall_s"]) > 0 and 20 < float(found["peak_mb"]) < 2000


def test_a_stream_is_timed():
  found = printed("launch.bench.stream", "--rows=3000", "--shards=2", "--held=1")
  assert (found["rows"], found["shards"], found["held"]) == ("3,000", "2", "1")
  assert float(found["users_per_s"].replace(",", "")) > 0 and 20 < float(found["peak_mb"]) < 2000


def test_the_peak_is_not_that_of_who_asks(tmp_path):
  mine = np.ones(100_000_000)  # 800 MB
  prepare.generate(tmp_path / "rows.parquet", 2000)
  found = prepare.prepare(tmp_path / "rows.parquet", tmp_path / "data", shards=2)
  assert 20 < found["peak_mb"] < mine.nbytes / 2**20
  assert found["cores_s"] > 0
