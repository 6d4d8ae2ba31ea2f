"""Files of one user a line: every row where it belongs, every mistake with its line."""

import gzip

import pytest
import test_prepare
import test_readers

from recjax import errors
from recjax.data import readers, sequence_text, sequences

FOOD_KITCHEN = str(test_prepare.ROOT / "configs/data/food_kitchen.py")
TIMED = "7 x|30 y|10\n8 z|5\n"
PLAIN = "7 x y\n8 z\n"


def reader(path, text, **kwargs):
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
  return sequence_text.SequenceText(readers.file(path), **kwargs)


@pytest.mark.parametrize("block_rows", [1, 2, 100])
@pytest.mark.parametrize("name, change", [
  ("s.txt", lambda t: t), ("s.txt.gz", lambda t: t), ("s.txt", lambda t: t.rstrip("\n")),
  ("s.txt", lambda t: t + "\n\n"), ("s.txt", lambda t: t.replace("\n", "\r\n")),
  ("s.txt", lambda t: "\ufeff" + t), ("s.txt", lambda t: t.replace(" ", "\t"))])
def test_every_spelling_gives_the_same_rows(tmp_path, monkeypatch, block_rows, name, change):
  monkeypatch.setattr(readers, "BLOCK_ROWS", block_rows)
  rows = test_readers.rows_of(reader(tmp_path / name, change(TIMED)))
  assert [row[:3] for row in rows] == [("7", "x", 30), ("7", "y", 10), ("8", "z", 5)]
  made = reader(tmp_path / name, change(PLAIN), users={"7": "u", "8": "v"},
                items=dict(x="a", y="b", z="c"), time_unit="ms")
  rows = test_readers.rows_of(made)
  assert [row[:3] for row in rows] == [("u", "a", 0), ("u", "b", 1), ("v", "c", 0)]
  assert made.ticks == 1  # Places, whatever the unit of times would be.
  assert [made.place(row) for row in range(3)] == [
    f"{tmp_path / name} line {line}, item {item}" for line, item in ((1, 1), (1, 2), (2, 1))]


@pytest.mark.parametrize("bad, message", [
  ("9", "malformed row, user '9' has no items"), ("7 x|1", "user '7' has line 1 already"),
  ("9 x|1 y", "item 2: item.time expected, not 'y'"), ("9 x|1.5", "item 1: item.time expected"),
  ("9 |5", "item 1: item.time expected"), ("9 x|1_0", "item 1: item.time expected"),
  ("9 x|" + "9" * 19, "item 1: item.time expected"), ("q x|1", "user 'q' is not in the map"),
  ("9 x|1 q|2", "item 2: 'q' is not in the map"), ("", r"malformed row \(a blank line\)"),
  ("9 \udcff|1", "not valid UTF-8")])
def test_a_bad_line_is_named(tmp_path, bad, message):
  path = tmp_path / "s.txt"
  path.write_bytes(f"{TIMED}{bad}\n10 x|1\n".encode(errors="surrogateescape"))
  made = sequence_text.SequenceText(readers.file(path), users=dict.fromkeys(("7", "8", "9", "10")),
                                    items=dict.fromkeys("xyz"))
  with pytest.raises(errors.UserError, match=f"s.txt line 3: {message}"):
    test_readers.rows_of(made)


def test_files_that_are_no_sequences(tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match="line 2: item 1: has a time"):
    test_readers.rows_of(reader(tmp_path / "s.txt", "7 x\n8 z|5\n"))
  with pytest.raises(errors.UserError, match="is empty"):
    test_readers.rows_of(reader(tmp_path / "s.txt", ""))
  with pytest.raises(errors.UserError, match="time_unit 'iso'"):
    reader(tmp_path / "s.txt", TIMED, time_unit="iso")
  monkeypatch.setattr(sequence_text, "MAX_LINE", 20)
  with pytest.raises(errors.UserError, match="line 2: is longer than 20 bytes"):
    test_readers.rows_of(reader(tmp_path / "s.txt", "7 x\n8" + " z" * 20))


def test_maps(tmp_path):
  path = tmp_path / "m.txt"
  path.write_text('{"a": [1, 0], "b": [2, 1]}')
  assert sequence_text.read_map(path) == ({"1": "a", "2": "b"}, {"a": 0, "b": 1})
  path.write_text('{"a": 1, "b": 0}')
  assert sequence_text.read_map(path) == ({"1": "a", "0": "b"}, None)
  for text, message in (('{"a": 1, "b": 1}', "'a' and 'b' are both 1"), ('{"a": "1"}', "entry 'a'"),
                        ('{"a": 1, "b": [2, 0]}', "entry 'b'"), ('{"a": [1]}', "entry 'a'"),
                        ('{"a": [1, 0], "b": 2}', "entry 'b'"), ('{"a": [1, -1]}', "entry 'a'"),
                        ('{"a": true}', "entry 'a'"), ("{", "line 1: not JSON")):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=message):
      sequence_text.read_map(path)


def test_two_domains(tmp_path):
  """Ties keep their place in the line, both directions are cut, names are the external ones."""
  lines = {"0": "1|9 2|9 3|9 4|5 5|5", "1": "6|1 1|2 3|3 5|4 2|5 4|6"}
  (tmp_path / "afk_50_preprocessed.txt").write_text(
    "".join(f"{user} {line}\n" for user, line in lines.items()))
  (tmp_path / "map_item_50.txt").write_text(
    '{"A": [1, 0], "B": [2, 1], "C": [3, 0], "D": [4, 1], "E": [5, 0], "F": [6, 1]}')
  (tmp_path / "map_user_50.txt").write_text('{"ann": 0, "bob": 1}')
  prepare = lambda **fields: test_prepare.make(FOOD_KITCHEN, tmp_path,
                                               tmp_path / "out", check=False, **fields)
  manifests, _ = prepare()
  assert set(manifests) == {"food_kitchen", "food_src", "kitchen_src", "food_tgt", "kitchen_tgt"}
  def items_of(name):
    data = sequences.load(tmp_path / "out", name)
    return {data.user_ids[u].decode(): b"".join(
      data.item_ids[data.items[low:high]].tolist()).decode()
      for u, (low, high) in enumerate(zip(data.offsets, data.offsets[1:], strict=False)) if u}
  assert items_of("food_kitchen") == {"ann": "DEABC", "bob": "FACEBD"}
  assert items_of("food_src") == {"ann": "EAC", "bob": "ACE"}
  assert items_of("kitchen_tgt") == {"ann": "DB", "bob": "FBD"}
  with pytest.raises(errors.UserError, match="item_domains names 1 domains, but .* the code 1"):
    prepare(item_domains=("food",))
  with pytest.raises(errors.UserError, match="no no.txt in .*--config.item_map"):
    prepare(item_map="no.txt")
  (tmp_path / "afk_50_preprocessed.txt").write_text("0 1|1 2|2\n1 1|1 2|2 1|1\n")
  with pytest.raises(errors.UserError, match="line 2, item 3: duplicate of .* line 2, item 1"):
    prepare()
