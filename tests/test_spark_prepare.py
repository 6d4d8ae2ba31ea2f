"""The Spark job writes what recjax.prepare writes, whatever files and tasks the rows are in."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import test_prepare

from launch import spark_prepare
from recjax import errors, spec
from recjax.data import sequences

TIGHT = dict(keep_last=9, val=2, test=3, min_interactions=5, min_full=7)


@pytest.fixture(scope="module")
def spark():
  if importlib.util.find_spec("pyspark") is None:
    pytest.skip("pyspark is not installed (it is optional)")
  if shutil.which("java") is None:
    pytest.skip("Spark needs Java, and there is none")
  made = spark_prepare.session("local[2]")
  made.conf.set("spark.sql.shuffle.partitions", "2")
  yield made
  made.stop()


def _run(spark, raw_dir, data_dir, **fields):
  config = spec.load_config(test_prepare.TABLE)
  spec.override(config, {"shards": 3, **fields})
  return spark_prepare.run(config, raw_dir=raw_dir, data_dir=data_dir, spark=spark,
                           log=lambda line: None)


def _assert_same(one, two):
  names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
  assert names == sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
  for name in names:
    if name.endswith(".npy"):
      a, b = np.load(one / name), np.load(two / name)
      assert a.dtype == b.dtype and np.array_equal(a, b), name
    elif name.endswith("manifest.json"):
      a, b = (json.loads((folder / name).read_text()) for folder in (one, two))
      assert a.pop("raw_sha256") != b.pop("raw_sha256") and a == b
  for name in ("table", "table_books", "table_music"):
    a, b = sequences.load(one, name), sequences.load(two, name)
    assert len(a.shards) == 3
    for stem in ("items", "times", "ratings"):
      np.testing.assert_array_equal(np.asarray(getattr(a, stem)), np.asarray(getattr(b, stem)))


def test_equals_recjax_prepare_and_depends_on_no_file(spark, tmp_path):
  rows = test_prepare.random_rows(0)
  test_prepare.write_table(tmp_path, rows)
  fields = {"domain_splits": {"music": TIGHT}, "split.min_item_interactions": 5}
  test_prepare.make(test_prepare.TABLE, tmp_path, tmp_path / "one", shards=3,
                    **{name.replace(".", "__"): value for name, value in fields.items()})
  before = spark.conf.get("spark.sql.files.maxPartitionBytes")
  spark.conf.set("spark.sql.files.maxPartitionBytes", "4000b")  # Several tasks read the file.
  manifests = _run(spark, tmp_path, tmp_path / "two", **fields)
  spark.conf.set("spark.sql.files.maxPartitionBytes", before)
  _assert_same(tmp_path / "one", tmp_path / "two")

  # A folder of files, whose order is that of their names; both digests are of the rows alone.
  folder = tmp_path / "log"
  folder.mkdir()
  for low in range(0, len(rows), 250):
    test_prepare.write_table(folder, rows[low:low + 250])
    (folder / "interactions.csv").rename(folder / f"part-{low:04d}.csv")
  again = _run(spark, tmp_path, tmp_path / "three", interactions="log", **fields)
  assert again == manifests
  _assert_same(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("row, says", [
  (("u1", "i1", 5, "x", "books"), "the rating of a row is empty or out of range"),
  (("u1", "i1", "late", 3, "books"), "the ticks of a row is empty"),
  (("u1", "", 5, 3, "books"), "the item of a row is empty"),
  (("u1", "i1", 7, 2, "books"), "a row occurs twice: user 'u1', item 'i1'"),
])
def test_a_bad_row_is_a_user_error_and_nothing_is_written(spark, tmp_path, row, says):
  good = [(f"u{user}", f"i{n}", 7, 3, "books") for user in range(4) for n in range(5)]
  test_prepare.write_table(tmp_path, [*good, row])
  with pytest.raises(errors.UserError, match=says):
    _run(spark, tmp_path, tmp_path / "out")
  assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_without_spark_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
  with pytest.raises(errors.UserError, match="pip install"):
    spark_prepare.session()
