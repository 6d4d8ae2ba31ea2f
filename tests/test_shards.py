"""Shards: the same rows as plain arrays; damage is one line that names the file."""

import dataclasses
import re
import shutil

import evaluator_data
import numpy as np
import pyarrow.parquet as pa_parquet
import pytest
import test_prepare

from recjax import errors
from recjax.data import columns, sequences, shards

VALUES = ("items", "times", "ratings")


def _data():
  data = evaluator_data.random_dataset(num_users=23, seed=4)
  return dataclasses.replace(data, ratings=np.arange(len(data.items), dtype=np.float32))


@pytest.mark.parametrize("bucket_rows", [1, 50, 1 << 20])
@pytest.mark.parametrize("fields", [{}, {"split.keep_last": 9, "split.min_item_interactions": 12}])
def test_prepared_shards_hold_what_arrays_do(tmp_path, monkeypatch, bucket_rows, fields):
  monkeypatch.setattr(columns, "BUCKET_ROWS", bucket_rows)
  test_prepare.write_table(tmp_path, test_prepare.random_rows(0))
  fields = {name.replace(".", "__"): value for name, value in fields.items()}
  plain, _ = test_prepare.make(test_prepare.TABLE, tmp_path, tmp_path / "plain", **fields)
  split, _ = test_prepare.make(test_prepare.TABLE, tmp_path, tmp_path / "split", shards=4, **fields)
  for name, manifest in plain.items():
    listed = split[name].pop("shards")
    assert split[name] == manifest and listed["columns"] == list(VALUES)
    assert sum(entry["interactions"] for entry in listed["files"]) == manifest["interactions"]
    one, two = (sequences.load(tmp_path / kind, name) for kind in ("plain", "split"))
    assert one.shards is None and len(two.shards) == 4
    for stem in (*VALUES, "offsets", "splits", "user_ids", "item_ids", "in_domain", "first_seen"):
      np.testing.assert_array_equal(np.asarray(getattr(one, stem)), np.asarray(getattr(two, stem)))
    for part in sequences.SPLITS:
      np.testing.assert_array_equal(one.item_counts(part), two.item_counts(part))


def test_a_file_is_readable_without_recjax(tmp_path):
  data = _data()
  evaluator_data.shard(data, tmp_path, 3)
  rows = [row for path in sorted((tmp_path / "small" / "rows").iterdir())
          for row in pa_parquet.read_table(path).to_pylist()]
  assert [row["user"] for row in rows] == list(range(1, 24))
  begin, end = data.span("val")
  for row in rows:
    user = row["user"]
    assert row["user_id"].encode() == data.user_ids[user]
    held_out = data.items[begin[user]:end[user]].tolist()
    assert row["items"][row["val_begin"]:row["val_end"]] == held_out
    assert len(row["items"]) == len(row["times"]) == len(row["ratings"])


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_cuts_give_every_shard_rows_and_alike_many(count):
  for lengths in ([0, *[3] * 24], [0, 0, 50, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
                  [0, *[1] * 13, 900, 0, 0]):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    cuts = shards.cuts(offsets, count)
    assert cuts[0] == 1 and cuts[-1] == len(lengths) and len(cuts) <= count + 1
    rows = np.diff(offsets[cuts])
    assert (rows > 0).all() and rows.max() <= offsets[-1] / count + max(lengths)
  assert len(shards.cuts(np.arange(40), count)) == count + 1
  with pytest.raises(errors.UserError, match="config.shards=99: there are 38 users"):
    shards.cuts(np.arange(40), 99)


def test_rows_are_looked_up_like_an_array(tmp_path):
  data = _data()
  items = evaluator_data.shard(data, tmp_path, 4).items
  assert (len(items), items.shape, items.dtype) == (len(data.items), data.items.shape, np.int32)
  rng = np.random.default_rng(0)
  for index in (slice(3, 90), slice(None), rng.integers(0, len(items), (7, 5)), np.array([], int)):
    np.testing.assert_array_equal(items[index], data.items[index])


def test_a_part_has_the_rows_of_its_users_and_the_counts_of_all(tmp_path):
  data = _data()
  users = np.array([2, 3, 11, 23])
  part = evaluator_data.shard(data, tmp_path, 4).only(users)
  assert part.shards is None and part.times is None
  for split in sequences.SPLITS:
    np.testing.assert_array_equal(part.item_counts(split), data.item_counts(split))
    lengths = np.zeros(24, int)
    lengths[users] = data.lengths(split)[users]
    np.testing.assert_array_equal(part.lengths(split), lengths)
    for stem in ("items", "ratings"):
      take = lambda d, s=stem, split=split: sequences.take_ranges(
        getattr(d, s), *(edge[users] for edge in d.span(split)))
      np.testing.assert_array_equal(take(part), take(data))


def _swap(folder):
  one, two = sorted(folder.iterdir())[:2]
  shutil.copy(two, one)


def _flip(folder, column):
  """Flips a bit among the values of a column of the first file."""
  path = min(folder.iterdir())
  group = pa_parquet.ParquetFile(path).metadata.row_group(0)
  chunk = next(group.column(i) for i in range(group.num_columns)
               if group.column(i).path_in_schema.startswith(column))
  data = bytearray(path.read_bytes())
  data[chunk.data_page_offset + chunk.total_compressed_size - 2 - (
    chunk.data_page_offset - (chunk.dictionary_page_offset or chunk.data_page_offset))] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize("damage, says", [
  (lambda folder: min(folder.iterdir()).unlink(), "part-00000-of-00003.parquet: .*missing"),
  (lambda folder: _flip(folder, "items"), "part-00000-of-00003.parquet: .*damaged"),
  (lambda folder: _flip(folder, "ratings"), "part-00000-of-00003.parquet: .*damaged"),
  (lambda folder: min(folder.iterdir()).write_bytes(b"PAR1"), "part-00000-of-00003.*damaged"),
  (_swap, "part-00000-of-00003.parquet: is not the shard of users 1.."),
  (lambda folder: np.save(folder.parent / "offsets.npy", np.arange(25)), "do not fit"),
])
def test_damage_is_one_line_that_names_the_file(tmp_path, damage, says):
  data = evaluator_data.shard(_data(), tmp_path, 3)
  damage(tmp_path / "small" / "rows")
  with pytest.raises(errors.UserError) as error:
    data = sequences.load(tmp_path, "small")
    data.shards.read(0, VALUES)
  assert re.search(says, str(error.value)) and "\n" not in str(error.value)
  assert "prepare the data again" in str(error.value)
