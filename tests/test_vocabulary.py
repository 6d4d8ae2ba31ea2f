"""External names of table rows."""

import dataclasses

import evaluator_data
import numpy as np
import pytest

from recjax.data import sequences
from recjax.data import vocabulary


@pytest.fixture
def data():
  base = evaluator_data.dataset([([1, 2], [], []), ([], [3], []), ([3, 3], [1], [2])], 5,
                                in_domain=[1, 2, 3])
  values = np.zeros((6, 2), np.int32)
  values[1:] = [[1, 0], [2, 1], [0, 0], [3, 0], [4, 3]]  # item 3 has none; 3 and 4: other domain's
  return dataclasses.replace(
    base, user_ids=np.array([b"", b"ann", b"bob", b"cyd"]), item_ids=np.array(
      [b"", b"i1", b"i2", b"i3", b"i4", b"i5"]),
    features={"genre": sequences.Feature(values, np.array([b"", b"g1", b"g2", b"g3", b"g4"]))})


def test_rows_in_the_order_of_the_tables(data):
  found = vocabulary.row_names(data, extra_tokens=2)
  names = {key: rows.tolist() for key, (rows, _) in found.items()}
  items = [b"i1", b"i2", b"i3", b"i4", b"i5"]
  assert names == {
    "item": [vocabulary.PAD, *items, vocabulary.MASK, b"\x01token0", b"\x01token1"],
    "output": [vocabulary.PAD, *items],
    "user": [b"ann", b"bob", b"cyd"],
    "genre": [b"g1", b"g2", b"g3", b"g4", vocabulary.UNKNOWN]}


def test_only_what_the_data_train_is_marked(data):
  trained = {key: flags.tolist() for key, (_, flags) in vocabulary.row_names(data).items()}
  assert trained == {
    "item": [True, True, True, True, False, False, True],
    "output": [True, True, True, True, False, False],
    "user": [True, False, True],
    "genre": [True, True, False, False, True]}


def test_no_name_twice_and_none_cut(data):
  # An external id as long as can be, and one that looks like a special row.
  ids = data.item_ids.astype("S20")
  ids[1], ids[2] = b"x" * 20, b"mask"
  rows, _ = vocabulary.row_names(dataclasses.replace(data, item_ids=ids), extra_tokens=3)["item"]
  assert rows[1] == b"x" * 20 and len(set(rows.tolist())) == len(rows)


def test_lengths_fit_the_flags(data):
  for names, trained in vocabulary.row_names(data, extra_tokens=1).values():
    assert names.shape == trained.shape and names.dtype.kind == "S" and trained.dtype == bool
