"""Prepared data: ragged interaction sequences in packed, memory-mapped arrays.

A data set is a folder of `.npy` arrays beside `manifest.json`. With U users, N items and R
interactions (both vocabularies start at 1; 0 is padding and belongs to nobody):

    user_ids.npy   bytes  [U + 1]        external user ids, row 0 empty
    item_ids.npy   bytes  [N + 1]        external item ids, row 0 empty
    in_domain.npy  bool   [N + 1]        items of this data set's domain; others can be negatives
    offsets.npy    int64  [U + 2]        user u owns rows offsets[u]:offsets[u + 1], user 0 none
    items.npy      int32  [R]            in (user, time, file row) order, or (user, file row) where
                                         the split rule says so
    times.npy      int64  [R]            seconds
    ratings.npy    float32 [R]           optional
    baskets.npy    int32  [R]            optional; rows of a user that lie together and have the
                                         same number are a basket. Without it, those of equal times
    splits.npy     int32  [U + 1, 3, 2]  [begin, end) of train, val and test, relative to offsets[u]
    item_first_seen.npy  int32 [N + 1]   optional; the rank (1..N) of each item by its first
                                         appearance in the raw file
    feature_NAME.npy      int32 [N + 1, S]  attribute ids of each item, 0 = no further value
    feature_NAME_ids.npy  bytes [K + 1]     external attribute ids, row 0 empty
    item_titles.npy       bytes [N + 1]     optional; UTF-8, as is
    text_NAME.npy         bytes [N + 1]     further texts of items, empty where there is none
    item_counts.npy  int64 [3, N + 1]    with shards only: how often each item occurs in each split
    user_NAME.npy         int32 [U + 1]  optional; an attribute (label) of each user, 0 = unknown
    user_NAME_ids.npy     bytes [L + 1]  external labels, row 0 empty

Users too short to be split keep their rows and own three empty ranges. Where the manifest lists
"shards", items, times and ratings are in Parquet files that are read on demand (see `shards`).
"""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np

from recjax import errors
from recjax.data import baskets as baskets_lib
from recjax.data import shards as shards_lib

VERSION = 1
KIND = "sequences"  # what a manifest that names no kind is of
SPLITS = ("train", "val", "test")
PARTS = (*SPLITS, "targets")  # the last with a history alone, see `histories`
IDENTITY = ("name", "version", "raw_sha256", "interactions", "split")  # manifest keys
# What a run's config made of it, likewise.
AT_RUN_TIME = ("held_out_items", "held_out_users", "feature_files", "graphs")
ARRAYS = ("user_ids", "item_ids", "in_domain", "offsets", "items", "times", "splits")


@dataclasses.dataclass(frozen=True)
class Feature:
  """One categorical attribute of items: `values` [N + 1, S] into `ids` [K + 1]; 0 is no value.

  Or one of users, with `values` [U + 1].
  """
  values: np.ndarray
  ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The arrays of one prepared data set; see the module's docstring for their shapes."""
  manifest: dict
  user_ids: np.ndarray
  item_ids: np.ndarray
  in_domain: np.ndarray
  offsets: np.ndarray
  items: np.ndarray
  times: np.ndarray
  splits: np.ndarray
  ratings: np.ndarray | None = None
  baskets: np.ndarray | None = None
  features: dict = dataclasses.field(default_factory=dict)
  texts: dict = dataclasses.field(default_factory=dict)  # {"title" and others: bytes [N + 1]}
  held_out: np.ndarray | None = None  # bool [N + 1]: items kept from training, see `held_out`
  held_out_users: np.ndarray | None = None  # bool [U + 1], likewise
  first_seen: np.ndarray | None = None
  counts: np.ndarray | None = None  # int64 [3, N + 1]: of `item_counts`, where known beforehand
  profiles: dict = dataclasses.field(default_factory=dict)  # {attribute: Feature of users}
  kind = KIND

  @property
  def shards(self):
    """Returns the `shards.Shards` that hold the rows, or None: then they are plain arrays."""
    return getattr(self.items, "shards", None)

  @property
  def withholds(self):
    """Returns whether users own what no split has, since items or users are held out."""
    return self.held_out is not None or self.held_out_users is not None

  @property
  def name(self):
    return self.manifest["name"]

  @property
  def num_users(self):
    """Returns U: users are numbered 1..U."""
    return len(self.user_ids) - 1

  @property
  def num_items(self):
    """Returns N: items are numbered 1..N, those of other domains included."""
    return len(self.item_ids) - 1

  def identity(self):
    """Returns what tells this data set from another of the same name, as a JSON-able dict."""
    return {key: self.manifest.get(key) for key in IDENTITY} | {
      key: self.manifest[key] for key in AT_RUN_TIME if key in self.manifest}

  @property
  def parts(self):
    """Returns the names that `span` knows."""
    return PARTS[:self.splits.shape[1]]

  def span(self, split):
    """Returns (begin, end) int64 [U + 1]: the absolute rows of every user in `split`."""
    part = self.splits[:, PARTS.index(split)].astype(np.int64)
    start = np.asarray(self.offsets[:-1])
    return start + part[:, 0], start + part[:, 1]

  def lengths(self, split):
    """Returns int64 [U + 1]: how many interactions every user has in `split`."""
    begin, end = self.span(split)
    return end - begin

  def basket_numbers(self):
    """Returns int32 [R]: the basket of every row, numbered 1, 2, ... within its user."""
    if self.shards is not None:
      raise errors.UserError(f"data set {self.name!r} is sharded, and shards do not keep baskets; "
                             "prepare it with --config.shards=0")
    marks = self.times if self.baskets is None else self.baskets
    return baskets_lib.Baskets(marks, self.offsets).numbers

  def users_in(self, split):
    """Returns the ids of the users who own at least one interaction in `split`."""
    return np.flatnonzero(self.lengths(split)).astype(np.int32)

  def item_counts(self, split="train"):
    """Returns int64 [N + 1]: how often each item occurs in `split`."""
    if self.counts is not None:
      return np.array(self.counts[SPLITS.index(split)])
    begin, end = self.span(split)
    counts = np.zeros(self.num_items + 1, np.int64)
    for low in range(0, len(begin), 1 << 16):  # in blocks: a gather of all rows would double them
      rows = take_ranges(self.items, begin[low:low + (1 << 16)], end[low:low + (1 << 16)])
      counts += np.bincount(rows, minlength=self.num_items + 1)
    return counts

  def only(self, users):
    """Returns this data set with the rows of some users in memory, and all others without any.

    Users and items keep their numbers and `item_counts` tells of the whole. There are no times.

    Args:
      users: ascending ids.
    """
    begin, end = np.asarray(self.offsets[:-1])[users], np.asarray(self.offsets[1:])[users]
    lengths, splits = np.zeros(self.num_users + 1, np.int64), np.zeros_like(self.splits)
    lengths[users], splits[users] = end - begin, self.splits[users]
    take = lambda values: values if values is None else take_ranges(values, begin, end)
    counts = np.stack([self.item_counts(split) for split in SPLITS])
    return dataclasses.replace(
      self, offsets=np.concatenate([[0], np.cumsum(lengths)]), splits=splits, counts=counts,
      items=take(self.items), ratings=take(self.ratings), times=None)


def take_ranges(values, begin, end):
  """Returns values[begin[0]:end[0]], values[begin[1]:end[1]], ... in one flat array."""
  begin, lengths = np.asarray(begin, np.int64), np.asarray(end - begin, np.int64)
  first = np.cumsum(lengths) - lengths
  rows = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(begin - first, lengths)
  return np.asarray(values[rows])


def pad(values, begin, end, *, width, align):
  """Returns values[begin[i]:end[i]] as row i of an [n, width] array, zero-padded.

  Longer ranges keep their last `width` values. `align` is "left" (values first) or "right" (values
  last, so that the last column is the most recent one).
  """
  begin = np.maximum(begin, end - width)
  lengths = end - begin
  column = np.arange(width)
  if align == "right":
    keep = column[None] >= width - lengths[:, None]
  else:
    keep = column[None] < lengths[:, None]
  out = np.zeros((len(begin), width), values.dtype)
  out[keep] = take_ranges(values, begin, end)
  return out


def read_manifest(data_dir, name):
  """Returns the manifest of a data set of any kind; a missing or foreign one is a UserError."""
  path = pathlib.Path(data_dir) / name / "manifest.json"
  if not path.is_file():
    found = sorted(p.parent.name for p in pathlib.Path(data_dir).glob("*/manifest.json"))
    raise errors.UserError(
      f"no prepared data set {name!r} in {os.fspath(data_dir)!r} (found: "
      f"{', '.join(found) or 'none'}); run python -m recjax.prepare, or set --config.data_dir")
  try:
    manifest = json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(f"{path}: not JSON ({error}); prepare the data again") from error
  if manifest.get("version") != VERSION:
    raise errors.UserError(f"{path}: version {manifest.get('version')} was written by another "
                           f"recjax (this one reads {VERSION}); prepare the data again")
  return manifest


def load(data_dir, name):
  """Returns the `Dataset` that `recjax.prepare` left in `data_dir/name`, memory-mapped."""
  folder = pathlib.Path(data_dir) / name
  manifest = read_manifest(data_dir, name)
  read = lambda stem: read_array(folder / f"{stem}.npy")
  there = lambda stem: read(stem) if (folder / f"{stem}.npy").is_file() else None
  if "shards" in manifest:
    arrays = {stem: read(stem) for stem in ARRAYS if stem not in shards_lib.VALUES}
    arrays |= sharded(folder, manifest["shards"], arrays["offsets"])
    arrays["counts"] = read("item_counts")
  else:
    arrays = {stem: read(stem) for stem in ARRAYS}
    arrays |= {stem: there(stem) for stem in ("ratings", "baskets")}
  features = {field: Feature(read(f"feature_{field}"), read(f"feature_{field}_ids"))
              for field in manifest.get("features", ())}
  profiles = {name: Feature(read(f"user_{name}"), read(f"user_{name}_ids"))
              for name in manifest.get("profiles", ())}
  texts = {name: read(f"text_{name}") for name in manifest.get("texts", ())}
  if (titles := there("item_titles")) is not None:
    texts = {"title": titles, **texts}
  data = Dataset(manifest=manifest, features=features, texts=texts, profiles=profiles,
                 first_seen=there("item_first_seen"), **arrays)
  _check_shapes(data, folder)
  return data


def sharded(folder, listed, offsets):
  """Returns {stem: shards.Rows} of the columns in a folder's shards.

  Args:
    folder: of the data set.
    listed: the manifest's "shards": {"columns": stems, "files": see `shards.Shards`}.
    offsets: int64 [U + 2].
  """
  files = shards_lib.Shards(folder, listed["files"], offsets)
  return {name: shards_lib.Rows(files, name) for name in listed["columns"]}


def save(folder, data, *, extras=None):
  """Writes `data` to `folder` under a temporary name, then renames it there.

  An older data set of that name is replaced only once the new one is complete. `extras` as in
  `write`.
  """
  folder = pathlib.Path(folder)
  draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
  draft.mkdir(parents=True)
  write(draft, data, extras=extras)
  replace_folder(draft, folder)


def write(draft, data, *, extras=None):
  """Writes the arrays and the manifest of `data` into the existing folder `draft`.

  Shards and an array that is the memory map of its own file in `draft` are there already: rows that
  do not fit in memory are streamed to their files first.

  Args:
    draft: a folder of its own; see `replace_folder`.
    data: a `Dataset`.
    extras: {stem: array} of further arrays to keep beside those of the format (`item_titles`).

  Returns the manifest as written.
  """
  arrays = {stem: getattr(data, stem) for stem in ARRAYS}
  if data.ratings is not None:
    arrays["ratings"] = data.ratings
  if data.baskets is not None:
    arrays["baskets"] = data.baskets
  if data.first_seen is not None:
    arrays["item_first_seen"] = data.first_seen
  if data.counts is not None:
    arrays["item_counts"] = data.counts
  for field, feature in data.features.items():
    arrays[f"feature_{field}"], arrays[f"feature_{field}_ids"] = feature.values, feature.ids
  for name, profile in data.profiles.items():
    arrays[f"user_{name}"], arrays[f"user_{name}_ids"] = profile.values, profile.ids
  texts = {name: text for name, text in data.texts.items() if name != "title"}
  arrays |= {f"text_{name}": text for name, text in texts.items()}
  if "title" in data.texts:
    arrays["item_titles"] = data.texts["title"]
  for stem, array in {**arrays, **(extras or {})}.items():
    path = draft / f"{stem}.npy"
    mapped = isinstance(array, np.memmap) and pathlib.Path(array.filename) == path.resolve()
    if not mapped and not isinstance(array, shards_lib.Rows):
      np.save(path, array, allow_pickle=False)
  manifest = dict(data.manifest, version=VERSION, features=sorted(data.features),
                  **({"texts": sorted(texts)} if texts else {}),
                  **({"profiles": sorted(data.profiles)} if data.profiles else {}))
  (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  return manifest


def replace_folder(draft, folder):
  """Renames `draft` to `folder`; what stood there before is removed last."""
  old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
  if folder.exists():
    os.rename(folder, old)
  os.rename(draft, folder)
  shutil.rmtree(old, ignore_errors=True)


def read_array(path):
  """Returns the memory map of an `.npy` file; a damaged one is a UserError."""
  try:
    return np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise errors.UserError(f"{path}: cannot be read ({error}); prepare the data again") from error


def _check_shapes(data, folder):
  users, rows, items = data.num_users, len(data.items), data.num_items
  right = (data.offsets.shape == (users + 2,) and data.splits.shape == (users + 1, 3, 2)
           and data.times.shape == (rows,) and data.in_domain.shape == (items + 1,)
           and int(data.offsets[-1]) == rows
           and (data.ratings is None or data.ratings.shape == (rows,))
           and (data.baskets is None or data.baskets.shape == (rows,))
           and (data.first_seen is None or data.first_seen.shape == (items + 1,))
           and (data.counts is None or data.counts.shape == (3, items + 1))
           and all(f.values.shape[0] == items + 1 for f in data.features.values())
           and all(p.values.shape == (users + 1,) for p in data.profiles.values())
           and all(text.shape == (items + 1,) for text in data.texts.values()))
  if not right:
    raise errors.UserError(f"{folder}: the arrays do not fit together; prepare the data again")
