"""Prepared data: packed ranges against plain loops, and what is written comes back."""

import dataclasses
import json

import evaluator_data
import numpy as np
import pytest

from recjax import errors
from recjax.data import sequences


def _dataset():
  data = evaluator_data.dataset(
    [([1, 2, 2], [3], [4, 5]), ([], [], []), ([6], [], [1]), (list(range(1, 8)), [1], [2])], 7)
  features = {"genre": sequences.Feature(
    np.arange(16, dtype=np.int32).reshape(8, 2) % 4, np.array([b"", b"x", b"y", b"z"]))}
  return dataclasses.replace(data, ratings=np.ones(len(data.items), np.float32), features=features)


def _users(data, split):
  begin, end = data.span(split)
  return [data.items[b:e].tolist() for b, e in zip(begin, end, strict=True)]


def test_spans_are_the_users_own_rows():
  data = _dataset()
  assert _users(data, "train") == [[], [1, 2, 2], [], [6], [1, 2, 3, 4, 5, 6, 7]]
  assert _users(data, "val") == [[], [3], [], [], [1]]
  assert _users(data, "test") == [[], [4, 5], [], [1], [2]]
  assert data.lengths("train").tolist() == [0, 3, 0, 1, 7]
  assert data.users_in("val").tolist() == [1, 4] and data.users_in("val").dtype == np.int32
  assert (data.num_users, data.num_items, data.name) == (4, 7, "small")


@pytest.mark.parametrize("split", sequences.SPLITS)
def test_item_counts(split):
  data = _dataset()
  counts = data.item_counts(split)
  flat = sum(_users(data, split), [])
  assert counts.tolist() == [flat.count(item) for item in range(8)]


def test_item_counts_of_more_users_than_a_block(monkeypatch):
  rng = np.random.default_rng(0)
  users = (1 << 16) + 1000
  lengths = rng.integers(0, 4, users + 1)
  lengths[0] = 0
  items = rng.integers(1, 6, lengths.sum()).astype(np.int32)
  splits = np.zeros((users + 1, 3, 2), np.int32)
  splits[:, 0, 1] = lengths
  data = sequences.Dataset(
    manifest={"name": "many"}, user_ids=np.zeros(users + 1, "S1"), item_ids=np.zeros(6, "S1"),
    in_domain=np.ones(6, bool), offsets=np.concatenate([[0], np.cumsum(lengths)]), items=items,
    times=np.zeros(len(items)), splits=splits)
  assert data.item_counts().tolist() == np.bincount(items, minlength=6).tolist()


def test_take_ranges_and_pad_equal_loops():
  rng = np.random.default_rng(1)
  values = rng.integers(1, 100, 50).astype(np.int32)
  for _ in range(50):
    n = rng.integers(0, 6)
    begin = rng.integers(0, 50, n)
    end = begin + rng.integers(0, 51 - begin) if n else begin
    want = [values[b:e] for b, e in zip(begin, end, strict=True)]
    np.testing.assert_array_equal(sequences.take_ranges(values, begin, end),
                                  np.concatenate([values[:0], *want]))
    width = int(rng.integers(1, 12))
    for align in ("left", "right"):
      out = sequences.pad(values, begin, end, width=width, align=align)
      assert out.shape == (n, width) and out.dtype == values.dtype
      for row, whole in zip(out, want, strict=True):
        kept, blank = whole[-width:], [0] * (width - len(whole))
        assert row.tolist() == ([*kept, *blank] if align == "left" else [*blank, *kept])


def _assert_same(one, two):
  for field in dataclasses.fields(one):
    if field.name not in ("manifest", "features", "profiles", "texts"):
      a, b = getattr(one, field.name), getattr(two, field.name)
      np.testing.assert_array_equal(a, b)
      assert a is None or a.dtype == b.dtype, field.name
  assert set(one.features) == set(two.features)
  assert {name: x.tolist() for name, x in one.texts.items()} == {
    name: x.tolist() for name, x in two.texts.items()}
  for name, feature in one.features.items():
    np.testing.assert_array_equal(feature.values, two.features[name].values)
    np.testing.assert_array_equal(feature.ids, two.features[name].ids)


def test_saved_data_come_back_memory_mapped(tmp_path):
  texts = {"title": np.array([b"a"] * 8), "plot": np.array([b"b c"] * 8)}
  data = dataclasses.replace(_dataset(), texts=texts)
  sequences.save(tmp_path / "small", data, extras={"more": np.zeros(8)})
  back = sequences.load(tmp_path, "small")
  _assert_same(data, back)
  assert isinstance(back.items, np.memmap)
  assert back.manifest["version"] == sequences.VERSION and back.manifest["features"] == ["genre"]
  assert back.manifest["texts"] == ["plot"]
  assert np.load(tmp_path / "small" / "more.npy").shape == (8,)


def test_ratings_are_optional(tmp_path):
  sequences.save(tmp_path / "small", dataclasses.replace(_dataset(), ratings=None, features={}))
  back = sequences.load(tmp_path, "small")
  assert back.ratings is None and back.features == {}


def test_saving_again_replaces_everything(tmp_path):
  sequences.save(tmp_path / "small", _dataset(), extras={"old": np.zeros(1)})
  other = dataclasses.replace(_dataset(), ratings=None)
  sequences.save(tmp_path / "small", other)
  _assert_same(other, sequences.load(tmp_path, "small"))
  assert [p.name for p in tmp_path.iterdir()] == ["small"]  # no draft, nothing old beside it
  assert not (tmp_path / "small" / "old.npy").exists()


def test_saving_data_that_were_loaded_from_the_same_place(tmp_path):
  data = _dataset()
  sequences.save(tmp_path / "small", data)
  sequences.save(tmp_path / "small", sequences.load(tmp_path, "small"))
  _assert_same(data, sequences.load(tmp_path, "small"))


def test_an_unknown_name_lists_the_known(tmp_path):
  sequences.save(tmp_path / "small", _dataset())
  with pytest.raises(errors.UserError, match="'large'.*found: small.*recjax.prepare"):
    sequences.load(tmp_path, "large")
  with pytest.raises(errors.UserError, match="found: none"):
    sequences.load(tmp_path / "nowhere", "small")


def _truncate(folder):
  path = folder / "items.npy"
  path.write_bytes(path.read_bytes()[:-4])


def _shorten(folder):
  np.save(folder / "times.npy", np.zeros(3, np.int64))


def _other_version(folder):
  manifest = json.loads((folder / "manifest.json").read_text())
  (folder / "manifest.json").write_text(json.dumps(dict(manifest, version=0)))


def _objects(folder):
  np.save(folder / "items.npy", np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize("damage,says", [
  (_truncate, "items.npy"), (_shorten, "do not fit"), (_other_version, "version 0"),
  (_objects, "items.npy"),
  (lambda folder: (folder / "splits.npy").unlink(), "splits.npy"),
  (lambda folder: (folder / "feature_genre.npy").unlink(), "feature_genre.npy"),
  (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
])
def test_damage_is_a_user_error_that_names_the_file(tmp_path, damage, says):
  sequences.save(tmp_path / "small", _dataset())
  damage(tmp_path / "small")
  with pytest.raises(errors.UserError, match=says) as error:
    sequences.load(tmp_path, "small")
  assert "prepare the data again" in str(error.value)
