"""Preparation of published data: the counts and the very rows that others published."""

import gzip
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import test_prepare

from recjax import spec
from recjax.data import sequences

FOOD_KITCHEN = str(test_prepare.ROOT / "configs/data/food_kitchen.py")


def test_real_movielens(raw_dir, tmp_path):
  """Table 1 of the survey, and no disagreement with a public file."""
  command = [sys.executable, "-m", "recjax.prepare", f"--config={test_prepare.ML1M}",
             f"--raw_dir={raw_dir}", f"--data_dir={tmp_path}",
             "--config.datasets.ml1m.min_item_interactions=5",
             "--config.check=false"]
  done = subprocess.run(command, cwd=test_prepare.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "5,811" in done.stdout and "5,810" in done.stdout
  src, tgt = (sequences.load(tmp_path, f"ml1m_{d}") for d in ("src", "tgt"))
  counts = lambda d: [d.manifest[k] for k in ("users", "items", "interactions", "too_short_users")]
  assert counts(src) == [6040, 2656, 621_521, 98]
  assert counts(tgt) == [5811, 1050, 80_649, 229]
  assert abs(src.manifest["mean_train_length"] - 97.9) < 0.05
  assert abs(tgt.manifest["mean_train_length"] - 8.846) < 0.001
  assert not (src.in_domain & tgt.in_domain).any()
  assert (src.in_domain | tgt.in_domain)[1:].all()
  assert (tgt.num_items, tgt.num_users) == (3706, 6040)
  titles = np.load(tmp_path / "ml1m_tgt/item_titles.npy")
  assert titles[src.item_ids == b"1"].tolist() == [b"Toy Story (1995)"]
  # The file that ML-1M leaderboards share: the same 999,611 rows in the same order.
  theirs = raw_dir / "sasrec-ml-1m"
  if theirs.is_dir():
    ours = sequences.load(tmp_path, "ml1m")
    back = lambda name: np.loadtxt(theirs / f"sas_to_original_{name}.txt", np.int64)[:, 1]
    rows = np.loadtxt(theirs / "ml-1m.txt.gz", np.int64)
    user, item = back("users")[rows[:, 0] - 1], back("items")[rows[:, 1] - 1]
    order = np.argsort(user, kind="stable")
    number = np.array([0, *ours.item_ids[1:].astype(np.int64)])
    assert np.array_equal(number[ours.items], item[order])
    assert np.array_equal(np.diff(ours.offsets)[1:], np.bincount(user)[1:])


def test_real_douban(raw_dir, tmp_path):
  if not (raw_dir / "douban-book-music").is_dir():
    pytest.skip(f"no douban-book-music in {raw_dir}")
  config = str(test_prepare.ROOT / "configs/data/douban.py")
  manifests, _ = test_prepare.make(config, raw_dir, tmp_path)
  assert {name: (m["users"], m["interactions"]) for name, m in manifests.items()} == {
    "douban": (2012, 165_750), "douban_book": (1870, 96_041), "douban_music": (1330, 69_709)}
  book, music = (sequences.load(tmp_path, f"douban_{name}") for name in ("book", "music"))
  both = np.isin(book.users_in("train"), music.users_in("train"))
  assert both.sum() > 1000 and np.array_equal(book.user_ids, music.user_ids)
  assert not (book.in_domain & music.in_domain).any()


def test_real_movielens_passes_its_own_check(raw_dir, tmp_path):
  manifests, _ = test_prepare.make(test_prepare.ML1M, raw_dir, tmp_path)
  assert manifests["ml1m_tgt"]["evaluated_users"] == 5811
  _agrees_with_the_release(raw_dir / "authors-release", tmp_path)
  manifests, _ = test_prepare.make(test_prepare.ML1M, raw_dir, tmp_path,
                                   datasets__ml1m_tgt__legacy_drop_last_user=True)
  assert manifests["ml1m_tgt"]["users"] == 5810
  assert manifests["ml1m_tgt"]["interactions"] == 80_634


def _agrees_with_the_release(theirs, data_dir):
  """The released Caser files user by user, and the released numbering of items."""
  if not theirs.is_dir():
    return
  data = sequences.load(data_dir, "ml1m_tgt_asreleased")
  for split, name in (("train", "c_train"), ("val", "c_eval"), ("test", "c_test")):
    rows = np.loadtxt(theirs / f"{name}.txt.gz", np.int64)[:, :2]
    begin, end = data.span(split)
    users = np.repeat(np.arange(data.num_users + 1), end - begin)
    items = sequences.take_ranges(data.items, begin, end)
    ours = np.stack([data.user_ids[users].astype(np.int64), data.item_ids[items].astype(np.int64)])
    assert np.array_equal(ours.T, rows[np.argsort(rows[:, 0], kind="stable")]), split
    assert len(np.unique(users)) == 5577
  numbers = json.loads((theirs / "smap.json").read_text())
  assert {i.decode(): n - 1 for i, n in zip(data.item_ids[1:], data.first_seen[1:].tolist(),
                                            strict=True)} == numbers
  # Table 1's items with metadata: all and source agree; 512 of the target are not what is there.
  counts = lambda name: sequences.load(data_dir, name).manifest["feature_coverage"]
  assert [counts(f"ml1m{d}")["survey_director"] for d in ("", "_src", "_tgt")] == [1987, 1381, 606]


def test_real_food_and_kitchen(raw_dir, tmp_path):
  if not (raw_dir / "amazon-food-kitchen").is_dir():
    pytest.skip("no amazon-food-kitchen")
  manifests, printed = test_prepare.make(FOOD_KITCHEN, raw_dir, tmp_path)
  folder = raw_dir / "amazon-food-kitchen"
  items = json.loads((folder / "map_item_50.txt").read_text())
  asin = {number: (name, domain) for name, (number, domain) in items.items()}
  users = list(json.loads((folder / "map_user_50.txt").read_text()))
  with gzip.open(folder / "afk_50_preprocessed.txt.gz", "rt") as lines:
    rows = [[tuple(map(int, t.split("|"))) for t in line.split()[1:]] for line in lines]
  for name, domain, last in (("food_kitchen", None, 0), ("kitchen_src", 1, 0), ("food_tgt", 0, 7)):
    data = sequences.load(tmp_path, name)
    want = {user: [(asin[i][0], when) for i, when in sorted(row, key=lambda r: r[1])
                   if domain in (None, asin[i][1])][-last:]
            for user, row in zip(users, rows, strict=True)}
    for user in range(1, data.num_users + 1):
      low, high = data.offsets[user:user + 2]
      found = zip(data.items[low:high], data.times[low:high], strict=True)
      found = [(data.item_ids[i].decode(), t) for i, t in found]
      assert found == want[data.user_ids[user].decode()]
  # The config's docstring prints what is written.
  table = spec.load_config(FOOD_KITCHEN).expect
  text = pathlib.Path(FOOD_KITCHEN).read_text()
  for name in table:
    line = re.search(rf"^{name} .*", printed, re.MULTILINE)[0].split()[:5]
    assert line == re.search(rf"^  {name} .*", text, re.MULTILINE)[0].split()[:5]


def test_real_tafeng(raw_dir, tmp_path):
  """Every basket is where it was, the last one to test and the one before it to validate."""
  if not (raw_dir / "tafeng").is_dir():
    pytest.skip("no tafeng")
  manifests, _ = test_prepare.make(str(test_prepare.ROOT / "configs/data/tafeng.py"), raw_dir,
                                   tmp_path)
  counts = manifests["tafeng"]
  assert counts["baskets"] - counts["evaluated_users"] == 77_369
  read = lambda name: json.loads(gzip.open(raw_dir / f"tafeng/tafeng_{name}.json.gz").read())
  history, future = read("history"), read("future")
  data = sequences.load(tmp_path, "tafeng")
  number = np.array([0, *data.item_ids[1:].astype(np.int64)])
  splits = [data.span(name) for name in ("train", "val", "test")]
  for user in range(1, data.num_users + 1, 7):
    name = data.user_ids[user].decode()
    baskets = history[name][1:-1] + future[name][1:-1]
    want = [sum(baskets[:-2], []), baskets[-2], baskets[-1]]
    assert [number[data.items[begin[user]:end[user]]].tolist() for begin, end in splits] == want


def test_real_lastfm(raw_dir, tmp_path):
  """Everybody's artists are those of the file that five users play."""
  if not (raw_dir / "lastfm-hetrec2011").is_dir():
    pytest.skip("no lastfm-hetrec2011")
  test_prepare.make(str(test_prepare.ROOT / "configs/data/lastfm.py"), raw_dir, tmp_path)
  lines = (raw_dir / "lastfm-hetrec2011/user_artists.dat").read_text().splitlines()[1:]
  users, artists, _ = np.array([line.split("\t") for line in lines]).T
  _, place, counts = np.unique(artists, return_inverse=True, return_counts=True)
  known = counts[place] >= 5
  data = sequences.load(tmp_path, "lastfm")
  for user in range(1, data.num_users + 1, 9):
    low, high = data.offsets[user:user + 2]
    found = {data.item_ids[i].decode() for i in data.items[low:high]}
    mine = known & (users == data.user_ids[user].decode())
    assert found == {f"lastfm:{artist}" for artist in artists[mine]} and len(found) == high - low
