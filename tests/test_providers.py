"""Features by external id: files of vectors, words of texts, values of attributes, and mistakes."""

import dataclasses

import evaluator_data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from recjax import errors
from recjax.data import metadata, providers, sequences, vectors

IDS = ["3", "1", "9"]  # 9 is no item
TABLE = np.array([[3.0, 30.0], [1.0, 10.0], [9.0, 90.0]], np.float32)


def _data(*, items=4, in_domain=(1, 2, 3)):
  data = evaluator_data.dataset([([1, 2], [3], [1])], items, in_domain=in_domain)
  feature = sequences.Feature(np.array([[0, 0], [1, 2], [2, 0], [0, 0], [3, 0]], np.int32),
                              np.array([b"", b"film noir", b"Children's", b"war"]))
  texts = {"title": metadata.title_array({"1": "The Big, big Sleep (1946)", "2": "Sleep"},
                                         ["1", "2", "3", "4"]),
           "plot": metadata.text_array({"1": "the Élan of it", "4": "sleep the war"},
                                       ["1", "2", "3", "4"])}
  return dataclasses.replace(data, features={"genre": feature}, texts=texts)


def _read(name="x", data=None, **options):
  return providers.read(data or _data(), ((name, options),))[name]


def _write(folder, kind, ids=IDS, table=TABLE):
  if kind == "npz":
    np.savez(folder / "v.npz", ids=np.array(ids), vectors=table)
  elif kind == "bytes.npz":
    np.savez(folder / "v.npz", ids=np.array(ids, "S"), vectors=table.astype(np.float64))
  elif kind == "numbers.npz":
    np.savez(folder / "v.npz", ids=np.array(ids, int), vectors=table.astype(np.int64))
  elif kind == "npy":
    np.save(folder / "v.npy", table)
    (folder / "v.txt").write_text("\n".join(ids) + "\n")
  else:
    columns = {f"c{i}": table[:, i] for i in range(table.shape[1])}
    if kind == "lists.parquet":
      columns = {"vector": pa.array([list(map(float, row)) for row in table])}
    pa_parquet.write_table(pa.table({"id": ids, **columns}), folder / "v.parquet")
  return str(folder / f"v.{kind.rpartition('.')[2]}")


@pytest.mark.parametrize("kind", ["npz", "bytes.npz", "numbers.npz", "npy", "lists.parquet",
                                  "columns.parquet"])
def test_vectors_go_to_their_items_whatever_the_file(tmp_path, kind):
  found = _read(kind="given", path=_write(tmp_path, kind))
  assert found.arrays[""].tolist() == [[0, 0], [1, 10], [0, 0], [3, 30], [0, 0]]
  assert found.arrays["/known"].tolist() == [False, True, False, True, False]
  assert found.arrays[""].dtype == np.float32 and found.size == 2 and len(found.digest) == 64


def test_standardizing_goes_by_the_file_and_nan_is_missing(tmp_path):
  table = np.concatenate([TABLE, [[np.nan, 1.0]]])
  path = _write(tmp_path, "npz", [*IDS, "2"], table)
  found = _read(kind="given", path=path, standardize=True)
  expected = (TABLE - TABLE.mean(0)) / TABLE.std(0)
  np.testing.assert_allclose(found.arrays[""][[3, 1]], expected[:2], rtol=1e-5)
  assert found.known.tolist() == [False, True, False, True, False]
  np.savez(path, ids=np.array(IDS), vectors=TABLE, missing=np.array([True, False, False]))
  assert _read(kind="given", path=path).known.tolist() == [False, True, False, False, False]


def test_a_digest_changes_with_the_content(tmp_path):
  read = lambda: vectors.read(path, where="here").digest
  path = _write(tmp_path, "npy")
  before = read()
  (tmp_path / "v.txt").write_text("3\n1\n8\n")
  assert read() != before


@pytest.mark.parametrize("change, says", [
  (lambda f: f.unlink(), "there is no file"),
  (lambda f: f.write_bytes(b"no zip"), "cannot be read"),
  (lambda f: np.savez(f, ids=np.array(IDS)), "no array 'vectors' .there are: ids"),
  (lambda f: np.savez(f, ids=np.array(["1", "2", "1"]), vectors=TABLE), "id '1' is listed twice"),
  (lambda f: np.savez(f, ids=np.array(["1", "2"]), vectors=TABLE), "2 ids for 3 vectors"),
  (lambda f: np.savez(f, ids=np.array(IDS), vectors=TABLE[:, 0]), r"float32 \(3,\), numbers"),
  (lambda f: np.savez(f, ids=np.array([0.5, 1, 2]), vectors=TABLE), "ids are float64"),
  (lambda f: np.savez(f, ids=np.array(IDS), vectors=TABLE / 0), "infinite"),
  (lambda f: np.savez(f, ids=np.array(["a", "b", "c"]), vectors=TABLE),
   "no id of .* is one of data set 'small' .there 'a', here '1'"),
])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_file_of_vectors_with_a_mistake(tmp_path, change, says):
  path = _write(tmp_path, "npz")
  change(tmp_path / "v.npz")
  with pytest.raises(errors.UserError, match=f"model.features, x: .*{says}") as error:
    _read(kind="given", path=path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("features, says", [
  ((("x", {"kind": "image"}),), "kind is 'image'; there are attribute, given, text"),
  ((("x", {}),), "kind is None"),
  ((("x", {"kind": "text", "depth": 3}),), "option is 'depth'; there are of, encoder"),
  ((("x", {"kind": "text", "width": "8"}),), "width='8' is not of the kind of 32"),
  ((("x", {"kind": "text", "of": "title"}),), "of='title' is not of the kind"),
  ((("x", {"kind": "text", "of": ("name",)}),), "of is 'name'; there are title, plot, genre"),
  ((("x", {"kind": "text", "min_count": 9}),), "no word of title occurs in 9 items"),
  ((("x", {"kind": "attribute"}),), "attribute is 'x'; there are genre"),
  ((("x", {"kind": "given", "path": "v.json"}),), "ending of v.json is '.json'"),
  ((("x", {"kind": "given"}),), "path is required"),
  ((("x", {"kind": "text"}),) * 2, "x: is listed twice"),
  (("x",), "each is .name"), ((("a b", {}),), "each is .name"),
])
def test_a_schema_with_a_mistake(features, says):
  with pytest.raises(errors.UserError, match=f"^model.features.*{says}"):
    providers.read(_data(), features)


def test_words_are_those_of_a_text_in_order():
  assert providers.words("The Élan, of it’s O'Neill_42 -- 1995!") == [
    "the", "élan", "of", "it’s", "o'neill", "42", "1995"]
  assert providers.words("") == []


def test_a_text_is_read_by_words_of_enough_items():
  found = _read(kind="text", of=("title", "plot", "genre"), min_count=2)
  words, used = found.rows
  # Each is in two items; "big" and "war" are twice in one.
  assert [word.decode() for word in words] == ["children's", "sleep", "the"]
  as_words = [[words[i - 1].decode() for i in row if i] for row in found.arrays[""]]
  assert as_words == [[], ["the", "sleep", "the", "children's"], ["sleep", "children's"], [],
                      ["sleep", "the"]]
  assert found.known.tolist() == [False, True, True, False, True]
  assert used.tolist() == [True, True, True]
  every = _read(kind="text", of=("title", "plot"), min_count=1)
  trained = dict(zip(every.rows[0].tolist(), every.rows[1].tolist(), strict=True))
  assert trained[b"big"] and not trained[b"war"]  # item 4 is of another domain
  short = _read(kind="text", of=("title", "plot"), min_count=1, length=2)
  assert short.arrays[""].shape == (5, 2)
  few = _read(kind="text", of=("title", "plot"), min_count=1, max_words=2)
  assert few.rows[0].tolist() == [b"sleep", b"the"]  # the most frequent


def test_rare_words_weigh_more():
  found = _read(kind="text", of=("title", "plot"), min_count=1, tfidf=True)
  weight = {word.decode(): found.arrays["/weight"][found.arrays[""] == i].max()
            for i, word in enumerate(found.rows[0].tolist(), 1)}
  assert weight["sleep"] < weight["the"] < weight["big"]
  assert weight["big"] == pytest.approx(np.log(6 / 2) + 1)  # of 5 rows, padding among them
  assert (found.arrays["/weight"][found.arrays[""] == 0] == 0).all()


def test_an_attribute_has_its_values():
  found = _read("genre", kind="attribute")
  assert found.arrays[""].tolist() == _data().features["genre"].values.tolist()
  assert found.rows[0].tolist() == [b"film noir", b"Children's", b"war"]
  assert found.rows[1].tolist() == [True, True, False] and found.size == 3
  assert _read(kind="attribute", attribute="genre", slots=1).arrays[""].shape == (5, 1)


def test_of_tokens_nothing_is_known(tmp_path):
  features = (("v", {"kind": "given", "path": _write(tmp_path, "npz")}),
              ("genre", {"kind": "attribute"}))
  found = providers.read(_data(), features)
  tables = providers.tables(found, extra_tokens=2)
  assert set(tables) == {"feature/v", "feature/v/known", "feature/genre"}
  assert all(len(table) == 4 + 2 + 2 for table in tables.values())
  assert all((table[[0, 5, 6, 7]] == 0).all() for table in tables.values())
  assert list(providers.row_names(found)) == ["feature/genre"]
  assert list(providers.digests(found)) == ["v"]
  lines = providers.describe(found, _data().in_domain)
  assert "feature v (given): 2 of 3 items, 2 columns of " in lines[0]
  assert lines[1] == "feature genre (attribute): 2 of 3 items, 3 rows"
