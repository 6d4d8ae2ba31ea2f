"""Readers: every spelling of the same rows gives the same rows, every mistake names its line."""

import datetime
import gzip
import zipfile

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from recjax import errors
from recjax.data import metadata, readers

COLUMNS = {role: role for role in readers.ROLES}
ROWS = [("a", "x", 10, 5.0, "d1"), ("b", "y,z", 20, 3.5, "d2"), ("ä", "x", -3, 1.0, "d1")]
TEXT = 'user,item,time,rating,domain\na,x,10,5,d1\nb,"y,z",20,3.5,d2\nä,x,-3,1,d1\n'


def rows_of(reader):
  rows = []
  for b in reader.blocks():
    ratings = [None] * len(b.times) if b.ratings is None else b.ratings.tolist()
    domains = [None] * len(b.times) if b.domains is None else b.domains.to_pylist()
    rows += zip(b.users.to_pylist(), b.items.to_pylist(), b.times.tolist(), ratings, domains,
                strict=True)
  return rows


def write(path, text):
  data = text.encode() if isinstance(text, str) else text
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


@pytest.mark.parametrize("name, change", [
  ("t.csv", lambda t: t),
  ("t.csv.gz", lambda t: t),
  ("t.csv", lambda t: t.rstrip("\n")),
  ("t.csv", lambda t: t + "\n\n"),
  ("t.csv", lambda t: t.replace("\n", "\r\n")),
  ("t.csv", lambda t: "\ufeff" + t),
  ("t.tsv", lambda t: t.replace('"y,z"', "y;z").replace(",", "\t").replace("y;z", "y,z")),
])
@pytest.mark.parametrize("block_bytes", [1, 7, 40, 1 << 20])
def test_every_spelling_gives_the_same_rows(tmp_path, monkeypatch, name, change, block_bytes):
  monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
  reader = readers.interactions(write(tmp_path / name, change(TEXT)), columns=COLUMNS)
  assert rows_of(reader) == ROWS


def test_parquet_agrees_with_text(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "BLOCK_ROWS", 2)
  users, items, times, ratings, domains = zip(*ROWS, strict=True)
  table = pa.table({"user": pa.array(users).dictionary_encode(), "other": [1, 2, 3],
                    "item": pa.array(items, pa.large_string()), "time": times,
                    "rating": pa.array(ratings, pa.float64()), "domain": domains})
  pa_parquet.write_table(table, tmp_path / "t.parquet")
  assert rows_of(readers.interactions(tmp_path / "t.parquet", columns=COLUMNS)) == ROWS


def test_optional_columns_and_other_names(tmp_path):
  path = write(tmp_path / "t.csv", "when,junk,who,what\n5,,a,x\n")
  names = {"user": "who", "item": "what", "time": "when", "rating": "rating", "domain": "domain"}
  assert rows_of(readers.interactions(path, columns=names)) == [("a", "x", 5, None, None)]
  with pytest.raises(errors.UserError, match="no column 'stars' for the rating.*who"):
    readers.interactions(path, columns={**names, "rating": "stars"})
  with pytest.raises(errors.UserError, match="no column 'user' for the user"):
    readers.interactions(path, columns=COLUMNS)


@pytest.mark.parametrize("unit, text, ticks", [
  ("s", "1425168000", 1), ("ms", "1425168000000", 10**3), ("us", "1425168000000000", 10**6),
  ("iso", "2015-03-01 00:00:00", 10**6), ("iso", "2015-03-01", 10**6), ("s", "1425168000.0", 1)])
def test_time_units(tmp_path, unit, text, ticks):
  path = write(tmp_path / "t.csv", f"user,item,time\na,x,{text}\n")
  reader = readers.interactions(path, columns=COLUMNS, time_unit=unit)
  assert [r[2] for r in rows_of(reader)] == [1425168000 * ticks]
  assert reader.ticks == ticks


def test_parquet_timestamps_carry_their_unit(tmp_path):
  for kind in (pa.timestamp("ms", "UTC"), pa.timestamp("ns"), pa.date32()):
    times = pa.array([datetime.date(2015, 3, 1)]).cast(kind)
    pa_parquet.write_table(pa.table({"user": [1], "item": [2], "time": times}),
                           tmp_path / "t.parquet")
    reader = readers.interactions(tmp_path / "t.parquet", columns=COLUMNS)
    assert [r[2] // reader.ticks for r in rows_of(reader)] == [1425168000]


@pytest.mark.parametrize("bad, message", [
  ("a,x,10", "malformed row, 5 columns expected and 3 found"),
  ("a,x,10,5,d1,more", "malformed row, 5 columns expected and 6 found"),
  ("", r"malformed row \(a blank line"),
  ("\r", r"malformed row \(a blank line"),
  ("a,x,,5,d1", "the time is empty"),
  ("a,x,NaN,5,d1", "time nan is not a usable number"),
  ("a,x,inf,5,d1", "time inf"),
  ("a,x,1e300,5,d1", "time 1e"),
  ("a,x,10.5,5,d1", "time 10.5 is not a whole number"),
  ("a,x,ten,5,d1", "time 'ten' is not a valid value"),
  ("a,x,10,,d1", "the rating is empty"),
  ("a,x,10,nan,d1", "rating nan is out of range"),
  ("a,x,10,6,d1", r"rating 6 is out of range \[1, 5\]"),
  ("a,x,10,good,d1", "rating 'good' is not a valid value"),
  (b"\xff,x,10,5,d1", "not valid UTF-8"),
  ('"a,x,10,5,d1', "malformed row"),
  ('"a\na",x,10,5,d1', "malformed row"),
])
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_a_bad_row_names_its_line(tmp_path, monkeypatch, bad, message, block_bytes):
  monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
  bad = bad.encode() if isinstance(bad, str) else bad
  good = b"".join(b"u%d,x,10,5,d1\n" % i for i in range(100))
  text = b"user,item,time,rating,domain\n" + good + bad + b"\n" + good
  reader = readers.interactions(write(tmp_path / "t.csv", text), columns=COLUMNS,
                                rating_range=(1, 5))
  with pytest.raises(errors.UserError, match=f"t.csv line 102: {message}"):
    rows_of(reader)


def test_double_colon_text_has_no_room_for_mistakes(tmp_path):
  names = ["user", "item", "rating", "time"]
  for row, message in (("1::2::3", "4 columns expected and 3 found"), ("1\t2\t3\t4", "a tab"),
                       ("1::2::5::x", "time 'x'"), ("1:2:3:4", "4 columns expected and 1 found")):
    raw = readers.file(write(tmp_path / "r.dat", f"1::2::3::4\n{row}\n1::3::3::4\n"))
    reader = readers.TextTable(raw, header=names, columns={n: n for n in names}, separator="::")
    with pytest.raises(errors.UserError, match=f"r.dat line 2: .*{message}"):
      rows_of(reader)


def test_parquet_mistakes_name_their_row(tmp_path):
  path = tmp_path / "t.parquet"
  table = {"user": ["a"] * 3, "item": ["x", "y", "z"], "time": [1.0, 2.0, float("nan")]}
  pa_parquet.write_table(pa.table(table), path)
  with pytest.raises(errors.UserError, match="t.parquet row 3: time nan"):
    rows_of(readers.interactions(path, columns=COLUMNS))
  pa_parquet.write_table(pa.table({**table, "user": ["a", None, "b"], "time": [1, 2, 3]}), path)
  with pytest.raises(errors.UserError, match="t.parquet row 2: the user is empty"):
    rows_of(readers.interactions(path, columns=COLUMNS))
  pa_parquet.write_table(pa.table({**table, "time": ["1", "2", "3"]}), path)
  with pytest.raises(errors.UserError, match="time column holds string"):
    rows_of(readers.interactions(path, columns=COLUMNS))
  with pytest.raises(errors.UserError, match="not a readable Parquet file"):
    readers.interactions(write(tmp_path / "no.parquet", "user,item\n"), columns=COLUMNS)


@pytest.mark.parametrize("name, data, message", [
  ("t.csv", b"", "is empty"), ("t.csv", b"user,item,time\n", "is empty"),
  ("t.csv", b"user,item,time,user\na,b,1,c\n", "'user' occurs twice"),
  ("t.csv", b"\xff\xfe\n", "line 1: the header"),
  ("t.xls", b"user,item,time\n", "unknown kind of file")])
def test_files_that_are_no_table(tmp_path, name, data, message):
  with pytest.raises(errors.UserError, match=message):
    rows_of(readers.interactions(write(tmp_path / name, data), columns=COLUMNS))


def test_missing_and_broken_files(tmp_path):
  with pytest.raises(errors.UserError, match="no file"):
    readers.interactions(tmp_path / "none.csv", columns=COLUMNS)
  whole = gzip.compress(TEXT.encode() * 1000)
  (tmp_path / "t.csv.gz").write_bytes(whole[:len(whole) // 2])
  with pytest.raises(errors.UserError, match="t.csv.gz: cannot be read"):
    rows_of(readers.interactions(tmp_path / "t.csv.gz", columns=COLUMNS))


def test_endless_line_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
  monkeypatch.setattr(readers, "MAX_LINE", 1000)
  path = write(tmp_path / "t.csv", TEXT + "x" * 10_000)
  with pytest.raises(errors.UserError, match="a line is longer"):
    rows_of(readers.interactions(path, columns=COLUMNS))


def test_zip_members_stay_inside(tmp_path):
  def archive(*names):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
      for name in names:
        out.writestr(name, b"0" * 5000)
    return tmp_path / "a.zip"
  assert readers.zip_members(archive("ml-1m/r.dat"))["r.dat"].read() == b"0" * 5000
  for name in ("/etc/r.dat", "../r.dat", "ml-1m/../../r.dat", "..\\r.dat", "C:/r.dat"):
    with pytest.raises(errors.UserError, match="leaves its folder"):
      readers.zip_members(archive("ml-1m/r.dat", name))
  with pytest.raises(errors.UserError, match="unpacks to 5,000 bytes"):
    readers.zip_members(archive("ml-1m/r.dat"), limit=4999)
  with pytest.raises(errors.UserError, match="two members named 'r.dat'"):
    readers.zip_members(archive("a/r.dat", "b/r.dat"))
  broken = bytearray(archive("r.dat").read_bytes())
  broken[40] ^= 0xFF  # in the compressed bytes
  (tmp_path / "a.zip").write_bytes(broken)
  with pytest.raises(errors.UserError, match="cannot be read"):
    readers.zip_members(tmp_path / "a.zip")["r.dat"].read()
  with pytest.raises(errors.UserError, match="cannot be read"):
    readers.zip_members(write(tmp_path / "b.zip", "no zip"))


MOVIES = "1::Amélie (2001)::Comedy|Romance\n20::Heat: a::b (1995)::Action\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movies(tmp_path, encoding):
  text = MOVIES.replace("a::b", "ab").replace("\n", "\r\n" if encoding == "utf-8" else "\n")
  raw = readers.file(write(tmp_path / "movies.dat", text.encode(encoding)))
  items = metadata.read_movies(raw, {"src": ("Comedy",), "tgt": ("Action",)})
  assert items.titles == {"1": "Amélie (2001)", "20": "Heat: ab (1995)"}
  assert items.fields == {"genre": {"1": ("Comedy", "Romance"), "20": ("Action",)}}
  assert items.domains == {"1": "src", "20": "tgt"}
  with pytest.raises(errors.UserError, match="movies.dat line 1: first genre 'Comedy'"):
    metadata.read_movies(raw, {"tgt": ("Action",)})


@pytest.mark.parametrize("text", [MOVIES, "", "1::A::Comedy\n\n2::B::Comedy\n", "x::A::Comedy\n",
                                  "1::A::\n", "1::A::Comedy\n1::B::Comedy\n"])
def test_malformed_movies(tmp_path, text):
  raw = readers.file(write(tmp_path / "movies.dat", text))
  with pytest.raises(errors.UserError, match=r"movies.dat line [12]: "):
    metadata.read_movies(raw, {"src": ("Comedy",), "tgt": ("Action",)})


def test_item_tables(tmp_path):
  text = 'item,title,tag,maker\nx,"A, B",p|q|p,\ny,C,,m1\n'
  from_text = metadata.read_table(write(tmp_path / "i.csv.gz", text))
  table = pa.table({"item": ["x", "y"], "title": ["A, B", "C"], "tag": [["p", "q", "p"], []],
                    "maker": [None, "m1"]})
  pa_parquet.write_table(table, tmp_path / "i.parquet")
  from_parquet = metadata.read_table(tmp_path / "i.parquet")
  assert from_text.titles == from_parquet.titles == {"x": "A, B", "y": "C"}
  assert from_text.fields == from_parquet.fields
  assert from_text.fields == {"tag": {"x": ("p", "q", "p"), "y": ()},
                              "maker": {"x": (), "y": ("m1",)}}
  only = metadata.read_table(tmp_path / "i.parquet", features=("maker",))
  assert list(only.fields) == ["maker"]
  for content, message in (("item,tag\nx,1\nx,2\n", "line 3: item 'x' is listed twice"),
                           ("item,tag\n,1\n", "line 2: the item is empty"),
                           ("item,tag\nx\n", "line 2: malformed row"),
                           ("item,a b\nx,1\n", "'a b' cannot name a feature"),
                           ("item,a_ids\nx,1\n", "'a_ids' cannot name a feature"),
                           ("id,tag\nx,1\n", "no column 'item'"),
                           ("item,tag\n", "is empty"),
                           (b"item,tag\nx,\xff\n", "line 2: not valid UTF-8")):
    with pytest.raises(errors.UserError, match=message):
      metadata.read_table(write(tmp_path / "i.csv", content))


def test_features_keep_order_and_never_use_zero():
  values = {"x": ("q", "p", "q"), "z": ("unused",)}
  table, ids = metadata.encode_values(values, ["x", "y"], "tag")
  assert ids.tolist() == [b"", b"p", b"q"]
  assert table.tolist() == [[0, 0], [2, 1], [0, 0]]
  with pytest.raises(errors.UserError, match="more than 256 bytes"):
    metadata.encode_values({"x": ("9" * 9999,)}, ["x"], "tag")
