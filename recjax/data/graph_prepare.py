"""Raw triples or edges in, a prepared graph out: number the ids, split, write, check.

Text files with one triple a line, plain or .gz. A file without a relation column holds edges of one
relation. Triples come in the order of the files; one that is there already is left out and counted.
Nothing that stood in `data_dir` is replaced before the new data set has the expected counts.
"""

import hashlib
import pathlib

import numpy as np

from recjax import errors
from recjax.data import graphs, metadata, prepare, readers, sequences, sources

ROLES = ("head", "relation", "tail")
MAX_LINE = 1 << 16  # bytes


def prepare_graph(config, *, raw_dir, data_dir, log=print):
  """Writes the data set of a `configs/data` config of format "triples"; returns {name: manifest}.

  Raises `UserError` for raw data with a mistake, or counts that the config does not expect.
  """
  config = config.to_dict()
  if not raw_dir:
    raise errors.UserError("--raw_dir is required: the folder with the raw data")
  raw_dir, data_dir = pathlib.Path(raw_dir), pathlib.Path(data_dir)
  parts, digest = _read_splits(config, raw_dir)
  graph = _build(config, parts, digest, _read_items(config, raw_dir))
  name = config["name"]
  with prepare.scratch_folder(data_dir) as scratch:
    prepare.check_folders(data_dir, [name])
    (scratch / name).mkdir()
    manifest = graphs.write(scratch / name, graph)
    if config["check"]:
      prepare.check_counts({name: manifest}, {name: config["expect"]}, [])
    sequences.replace_folder(scratch / name, data_dir / name)
  for key in ("entities", "relations", "train", "val", "test", "repeated", "items"):
    log(f"{name}: {key} {manifest[key]:,}")
  for note in config["notes"]:
    log(f"note: {note}")
  return {name: manifest}


def _read_splits(config, raw_dir):
  """Returns ({split: [(head, relation, tail) bytes]}, sha256 of all files)."""
  digest, parts = hashlib.sha256(), {}
  for split in sequences.SPLITS:
    if name := config["files"].get(split):
      raw = readers.file(sources.required(raw_dir, name, "files"))
      rows = read_rows(raw, columns=config["columns"], separator=config["separator"],
                       skip=config["skip"], digest=digest)
      given = config["relation"].encode()
      parts[split] = [(row["head"], row.get("relation", given), row["tail"]) for row in rows]
  if "train" not in parts:
    raise errors.UserError("config.files names no file for the train split")
  return parts, digest.hexdigest()


def read_rows(raw, *, columns, separator, skip=0, digest=None):
  """Returns [{role: bytes}] of a text file, one for each line.

  Args:
    raw: a `readers.Raw`.
    columns: the role of every column; "" is not read.
    separator: between columns.
    skip: lines before the first row.
    digest: updated with all bytes, where given.

  Raises:
    UserError: a line of another number of columns, with an empty or an endless field.
  """
  rows, separator = [], separator.encode()
  with raw.open() as stream:
    for number, line in enumerate(stream, 1):
      if digest is not None:
        digest.update(line)
      if number <= skip:
        continue
      fields = line.rstrip(b"\r\n").split(separator)
      wanted = {role: value for role, value in zip(columns, fields, strict=False) if role}
      if len(fields) != len(columns) or len(line) > MAX_LINE or not all(wanted.values()):
        raise errors.UserError(
          f"{raw.name} line {number}: malformed row, {len(columns)} columns expected, not "
          f"{line[:80].decode(errors='replace').rstrip()!r}")
      rows.append(wanted)
  if not rows:
    raise errors.UserError(f"{raw.name}: is empty (no rows)")
  return rows


def _read_items(config, raw_dir):
  """Returns [(item, entity)] of the file that says which items are entities; [] without one."""
  if not config["items"]["file"]:
    return []
  raw = readers.file(sources.required(raw_dir, config["items"]["file"], "files"))
  rows = read_rows(raw, columns=config["items"]["columns"], separator=config["separator"])
  return [(row["item"], row["entity"]) for row in rows]


def _build(config, parts, digest, items):
  """Returns the `graphs.Graph` of {split: triples of external ids}."""
  names = {split: np.array(rows, dtype=bytes) for split, rows in parts.items()}
  merged = np.concatenate(list(names.values()))
  entities = np.unique(merged[:, [0, 2]])
  relations = np.unique(merged[:, 1])
  if (widest := max(entities.itemsize, relations.itemsize)) > metadata.MAX_ID_BYTES:
    raise errors.UserError(f"an id has {widest} bytes (limit {metadata.MAX_ID_BYTES}); are "
                           "--config.columns right?")
  numbers = {split: np.stack([np.searchsorted(ids, rows[:, column]) for column, ids in enumerate(
    (entities, relations, entities))], axis=1) for split, rows in names.items()}
  numbers, repeated = _distinct(numbers, config["symmetric"])
  numbers = _hold_out(numbers, symmetric=config["symmetric"], **config["hold_out"])
  counts = [len(numbers[split]) for split in sequences.SPLITS]
  linked = _link(items, entities)
  manifest = {
    "name": config["name"], "title": config["title"], "generated": config["generated"],
    "raw_sha256": digest, "symmetric": config["symmetric"], "entities": len(entities),
    "relations": len(relations), "triples": sum(counts), **dict(zip(sequences.SPLITS, counts,
                                                                   strict=True)),
    "repeated": repeated, "items": len(linked[0]), "split": config["hold_out"]}
  return graphs.Graph(
    manifest, entities, relations,
    np.concatenate([numbers[split] for split in sequences.SPLITS]).astype(np.int32),
    np.concatenate([[0], np.cumsum(counts)]), *linked)


def _distinct(numbers, symmetric):
  """Returns ({split: int [m, 3]}, how many were left out): every triple once, in its first split.

  Of a symmetric graph the direction with the smaller head stands for both.
  """
  order, kept = list(numbers), {}
  rows = np.concatenate([numbers[split] for split in order])
  split = np.repeat(np.arange(len(order)), [len(numbers[name]) for name in order])
  if symmetric:
    rows = np.where(rows[:, :1] <= rows[:, 2:], rows, rows[:, ::-1])
  _, first = np.unique(rows, axis=0, return_index=True)
  first = np.sort(first)
  for place, name in enumerate(order):
    kept[name] = rows[first[split[first] == place]]
  return kept, len(rows) - len(first)


def _hold_out(numbers, *, val, test, seed, symmetric):
  """Returns {split: int [m, 3]}, random shares of train held out where there are no files of them.

  A triple stays in train if it is the last there of its head, its tail or its relation: what was
  never trained has nothing to predict with.
  """
  empty = np.zeros((0, 3), np.int64)
  train, rest = numbers["train"], {}
  shares = {name: share for name, share in (("val", val), ("test", test)) if name not in numbers}
  if not 0 <= val + test < 1:
    raise errors.UserError(f"config.hold_out: val={val} and test={test} are no shares of train")
  entities = np.bincount(train[:, [0, 2]].ravel())
  relations, kept = np.bincount(train[:, 1]), np.ones(len(train), bool)
  order = iter(np.random.default_rng(seed).permutation(len(train)).tolist())
  for name, share in shares.items():
    wanted, taken = int(round(share * len(train))), []
    while len(taken) < wanted and (row := next(order, None)) is not None:
      head, relation, tail = train[row]
      if min(entities[head], entities[tail], relations[relation]) > 1:
        entities[head] -= 1
        entities[tail] -= 1
        relations[relation] -= 1
        taken.append(row)
    kept[taken] = False
    rest[name] = train[np.sort(np.array(taken, np.int64))]
  train = train[kept]
  if symmetric:
    train = np.concatenate([train, train[train[:, 0] != train[:, 2]][:, ::-1]])
  return {"val": numbers.get("val", rest.get("val", empty)),
          "test": numbers.get("test", rest.get("test", empty)), "train": train}


def _link(items, entities):
  """Returns (item ids bytes [K], int32 [K] their entities) of items that are in the graph."""
  if not items:
    return np.zeros(0, "S1"), np.zeros(0, np.int32)
  names, of = np.array(items, dtype=bytes).T
  if len(np.unique(names)) < len(names):
    raise errors.UserError("config.items: an item is listed twice")
  place = np.minimum(np.searchsorted(entities, of), len(entities) - 1)
  there = entities[place] == of
  return names[there], place[there].astype(np.int32)
