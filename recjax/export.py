"""Writes vectors that a run learned as a feature table keyed by external id.

    python -m recjax.export --workdir=RUN --output=FILE.npz
    python -m recjax.export --workdir=RUN --items --output=FILE.parquet
    python -m recjax.export --workdir=RUN --leaves=first/embedding,second/embedding --normalize \\
      --output=FILE.npz

The first keys the vectors of a graph's entities (or the nodes of a social graph: users) by their
own ids, the second those entities that are items by the items' ids. Several leaves are put side by
side; with --normalize each row of each has a norm of 1 (LINE's two orders). Rows that the run's
data never trained are left out.

An `.npz` holds `ids` (bytes [n]) and `vectors` (float32 [n, D]), a `.parquet` the columns `id`
(string) and `vector` (D floats).
"""

import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from absl import flags

from recjax import checkpoint, cli, errors
from recjax.data import kinds

FLAGS = flags.FLAGS


def vectors(workdir, leaves=("entity/embedding",), *, vocabulary="entity", step=None, items=False,
            data_dir=None, normalize=False):
  """Returns (ids bytes [n], vectors float32 [n, D]) of the best checkpoint, or of `step`.

  Args:
    workdir: the run's folder.
    leaves: names of row tables [rows, d], put side by side.
    vocabulary: whose names their rows carry.
    step: another checkpoint.
    items: key those rows that are items of the run's graph by the items' ids.
    data_dir: where the prepared data are, if not where the run found them.
    normalize: scale each row of each leaf to a norm of 1.
  """
  reader = checkpoint.Reader(workdir, step)
  rows = errors.choose(reader.rows(), vocabulary, f"{workdir}: vocabulary")
  shapes = reader.shapes()
  for leaf in leaves:
    if errors.choose(shapes, leaf, f"{workdir}: leaf").shape[:1] != rows.names.shape:
      raise errors.UserError(f"{leaf} is {tuple(shapes[leaf].shape)}; it has no row for each of "
                             f"the {len(rows.names)} names of {vocabulary!r}")
  read = reader.params(list(leaves))
  parts = [np.asarray(read[leaf], np.float32).reshape(len(rows.names), -1) for leaf in leaves]
  if normalize:
    parts = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in parts]
  table, names, trained = np.concatenate(parts, axis=1), rows.names, rows.trained
  if not items:
    return names[trained], table[trained]
  config = reader.config
  graph = kinds.load(data_dir or config["data_dir"], config["dataset"])
  if not len(getattr(graph, "item_ids", ())):
    raise errors.UserError(f"data set {graph.name!r} does not say which of its entities are items; "
                           "see `items` in configs/data/ml1m_kg.py")
  if not np.array_equal(graph.entity_ids, names):
    raise errors.UserError(f"{workdir}: its entities are not those of data set {graph.name!r} now; "
                           "was it prepared anew?")
  known = trained[graph.item_entities]
  return np.asarray(graph.item_ids)[known], table[np.asarray(graph.item_entities)[known]]


def write(path, ids, table):
  """Writes ids [n] and vectors [n, D] to an `.npz` or `.parquet` file, whole or not at all."""
  path = pathlib.Path(path)
  if path.suffix not in (".npz", ".parquet"):
    raise errors.UserError(f"--output={path} must end in .npz or .parquet")
  draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
      np.savez_compressed(draft, allow_pickle=False, ids=ids, vectors=table)
    else:
      column = pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), table.shape[1])
      pa_parquet.write_table(pa.table({"id": pa.array([i.decode() for i in ids]),
                                       "vector": column}), draft)
    os.replace(draft, path)
  except OSError as error:
    raise errors.UserError(f"--output={path}: cannot be written ({error.strerror})") from error


def main(argv):
  del argv
  cli.require(FLAGS, "workdir", "output")
  ids, table = vectors(FLAGS.workdir, tuple(FLAGS.leaves), vocabulary=FLAGS.vocabulary,
                       step=FLAGS.step, items=FLAGS.items, data_dir=FLAGS.data_dir,
                       normalize=FLAGS.normalize)
  write(FLAGS.output, ids, table)
  print(f"{FLAGS.output}: {len(ids):,} rows of {table.shape[1]}")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of a training run.")
  flags.DEFINE_string("output", None, "FILE.npz or FILE.parquet.")
  flags.DEFINE_list("leaves", ["entity/embedding"], "Row tables of the run, side by side.")
  flags.DEFINE_string("vocabulary", "entity", "Whose names the rows carry.")
  flags.DEFINE_bool("items", False, "Key entities that are items by the items' ids.")
  flags.DEFINE_bool("normalize", False, "Scale the rows of each table to a norm of 1.")
  flags.DEFINE_integer("step", None, "Checkpoint; by default the best on validation.")
  flags.DEFINE_string("data_dir", None, "Where the prepared data are now, if not where they were.")
  cli.run(main)
