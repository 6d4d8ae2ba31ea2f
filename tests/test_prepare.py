"""Preparation: agrees with a plain in-memory version of itself, never half replaces anything."""

import gzip
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from recjax import errors, spec
from recjax.data import columns, prepare, sequences, splits

ROOT = pathlib.Path(__file__).resolve().parent.parent
ML1M = str(ROOT / "configs/data/ml1m.py")
TABLE = str(ROOT / "configs/data/table.py")
MOVIES = "1::A (1990)::Comedy|War\n2::B (1991)::War\n3::C (1992)::Drama\n4::D (1993)::Horror\n"


def make(config, raw_dir, data_dir, **fields):
  config = spec.load_config(config)
  spec.override(config, {k.replace("__", "."): v for k, v in fields.items()})
  lines = []
  manifests = prepare.prepare(config, raw_dir=raw_dir, data_dir=data_dir, log=lines.append)
  return manifests, "\n".join(lines)


def write_table(folder, rows, header="user,item,time,rating,domain"):
  text = "\n".join([header, *(",".join(map(str, row)) for row in rows)])
  (folder / "interactions.csv").write_text(text + "\n")


def random_rows(seed, n=600, users=23, items=17):
  """Rows with many equal times, each (user, item, time) once."""
  rng = np.random.default_rng(seed)
  rows = {}
  while len(rows) < n:
    user, item, when = rng.integers(users), rng.integers(items), rng.integers(40)
    rows[f"u{user}", f"i{item}", when] = (rng.integers(1, 11) / 2, ("books", "music")[item % 2])
  return [(*key, *value) for key, value in rows.items()]


def sequences_of(data, split=None):
  """Returns {external user: [(external item, time, rating)]} of users with any rows."""
  begin, end = (data.offsets[:-1], data.offsets[1:]) if split is None else data.span(split)
  out = {}
  for user, (low, high) in enumerate(zip(begin, end, strict=True)):
    if high > low:
      out[data.user_ids[user].decode()] = [
        (data.item_ids[i].decode(), int(t), float(r)) for i, t, r in zip(
          data.items[low:high], data.times[low:high], data.ratings[low:high], strict=True)]
  return out


def plain_sequences(rows, domain=None, last=0):
  out = {}
  for user, item, when, rating, where in sorted(rows, key=lambda row: row[2]):  # stable
    if domain in (None, where):
      out.setdefault(user, []).append((item, when, rating))
  return {user: row[-last:] for user, row in out.items()}


@pytest.mark.parametrize("bucket_rows", [1, 50, 1 << 20])
def test_agrees_with_the_plain_version(tmp_path, monkeypatch, bucket_rows):
  monkeypatch.setattr(columns, "BUCKET_ROWS", bucket_rows)
  rows = random_rows(0)
  write_table(tmp_path, rows)
  tight = dict(keep_last=9, val=2, test=3, min_interactions=5, min_full=7)
  manifests, _ = make(TABLE, tmp_path, tmp_path / "out", domain_splits={"music": tight})
  assert list(manifests) == ["table", "table_books", "table_music"]
  for name, domain, last in (("table", None, 0), ("table_books", "books", 0),
                             ("table_music", "music", 9)):
    data = sequences.load(tmp_path / "out", name)
    want = plain_sequences(rows, domain, last)
    assert sequences_of(data) == want
    assert data.manifest == json.loads(json.dumps(manifests[name]))
    assert data.manifest["interactions"] == sum(map(len, want.values()))
    in_domain = {i.decode() for i in data.item_ids[data.in_domain]}
    assert in_domain == {row[1] for row in rows if domain in (None, row[4])}
    assert not data.in_domain[0] and data.items.min() >= 1
    rule = tight if domain == "music" else dict(val=1, test=1, min_full=3)
    cut = len(next(iter(want.values()))) - rule["val"] - rule["test"]
    user = next(iter(want))
    assert sequences_of(data, "train")[user] == want[user][:cut]
    assert sequences_of(data, "test")[user] == want[user][-rule["test"]:]
  assert len(list((tmp_path / "out").iterdir())) == 3  # no scratch is left


def test_ids_do_not_depend_on_the_order_of_rows(tmp_path):
  rows = [(u, i, 100 * int(u) + int(i), 5, "d") for u in ("10", "9", "2") for i in "123"]
  made = []
  for order in (rows, rows[::-1]):
    write_table(tmp_path, order)
    make(TABLE, tmp_path, tmp_path / "out")
    made.append(sequences.load(tmp_path / "out", "table"))
  assert made[0].user_ids.tolist() == [b"", b"2", b"9", b"10"]
  for stem in sequences.ARRAYS:
    assert np.array_equal(getattr(made[0], stem), getattr(made[1], stem)), stem


def test_equal_seconds_keep_finer_order(tmp_path):
  rows = [("a", "late", 1999), ("a", "early", 1001), ("a", "first", 500)]
  write_table(tmp_path, rows, "user,item,time")
  make(TABLE, tmp_path, tmp_path / "out", time_unit="ms")
  data = sequences.load(tmp_path / "out", "table")
  assert [data.item_ids[i] for i in data.items] == [b"first", b"early", b"late"]
  assert data.times.tolist() == [0, 1, 1] and data.ratings is None


def test_item_table_and_min_item_interactions(tmp_path):
  rows = [(u, i, t, 4, "d") for u in "abcd" for t, i in enumerate("vwxy")] + [("a", "z", 9, 4, "d")]
  write_table(tmp_path, rows)
  (tmp_path / "items.csv").write_text("item,title,tag\nx,The X,q|p\nz,Zed,p\nnever,No,r\n")
  make(TABLE, tmp_path, tmp_path / "out", items="items.csv", split__min_item_interactions=2)
  data = sequences.load(tmp_path / "out", "table")
  assert data.item_ids.tolist() == [b"", b"v", b"w", b"x", b"y", b"z"]
  assert data.in_domain.tolist() == [False, True, True, True, True, False]
  assert 5 not in data.items and data.manifest["interactions"] == 16
  assert data.features["tag"].ids.tolist() == [b"", b"p", b"q"]
  assert data.features["tag"].values.tolist() == [[0, 0], [0, 0], [0, 0], [2, 1], [0, 0], [1, 0]]
  assert data.manifest["items_with_metadata"] == 1  # z has left the domain
  titles = np.load(tmp_path / "out/table/item_titles.npy", allow_pickle=False)
  assert titles.tolist() == [b"", b"", b"", b"The X", b"", b"Zed"]


def test_file_order_is_that_of_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(columns, "BUCKET_ROWS", 37)
  rows = random_rows(1)
  write_table(tmp_path, rows)
  rule = dict(order="file", keep_last=11, val=3, test=3, min_interactions=7, min_full=7)
  make(TABLE, tmp_path, tmp_path / "out", domain_splits={"music": rule})
  want = {}
  for user, item, when, rating, where in rows:
    if where == "music":
      want.setdefault(user, []).append((item, when, rating))
  data = sequences.load(tmp_path / "out", "table_music")
  kept = {user: row[-11:] for user, row in want.items()}
  assert sequences_of(data) == kept
  assert any(row != sorted(row, key=lambda r: r[1]) for row in kept.values())
  full = {user: row for user, row in kept.items() if len(row) >= 7}
  assert sequences_of(data, "train") == {user: row[:-6] for user, row in full.items() if row[:-6]}
  assert sequences_of(data, "val") == {user: row[-6:-3] for user, row in full.items()}
  assert sequences_of(data, "test") == {user: row[-3:] for user, row in full.items()}
  assert sequences_of(sequences.load(tmp_path / "out", "table")) == plain_sequences(rows)
  assert data.manifest["split"]["order"] == "file"


def test_rules_in_time_order_describe_themselves_as_ever():
  # A run resumes only on data whose manifest has the split that it started with.
  assert splits.describe(splits.Rule()) == dict(
    domain=None, keep_last=0, val=1, test=1, min_interactions=3, min_full=0,
    min_item_interactions=1, drop_short=True, legacy_overlap=False, legacy_drop_last_user=False)
  assert splits.parse(splits.describe(splits.Rule(order="file")), "x").order == "file"


def test_first_appearance_of_items(tmp_path):
  rows = random_rows(2)
  write_table(tmp_path, rows)
  make(TABLE, tmp_path, tmp_path / "out")
  seen = list(dict.fromkeys(row[1] for row in rows))
  for name in ("table", "table_music"):
    data = sequences.load(tmp_path / "out", name)
    assert data.first_seen[0] == 0 and data.first_seen.dtype == np.int32
    assert [data.item_ids[np.flatnonzero(data.first_seen == n + 1)[0]].decode()
            for n in range(len(seen))] == seen
  assert not (np.diff(data.first_seen[1:]) > 0).all()


def test_duplicates_name_both_lines(tmp_path):
  rows = [("a", "x", 1), ("b", "x", 1), ("a", "y", 1), ("a", "x", 2), ("a", "x", 1)]
  write_table(tmp_path, rows[:4], "user,item,time")
  make(TABLE, tmp_path, tmp_path / "out")  # Again at another time is a choice like any other.
  write_table(tmp_path, rows, "user,item,time")
  with pytest.raises(errors.UserError, match="line 6: duplicate of .* line 2, .* 'a', item 'x'"):
    make(TABLE, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("rows, message", [
  ([("a", "x", 1), ("", "x", 2)], "line 3: the user is empty"),
  ([("a", "x", 1), ("a" * 300, "x", 2)], "line 3: user .* more than 256 bytes"),
  ([("a", "x", 1), ("b", "x\0", 2)], "line 3: item .* zero byte"),
])
def test_ids_that_cannot_be_stored(tmp_path, rows, message):
  write_table(tmp_path, rows, "user,item,time")
  with pytest.raises(errors.UserError, match=message):
    make(TABLE, tmp_path, tmp_path / "out")


def test_domains_that_cannot_be(tmp_path):
  write_table(tmp_path, [("a", "x", t, 1, "../up") for t in range(5)])
  with pytest.raises(errors.UserError, match="data set name 'table_../up'"):
    make(TABLE, tmp_path, tmp_path / "out")
  write_table(tmp_path, [("a", "x", t, 1, f"d{t}") for t in range(65)])
  with pytest.raises(errors.UserError, match="65 domains"):
    make(TABLE, tmp_path, tmp_path / "out")
  with pytest.raises(errors.UserError, match="'film', no domain of the data"):
    make(TABLE, tmp_path, tmp_path / "out", domain_splits={"film": {}}, columns__domain="")
  with pytest.raises(errors.UserError, match="unknown field 'tset' of a split rule"):
    make(TABLE, tmp_path, tmp_path / "out", split={"tset": 1}, columns__domain="")


# Split rules.

RULES = [splits.Rule(), splits.Rule(val=2, test=3, min_interactions=6),
         splits.Rule(keep_last=15, val=2, test=3, min_interactions=5, min_full=7),
         splits.Rule(keep_last=15, val=2, test=3, min_interactions=5, min_full=7,
                     legacy_overlap=True), splits.Rule(val=0, test=1, min_interactions=2),
         splits.Rule(train=4, val=2, test=3, min_interactions=6)]


@pytest.mark.parametrize("rule", RULES)
def test_ranges_against_lists(rule):
  for n in range(40):
    kept = int(splits.kept_lengths(np.array([0, n]), rule)[1])
    row = list(range(n))[-rule.keep_last:] if rule.keep_last else list(range(n))
    assert kept == len(row)
    train, val, test = (row[b:e] for b, e in splits.ranges(np.array([kept]), rule)[0])
    full = rule.min_full or rule.min_interactions
    if n < rule.min_interactions:
      assert train == val == test == []
    elif n < full:
      assert train == row[:-3] and test == row[-3:]
      assert val == (row[-3:-1] if rule.legacy_overlap else [])
    else:
      assert len(val) == rule.val and len(test) == rule.test
      most = rule.train or n
      assert train + val + test == row[-(most + rule.val + rule.test):]
    assert bool(train) == (n >= rule.min_interactions)


@pytest.mark.parametrize("fields", [
  dict(order="random"), dict(test=0), dict(val=-1), dict(train=-1), dict(keep_last=2),
  dict(min_interactions=1), dict(min_full=2), dict(val=2, test=3, min_interactions=5)])
def test_rules_that_cannot_be(fields):
  with pytest.raises(errors.UserError, match="split rule"):
    splits.Rule(**fields)


# MovieLens-1M, as a small forgery and for real.

def write_movielens(folder, lines, movies=MOVIES):
  folder.mkdir(exist_ok=True, parents=True)
  (folder / "ratings.dat").write_text("".join(f"{line}\n" for line in lines))
  (folder / "movies.dat").write_text(movies)


LINES = ["7::1::5::30", "7::2::4::20", "7::3::1::20", "12::4::2::5", "12::2::3::6", "12::1::3::7"]


def test_movielens_comes_in_many_wrappings(tmp_path):
  def digest(raw_dir):
    make(ML1M, raw_dir, tmp_path / "out", check=False)
    data = sequences.load(tmp_path / "out", "ml1m")
    return sequences_of(data), data.manifest["raw_sha256"], data.features["genre"].ids.tolist()
  write_movielens(tmp_path / "a" / "ml-1m", LINES)
  want = digest(tmp_path / "a")
  assert want[0]["7"] == [("2", 20, 4.0), ("3", 20, 1.0), ("1", 30, 5.0)]
  assert want[2] == [b"", b"Comedy", b"Drama", b"Horror", b"War"]
  assert digest(tmp_path / "a" / "ml-1m") == want
  zipped = tmp_path / "b"
  zipped.mkdir()
  with zipfile.ZipFile(zipped / "ml-1m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name in ("ratings.dat", "movies.dat"):
      archive.write(tmp_path / "a" / "ml-1m" / name, f"ml-1m/{name}")
  assert digest(zipped) == want
  assert [p.name for p in zipped.iterdir()] == ["ml-1m.zip"]
  for name in ("ratings.dat", "movies.dat"):
    path = tmp_path / "a" / "ml-1m" / name
    path.with_suffix(".dat.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
  assert digest(tmp_path / "a") == want


@pytest.mark.parametrize("lines, message", [
  ([*LINES, "12::9::3::8"], "ratings.dat line 7: unknown item '9', not in .*movies.dat"),
  ([*LINES, "12::3::6::8"], r"ratings.dat line 7: rating 6 is out of range \[1, 5\]"),
  ([*LINES, "12::3::5"], "ratings.dat line 7: malformed row, 4 columns expected and 3 found"),
  ([*LINES, "12::3::5::"], "ratings.dat line 7: the time is empty"),
  ([*LINES, "7::1::5::99"], "ratings.dat line 7: duplicate of .*ratings.dat line 1, the same user "
                            "and item"),
  ([], "ratings.dat: is empty"),
])
def test_movielens_mistakes_name_the_line(tmp_path, lines, message):
  write_movielens(tmp_path, lines)
  with pytest.raises(errors.UserError, match=message):
    make(ML1M, tmp_path, tmp_path / "out", check=False)
  assert not list((tmp_path / "out").iterdir())


def test_nothing_is_replaced_before_all_is_right(tmp_path):
  write_movielens(tmp_path, LINES)
  make(ML1M, tmp_path, tmp_path / "out", check=False)
  before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
  write_movielens(tmp_path, LINES[:-1])
  command = [sys.executable, "-m", "recjax.prepare", f"--config={ML1M}", f"--raw_dir={tmp_path}",
             f"--data_dir={tmp_path / 'out'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert "ml1m_tgt.interactions is 3, expected 80649" in done.stderr
  assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*")} == before
  assert {p.name for p in (tmp_path / "out").iterdir()} == {
    "ml1m", "ml1m_src", "ml1m_tgt", "ml1m_tgt_asreleased"}


def test_an_empty_data_set_is_left_out_or_refused(tmp_path):
  write_movielens(tmp_path, LINES)
  manifests, printed = make(ML1M, tmp_path, tmp_path / "out", check=False)
  assert "ml1m_5core" not in manifests and "note: ml1m_5core is not written" in printed
  with pytest.raises(errors.UserError, match="the split rule of ml1m_5core keeps no interaction"):
    make(ML1M, tmp_path, tmp_path / "new")
  write_table(tmp_path, random_rows(0, n=50))
  with pytest.raises(errors.UserError, match="no interaction is left by .* of table, "):
    make(TABLE, tmp_path, tmp_path / "new", split__min_item_interactions=99, check=False)
  assert not list((tmp_path / "new").iterdir())


def test_the_command_needs_its_folders(tmp_path):
  for given, message in ((["--data_dir=x"], "--raw_dir is required"),
                         ([f"--raw_dir={tmp_path}"], "--data_dir is required"),
                         ([f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'o'}"],
                          "no MovieLens-1M in")):
    command = [sys.executable, "-m", "recjax.prepare", f"--config={ML1M}", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr


def test_foreign_folders_are_left_alone(tmp_path):
  write_movielens(tmp_path, LINES)
  precious = tmp_path / "out" / "ml1m_src" / "thesis.tex"
  precious.parent.mkdir(parents=True)
  precious.write_text("x")
  with pytest.raises(errors.UserError, match="ml1m_src exists and is no prepared data set"):
    make(ML1M, tmp_path, tmp_path / "out", check=False)
  assert precious.read_text() == "x" and len(list((tmp_path / "out").iterdir())) == 1


def test_legacy_switches(tmp_path):
  horror = "".join(f"{m}::T{m}::Horror\n" for m in range(1, 30))
  lines = [f"{user}::{m}::3::{m}" for user, n in ((1, 20), (2, 6), (3, 4), (9, 8))
           for m in range(1, n + 1)] + ["2::99::3::50"]
  write_movielens(tmp_path, lines, horror + "99::S::Drama\n")
  made = []
  for switch in (None, "legacy_overlap", "legacy_drop_last_user"):
    extra = {f"datasets__ml1m_tgt__{switch}": True} if switch else {}
    make(ML1M, tmp_path, tmp_path / "out", check=False, **extra)
    made.append(sequences.load(tmp_path / "out", "ml1m_tgt"))
  honest, overlap, last = made
  assert honest.manifest["users"] == 3 and honest.manifest["too_short_users"] == 1
  assert honest.manifest["interactions"] == 15 + 6 + 4 + 8
  assert honest.manifest["mean_train_length"] == round((10 + 3 + 3) / 3, 6)
  assert sequences_of(honest, "val").keys() == {"1", "9"}
  item = lambda row: [int(i) for i, _, _ in row]
  assert item(sequences_of(overlap, "val")["2"]) == [4, 5]
  assert item(sequences_of(overlap, "test")["2"]) == [4, 5, 6]
  assert sequences_of(last).keys() == {"1", "2", "3"} and last.manifest["users"] == 2


# Memory. A process of its own generates the file, another prepares it and tells its peak.

MEASURE = """
import sys
from recjax import memory, spec
from recjax.data import prepare
config = spec.load_config(sys.argv[1])
manifests = prepare.prepare(config, raw_dir=sys.argv[2], data_dir=sys.argv[3])
print(manifests["table"]["interactions"], int(memory.peak_gib() * 1024))
"""
GENERATE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.csv
rng, rows, block = np.random.default_rng(0), int(sys.argv[2]), 1 << 20
schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("time", pa.int64())])
with pyarrow.csv.CSVWriter(sys.argv[1], schema) as out:
  for begin in range(0, rows, block):
    n = min(block, rows - begin)
    user = (162_000 * rng.random(n) ** 2).astype(int)
    item = (59_000 * rng.random(n) ** 3).astype(int)
    out.write_table(pa.table({"user": user, "item": item, "time": 10**9 + begin + np.arange(n)}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path):
  peaks = []
  for rows in (5_000_000, 25_000_000):  # the size of MovieLens-25M, its users and items
    raw = tmp_path / str(rows)
    raw.mkdir()
    target = raw / "interactions.csv"
    subprocess.run([sys.executable, "-c", GENERATE, target, str(rows)], check=True)
    done = subprocess.run([sys.executable, "-c", MEASURE, TABLE, raw, tmp_path / "out"], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    written, peak_mb = map(int, done.stdout.split()[-2:])
    assert written == rows
    peaks.append(peak_mb)
    target.unlink()
  assert peaks[1] < 500 and peaks[1] < peaks[0] + 60, peaks  # 22 bytes a row would be 480 MB more
