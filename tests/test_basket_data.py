"""Baskets from raw files to ranked: what is a basket, how they are cut, read and judged."""

import gzip
import itertools
import json

import evaluator_data
import jax.numpy as jnp
import numpy as np
import pytest
import test_prepare

from recjax import errors
from recjax.data import baskets, sequences
from recjax.evaluators import metrics, ranking

TAFENG = str(test_prepare.ROOT / "configs/data/tafeng.py")


def _lists(values, offsets, numbers, user):
  low, high = offsets[user:user + 2]
  rows = zip(numbers[low:high], values[low:high], strict=True)
  return [[v for _, v in group] for _, group in itertools.groupby(rows, lambda row: row[0])]


def test_baskets_are_runs_of_equal_marks_within_a_user():
  rng = np.random.default_rng(0)
  lengths = np.array([0, 3, 0, 9, 1, 0, 7, 0])
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  marks = np.concatenate([np.sort(rng.integers(0, 4, n)) for n in lengths]).astype(int)
  found = baskets.Baskets(marks, offsets)
  for user, (low, high) in enumerate(itertools.pairwise(offsets)):
    runs = [len(list(g)) for _, g in itertools.groupby(marks[low:high])]
    assert found.counts[user] == len(runs)
    assert found.numbers[low:high].tolist() == [
      n for n, size in enumerate(runs, 1) for _ in range(size)]
    for first, last in itertools.combinations(range(len(runs) + 1), 2):
      edges = np.zeros((len(lengths), 2), int)
      edges[user] = first, last
      assert found.rows(edges)[user].tolist() == [sum(runs[:first]), sum(runs[:last])]
  assert found.total == found.counts.sum() and not found.rows(np.zeros((8, 3, 2), int)).any()


def _write(folder, history, future):
  for name, table in (("history", history), ("future", future)):
    with gzip.open(folder / f"tafeng_{name}.json.gz", "wt") as stream:
      json.dump({user: [[-1], *rows, [-1]] for user, rows in table.items()}, stream)


def test_files_of_baskets_are_cut_by_baskets(tmp_path):
  history = {"7": [[3, 1], [2], [3, 4, 5]], "12": [[9], [1, 3]], "5": [[2]]}
  _write(tmp_path, history, {"7": [[1, 2]], "12": [[9]], "5": [[4]]})
  manifests, _ = test_prepare.make(TAFENG, tmp_path, tmp_path / "out", check=False)
  data = sequences.load(tmp_path / "out", "tafeng")
  assert [manifests["tafeng"][k] for k in ("baskets", "evaluated_users", "interactions")] == [
    9, 2, 14]
  assert data.manifest["split"]["unit"] == "baskets"
  numbers = data.basket_numbers()
  names = [name.decode() for name in data.user_ids]
  items = np.array([int(i or 0) for i in data.item_ids])[data.items]
  for user, want in (("7", [*history["7"], [1, 2]]), ("12", [*history["12"], [9]])):
    where = names.index(user)
    assert _lists(items, data.offsets, numbers, where) == want
    spans = [data.span(split) for split in sequences.SPLITS]
    parts = [items[begin[where]:end[where]].tolist() for begin, end in spans]
    assert parts == [sum(want[:-2], []), want[-2], want[-1]]


@pytest.mark.parametrize("history, future, message", [
  ({"1": [[2], []]}, {"1": [[3]]}, "history.* user '1', basket 2: a list of item numbers"),
  ({"1": [[2, "x"]]}, {"1": [[3]]}, "history.* user '1', basket 1"),
  ({"1": [[2]]}, {}, r"future.*user '1': \[\[-1\], basket, ..., \[-1\]\] expected, not None"),
  ({"1": [[2]]}, {"1": [[3]], "4": [[1]]}, "future.*user '4' is not in .*history"),
  ({"1": [[2, 3, 2]]}, {"1": [[3]]}, "history.* user '1', basket 1: duplicate of"),
])
def test_malformed_baskets_are_named(tmp_path, history, future, message):
  _write(tmp_path, history, future)
  with pytest.raises(errors.UserError, match=message):
    test_prepare.make(TAFENG, tmp_path, tmp_path / "out", check=False)


@pytest.mark.parametrize("column", [True, False])
def test_a_table_has_baskets_by_column_or_by_time(tmp_path, column):
  # Two orders in a day, their rows mixed: only the column tells them apart.
  rows = [("u", "a", 1, "o1"), ("u", "b", 1, "o2"), ("u", "c", 1, "o1"), ("u", "d", 2, "o3"),
          ("u", "e", 2, "o3"), ("u", "f", 3, "o4"), ("v", "a", 1, "o5"), ("v", "b", 2, "o5")]
  cut = len(rows[0]) if column else 3
  test_prepare.write_table(tmp_path, [row[:cut] for row in rows],
                           header=",".join(("user", "item", "time", "basket")[:cut]))
  unit = dict(split__unit="baskets", split__min_interactions=3, split__min_full=3)
  manifests, _ = test_prepare.make(test_prepare.TABLE, tmp_path, tmp_path / "out", **unit)
  data = sequences.load(tmp_path / "out", "table")
  found = _lists([data.item_ids[i].decode() for i in data.items], data.offsets,
                 data.basket_numbers(), 1)
  assert found == [*([["a", "c"], ["b"]] if column else [["a", "b", "c"]]), ["d", "e"], ["f"]]
  assert manifests["table"]["evaluated_users"] == 1
  assert data.lengths("train")[1] == 3 and data.lengths("val")[1] == 2
  if column:
    with pytest.raises(errors.UserError, match="shards do not keep baskets"):
      test_prepare.make(test_prepare.TABLE, tmp_path, tmp_path / "out", shards=2)


def test_sets_are_judged_as_the_mean_over_all_orders_of_ties():
  rng = np.random.default_rng(0)
  for _ in range(12):
    scores, relevant = rng.integers(0, 3, 6), np.zeros(6, bool)
    relevant[rng.choice(6, rng.integers(1, 4), replace=False)] = True
    where = np.flatnonzero(relevant)
    greater = np.array([[(scores > scores[p]).sum() for p in where]])
    equal = np.array([[(scores == scores[p]).sum() - 1 for p in where]])
    found = metrics.compute_sets(greater, equal, np.ones_like(greater, bool), (1, 2, 4, 9))
    lists = [relevant[list(order)] for order in itertools.permutations(range(6))
             if (np.diff(scores[list(order)]) <= 0).all()]
    for k in (1, 2, 4, 9):
      hits = np.array([top[:k].sum() for top in lists])
      assert found[f"hit@{k}"][0] == pytest.approx((hits > 0).mean())
      precision, recall = hits.mean() / k, hits.mean() / len(where)
      harmonic = 2 * precision * recall / (precision + recall) if hits.any() else 0
      assert found[f"f1@{k}"][0] == pytest.approx(harmonic)


def _repeating():
  rng = np.random.default_rng(3)
  users = [(rng.integers(1, 8, rng.integers(1, 9)), rng.integers(1, 8, 2), rng.integers(1, 10, 3))
           for _ in range(15)]
  return evaluator_data.dataset(users, 12, in_domain=range(1, 11))


def test_repeats_are_ranked_among_all_items():
  data = _repeating()
  evaluator = ranking.Ranking(data, protocols=("full_repeats", "full"), ks=(2, 5), batch_size=8,
                              history_length=4)
  table = np.random.default_rng(0).integers(0, 6, (data.num_users + 1, 13)).astype(np.float32)
  found = evaluator.run(evaluator_data.lookup, table).values["train"]
  alone = ranking.Ranking(data, protocols=("full_repeats",), ks=(2, 5), batch_size=8)
  same = alone.run(evaluator_data.lookup, table).values["train"]["full_repeats"]
  begin, end = data.span("test")
  for place, user in enumerate(evaluator.users):
    positives = np.unique(data.items[begin[user]:end[user]])
    pool = table[user][1:11]  # the domain, what the user owned included
    greater = np.array([[(pool > table[user][p]).sum() for p in positives]])
    equal = np.array([[(pool == table[user][p]).sum() - 1 for p in positives]])
    mask = np.ones_like(greater, bool)
    want = {**metrics.compute(greater, equal, mask, (2, 5)),
            **metrics.compute_sets(greater, equal, mask, (2, 5))}
    assert want.keys() == found["full_repeats"].keys()
    for name, value in want.items():
      assert found["full_repeats"][name][place] == same[name][place] == np.float32(value[0])
  assert "f1@2" not in found["full"] and (found["full"]["mrr"] != same["mrr"]).any()


def test_personal_frequency_counts_the_whole_history():
  data = _repeating()
  evaluator = ranking.Ranking(data, protocols=("full_repeats",), ks=(5,), batch_size=8,
                              history_length=2)  # what a model would read
  counts = data.item_counts("train")
  want = {}
  for context in ("train", "train+val"):
    table = np.zeros((data.num_users + 1, 13), np.float32)
    for user in evaluator.users:
      for split in context.split("+"):
        begin, end = data.span(split)
        np.add.at(table[user], data.items[begin[user]:end[user]], 1000)
    want[context] = evaluator.run(evaluator_data.lookup, table + counts).values["train"]
  references = evaluator.references()
  assert list(references) == ["popularity", "personal_frequency", "chance"]
  for context, values in want.items():
    for name, value in values["full_repeats"].items():
      np.testing.assert_array_equal(
        references["personal_frequency"].values[context]["full_repeats"][name], value)
  usual = ranking.Ranking(data, protocols=("full",), batch_size=8)
  assert list(usual.references()) == ["popularity", "chance"]


def test_score_functions_get_the_baskets_of_the_history():
  data = _repeating()
  last = jnp.asarray(data.lengths("train"))  # a basket for each item
  def score(shift, users, histories, numbers):
    back = jnp.arange(5)[::-1]
    right = jnp.where(histories > 0, numbers == last[users][:, None] - back + shift, numbers == 0)
    return jnp.where(right.all(1)[:, None], 0.0, jnp.nan) + jnp.zeros(data.num_items + 1)
  evaluator = ranking.Ranking(data, protocols=("full_repeats",), batch_size=16, history_length=5,
                              contexts=("train",), baskets=True)
  evaluator.run(score, 0)
  with pytest.raises(FloatingPointError):
    evaluator.run(score, 1)
