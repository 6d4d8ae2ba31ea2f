"""Prepares interactions that no single machine should, with Spark, as recjax.prepare would.

    pip install "pyspark>=4.0"  # and Java 17 or newer; neither is needed by anything else
    python launch/spark_prepare.py --config=configs/data/table.py --raw_dir=DIR --data_dir=DIR \\
      --config.interactions=listens.parquet --config.shards=64 [--master=local[4]]

or `spark-submit launch/spark_prepare.py ...` on a cluster, with recjax installed on its machines.
It takes the table's config (of `interactions`: a file or a folder of files, .parquet or text with a
header) and writes the same data sets with the same numbers as recjax.prepare, always in shards;
only `raw_sha256` is another digest, which does not depend on how rows are spread over files.

RAW and DATA are folders that all machines see. A task sorts and writes one shard, in memory. The
driver holds what is as long as users or items, never as interactions.
"""

import dataclasses
import os
import pathlib
import sys
import uuid
import zlib

from absl import flags
import numpy as np
import pyarrow as pa

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recjax import cli, errors  # noqa: E402
from recjax.data import metadata, prepare, readers, sequences, sources, splits  # noqa: E402
from recjax.data import shards as shards_lib  # noqa: E402

FLAGS = flags.FLAGS
POSITION = ("file", "block", "row")  # of a row in the raw files
RESULT = "shard int, problem string, counts binary"


def run(config, *, raw_dir, data_dir, spark, log=print):
  """Writes the data sets of a table config to `data_dir`; returns {name: manifest}.

  Args:
    config: ConfigDict of configs/data/table.py.
    raw_dir: folder of the interactions.
    data_dir: folder of the data sets.
    spark: SparkSession.
    log: called with lines for people.
  """
  config, raw_dir, data_dir = config.to_dict(), pathlib.Path(raw_dir), pathlib.Path(data_dir)
  if config["format"] != "table" or config["shards"] < 1:
    raise errors.UserError("this command prepares tables (configs/data/table.py) with "
                           "--config.shards of 1 or more")
  rows, ticks = read(spark, config, raw_dir / config["interactions"])
  rows = rows.persist()
  _check(rows, config)
  facts = None
  if config["items"]:
    facts = metadata.read_table(raw_dir / config["items"], features=config["features"],
                                texts=config.get("texts", ()), separator=config["separator"],
                                **config["item_columns"])
  users, items = _ids(rows, "user"), _ids(rows, "item")
  domains = _ids(rows, "domain") if "domain" in rows.columns else []
  if len(domains) > sources.MAX_DOMAINS:
    raise errors.UserError(f"{len(domains)} domains (limit {sources.MAX_DOMAINS}); is "
                           "--config.columns.domain right?")
  rules = {name: splits.parse(fields, name)
           for name, fields in sources.table_rules(config, domains).items()}
  table = prepare.Table(None, None, users, items, tuple(domains), None, _first_seen(rows, items))
  shared = prepare.shared_arrays(table, facts, sources.user_attributes(config, raw_dir))
  digest = f"xxhash64:{_digest(rows)}"
  numbered = _join(_join(rows, "user", users), "item", items)
  with prepare.scratch_folder(data_dir) as scratch:
    prepare.check_folders(data_dir, rules)
    manifests = {}
    for name, rule in rules.items():
      about = {"name": name, "title": config["title"], "generated": config["generated"],
               "raw_sha256": digest}
      part = numbered if rule.domain is None else numbered.where(numbered.domain == rule.domain)
      if manifest := _write(spark, part, scratch / name, table, rule, shared, about,
                            config["shards"], ticks):
        manifests[name] = manifest
    prepare.publish(config, rules, manifests, scratch, data_dir, log=log)
  rows.unpersist()
  return manifests


def read(spark, config, path):
  """Returns (DataFrame user, item, ticks[, rating][, domain], *POSITION; ticks in a second)."""
  from pyspark.sql import functions as F
  if not path.exists():
    raise errors.UserError(f"no file {os.fspath(path)!r}; check --raw_dir and the config's names")
  files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
  if files and files[0].suffix == ".parquet":
    raw = spark.read.parquet(os.fspath(path))
  else:
    tabs = path.name.removesuffix(".gz").endswith(".tsv")
    raw = spark.read.csv(os.fspath(path), header=True, mode="FAILFAST", enforceSchema=False,
                         sep="\t" if tabs else config["separator"])
  columns = readers.pick(config["columns"], raw.columns, os.fspath(path))
  prepare.refuse_baskets("basket" in columns)
  ticks = readers.UNITS[config["time_unit"]]
  time, kind = F.col(columns["time"]), dict(raw.dtypes)[columns["time"]]
  if kind.startswith("timestamp") or config["time_unit"] == "iso":
    time, ticks = F.unix_micros(F.try_to_timestamp(time)), readers.UNITS["us"]
  elif not kind.endswith("int"):  # Beyond 2**53 a double no longer tells neighbors apart.
    time = time.try_cast("double")
    time = F.when((time == F.floor(time)) & (F.abs(time) < 2**53), time)
  raw = raw.select("*", "_metadata.file_path", "_metadata.file_block_start")
  paths = [row[0] for row in raw.select("file_path").distinct().collect()]
  number = F.array_position(F.array(*map(F.lit, sorted(paths))), F.col("file_path"))
  chosen = [F.col(columns["user"]).cast("string").alias("user"),
            F.col(columns["item"]).cast("string").alias("item"), time.cast("long").alias("ticks")]
  if "rating" in columns:
    chosen.append(F.col(columns["rating"]).try_cast("float").alias("rating"))
  if "domain" in columns:
    chosen.append(F.col(columns["domain"]).cast("string").alias("domain"))
  # Ids ascend with the place in a block of a file, whatever task reads it.
  return raw.select(*chosen, number.cast("int").alias("file"),
                    F.col("file_block_start").alias("block"),
                    F.monotonically_increasing_id().alias("row")), ticks


def _check(rows, config):
  from pyspark.sql import functions as F
  names = [name for name in rows.columns if name not in POSITION]
  if rows.isEmpty():
    raise errors.UserError(f"{config['interactions']}: is empty (no rows)")
  bad = {name: F.col(name).isNull() | (F.col(name).cast("string") == "") for name in names}
  if "rating" in names:
    low, high = config["rating_range"] or (-np.finfo("f").max, np.finfo("f").max)
    bad["rating"] = bad["rating"] | ~F.col("rating").between(float(low), float(high))
  for name, row in ((name, rows.where(test).head()) for name, test in bad.items()):
    if row is not None:
      raise errors.UserError(f"{config['interactions']}: the {name} of a row is empty or out of "
                             f"range (user {row.user!r}, item {row.item!r})")


def _ids(rows, role):
  """Returns the distinct ids of a column, in the order of their numbers."""
  ids = rows.select(role).distinct().toArrow().column(role).to_pylist()
  for text in ids:
    metadata.check_id(text, role)
  return sorted(ids, key=metadata.order)


def _first_seen(rows, items):
  """Returns int32 [N + 1]: the rank of each item by its first row."""
  from pyspark.sql import functions as F
  first = rows.groupBy("item").agg(F.min(F.struct(*POSITION)).alias("at"))
  found = first.select("item", "at.*").toArrow()
  number = {item: n for n, item in enumerate(items, 1)}
  order = np.lexsort([found.column(name).to_numpy() for name in reversed(POSITION)])
  rank = np.zeros(len(items) + 1, np.int32)
  rank[[number[item] for item in found.column("item").take(order).to_pylist()]] = (
    np.arange(1, len(items) + 1))
  return rank


def _digest(rows):
  """Returns text that tells these interactions from others, in whatever order and files."""
  from pyspark.sql import functions as F
  names = [name for name in rows.columns if name not in POSITION]
  mark, count = rows.agg(F.bit_xor(F.xxhash64(*names)), F.count("*")).head()
  return f"{mark % 2**64:016x}:{count}"


def _join(rows, role, ids):
  """Returns `rows` with ids replaced by their numbers, 1 and up."""
  numbers = rows.sparkSession.createDataFrame(
    pa.table({role: ids, "number": np.arange(1, len(ids) + 1, dtype=np.int32)}))
  return rows.join(numbers, role).drop(role).withColumnRenamed("number", role)


def _counts(rows, role, size):
  """Returns int64 [size + 1]: rows of each number."""
  found = rows.groupBy(role).count().toArrow()
  counts = np.zeros(size + 1, np.int64)
  counts[found.column(role).to_numpy()] = found.column("count").to_numpy()
  return counts


def _write(spark, rows, draft, table, rule, shared, about, count, ticks):
  """Writes one data set into the new folder `draft`; returns its manifest, None if it is empty."""
  num_items = len(table.items)
  in_domain = _counts(rows, "item", num_items) >= max(1, rule.min_item_interactions)
  if rule.min_item_interactions > 1:
    offered = pa.table({"item": np.flatnonzero(in_domain).astype(np.int32)})
    rows = rows.join(spark.createDataFrame(offered), "item", "left_semi")
  counts = _counts(rows, "user", len(table.users))
  kept = splits.kept_lengths(counts, rule)
  if not kept.any():
    return None
  (draft / shards_lib.FOLDER).mkdir(parents=True)
  offsets = np.concatenate([[0], np.cumsum(kept)])
  cuts = shards_lib.cuts(offsets, count)
  # What a task reads of its own users; most of it is overwritten with the same by `finish`.
  for stem, array in (("user_ids", shared[0]["user_ids"]), ("offsets", offsets),
                      ("splits", splits.ranges(kept, rule))):
    np.save(draft / f"{stem}.npy", array, allow_pickle=False)
  owner = pa.table({"user": np.arange(1, len(kept), dtype=np.int32),
                    "shard": np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))})
  task = Task(draft, cuts, num_items, ticks, rule.order == "file")
  found = rows.join(spark.createDataFrame(owner), "user").groupBy("shard").applyInArrow(
    lambda key, table: task(key[0].as_py(), table), schema=RESULT)
  total = np.zeros((4, num_items + 1), np.int64)
  for result in found.toLocalIterator():
    if result.problem:
      user, item = map(int, result.problem.split())
      raise errors.UserError(f"a row occurs twice: user {table.users[user - 1]!r}, item "
                             f"{table.items[item - 1]!r}, with the same time")
    total += np.frombuffer(zlib.decompress(result.counts), np.int64).reshape(total.shape)
  columns = ["items", "times", *(["ratings"] if "rating" in rows.columns else [])]
  names = [shards_lib.file_name(shard, len(cuts) - 1) for shard in range(len(cuts) - 1)]
  files = [shards_lib.entry(name, first, last, offsets)
           for name, first, last in zip(names, cuts[:-1], cuts[1:], strict=True)]
  about = about | {"shards": {"columns": columns, "files": files}}
  fields = sequences.sharded(draft, about["shards"], offsets) | {"counts": total[:3]}
  return prepare.finish(draft, table, rule, shared, about, fields, in_domain=in_domain, kept=kept,
                        seen=total[3] > 0)


@dataclasses.dataclass(frozen=True)
class Task:
  """Sorts the rows of one shard and writes its file."""
  draft: pathlib.Path
  cuts: list
  num_items: int
  ticks: int
  in_file_order: bool

  def __call__(self, shard, table):
    """Returns a row of RESULT: item counts of train, val, test and all kept rows, compressed."""
    first, last = self.cuts[shard:shard + 2]
    read = lambda stem: np.load(self.draft / f"{stem}.npy", mmap_mode="r")
    offsets, ranges = read("offsets")[first:last + 1], read("splits")[first:last]
    ids = [text.decode() for text in read("user_ids")[first:last]]
    keys = (*POSITION[::-1], *(() if self.in_file_order else ("ticks",)), "user")
    kept = {*keys, "ticks", "item", "rating"} & {*table.column_names}
    rows = {name: table.column(name).to_numpy() for name in kept}
    order = np.lexsort([rows[name] for name in keys])
    rows = {name: values[order] for name, values in rows.items()}
    if problem := _repeated(rows):
      return _result(shard, problem)
    # The latest of each user's rows, as many as are kept.
    later = np.searchsorted(rows["user"], rows["user"], side="right") - np.arange(len(order))
    latest = later <= np.diff(offsets)[rows["user"] - first]
    items = rows["item"][latest]
    values = {"items": items, "times": rows["ticks"][latest] // self.ticks}
    if "rating" in rows:
      values["ratings"] = rows["rating"][latest].astype(np.float32)
    table = shards_lib.piece(first, ids, offsets, ranges, values)
    path = self.draft / shards_lib.FOLDER / shards_lib.file_name(shard, len(self.cuts) - 1)
    draft = path.with_name(f".{uuid.uuid4().hex}")  # A task may run twice.
    with shards_lib.create(draft, table.schema) as out:
      out.write_table(table)
    os.replace(draft, path)
    counts = shards_lib.count_items(offsets, ranges, items, self.num_items)
    counts = np.concatenate([counts, np.bincount(items, minlength=self.num_items + 1)[None]])
    return _result(shard, "", zlib.compress(counts.astype(np.int64).tobytes(), 1))


def _result(shard, problem, counts=b""):
  return pa.table({"shard": pa.array([shard], pa.int32()), "problem": [problem],
                   "counts": pa.array([counts], pa.binary())})


def _repeated(rows):
  """Returns "USER ITEM" of a user who has an item twice at one time, or ""."""
  order = np.lexsort([rows[name] for name in ("ticks", "item", "user")])
  same = np.ones(max(len(order) - 1, 0), bool)
  for name in ("ticks", "item", "user"):
    same &= np.diff(rows[name][order]) == 0
  return f"{rows['user'][order][:-1][same][0]} {rows['item'][order][:-1][same][0]}" \
    if same.any() else ""


def session(master=None):
  """Returns a SparkSession whose Python workers find recjax; UserError where Spark is missing."""
  try:
    from pyspark.sql import SparkSession
  except ImportError as error:
    raise errors.UserError('Spark is not installed; pip install "pyspark>=4.0" (and Java 17 or '
                           "newer)") from error
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
  os.environ["PYTHONPATH"] = path
  os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
  builder = SparkSession.builder.appName("recjax.prepare")
  builder = builder.config("spark.executorEnv.PYTHONPATH", path).config(
    "spark.sql.execution.arrow.pyspark.enabled", "true").config(
    "spark.sql.session.timeZone", "UTC").config("spark.ui.showConsoleProgress", "false")
  return (builder.master(master) if master else builder).getOrCreate()


def main(argv):
  del argv
  cli.require(FLAGS, "config", "raw_dir", "data_dir")
  run(FLAGS.config, raw_dir=FLAGS.raw_dir, data_dir=FLAGS.data_dir, spark=session(FLAGS.master))


if __name__ == "__main__":
  cli.define_config("config")
  flags.DEFINE_string("raw_dir", None, "Folder of the raw data, seen by all machines.")
  flags.DEFINE_string("data_dir", None, "Folder of the data sets, seen by all machines.")
  flags.DEFINE_string("master", None, "Of Spark, such as local[4]; None: as spark-submit says.")
  cli.run(main)
