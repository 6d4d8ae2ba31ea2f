"""Ratings without times: what each row becomes, whose order it is, and which line is wrong."""

import numpy as np
import pytest

from recjax import errors
from recjax.data import untimed

ROWS = {"book": "1\t7\t4\n2\t7\t5\n1\t3\t1\n", "music": "2\t7\t2\n"}


def _open(folder, seed=0, **rows):
  for domain, text in {**ROWS, **rows}.items():
    (folder / f"{domain}.dat").write_text(text)
  return untimed.open_tables({domain: folder / f"{domain}.dat" for domain in ROWS}, seed=seed,
                             rating_range=(1, 5))


def _rows(reader):
  return [(*row, int(time)) for block in reader.blocks() for *row, time in zip(
    block.users.to_pylist(), block.items.to_pylist(), block.ratings.tolist(),
    block.domains.to_pylist(), block.times, strict=True)]


def test_rows_are_those_of_both_files(tmp_path):
  reader = _open(tmp_path)
  assert [row[:4] for row in _rows(reader)] == [
    ("1", "book:7", 4.0, "book"), ("2", "book:7", 5.0, "book"), ("1", "book:3", 1.0, "book"),
    ("2", "music:7", 2.0, "music")]
  assert len(reader.sha256) == 64
  assert [reader.place(row).rpartition("/")[2] for row in (0, 2, 3)] == [
    "book.dat line 1", "book.dat line 3", "music.dat line 1"]


def test_the_order_is_random_and_that_of_the_seed(tmp_path):
  text = "".join(f"1\t{i}\t3\n" for i in range(200))
  times = [np.array([row[-1] for row in _rows(_open(tmp_path, seed, book=text, music=text))])
           for seed in (0, 0, 1)]
  assert np.array_equal(times[0], times[1]) and not np.array_equal(times[0], times[2])
  assert (times[0] >= 0).all() and abs(np.corrcoef(times[0], np.arange(400))[0, 1]) < 0.2
  assert not np.array_equal(times[0][:200], times[0][200:])  # of each domain its own


@pytest.mark.parametrize("text,says", [
  ("1\t7\t4\n1\t8\n", "book.dat line 2: malformed row, 3 columns"),
  ("1\t7\t4\n1\t8\t9\n", "book.dat line 2: rating 9 is out of range"),
  ("", "is empty"),
])
def test_mistakes_name_the_line(tmp_path, text, says):
  with pytest.raises(errors.UserError, match=says):
    _rows(_open(tmp_path, book=text))


def test_a_header_is_no_row(tmp_path):
  path = tmp_path / "plays.dat"
  path.write_text("userID\tartistID\tweight\n1\t7\t13883\n")
  reader = untimed.open_tables({"artists": path}, seed=0, rating_range=None, skip=1)
  assert [row[:4] for row in _rows(reader)] == [("1", "artists:7", 13883.0, "artists")]
  assert reader.place(0).endswith("plays.dat line 2")
