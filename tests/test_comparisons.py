"""Pairing of users and seeds, families of tests, references, errors and slices."""

import dataclasses

import numpy as np
import pytest

from recjax import comparisons, report, slices, statistics

KEY = "train/full/mrr"


def make_run(seed, users, values, *, details=None, name="x"):
  return report.Run(name, seed, details or {}, np.array(users), {
    key: np.array(v, np.float32) for key, v in values.items()}, {})


def test_users_are_paired_by_id_and_only_shared_ones_count():
  ours = make_run(0, [b"c", b"a", b"b"], {KEY: [0.5, 0.25, 0.75]})
  theirs = make_run(0, [b"a", b"b", b"d"], {KEY: [0.0, 0.5, 1.0]})
  by_user, by_seed = comparisons.differences([ours], [theirs], [(KEY, KEY)])
  np.testing.assert_allclose(by_user, [[0.25], [0.25]])
  np.testing.assert_allclose(by_seed, [[0.25]])


def test_seeds_are_averaged_per_user_and_paired_by_seed():
  runs = {
    "a": [make_run(s, [b"u", b"v"], {KEY: [0.5 + s, 0.0]}) for s in (0, 1, 2)],
    "b": [make_run(s, [b"v", b"u"], {KEY: [0.0, 0.5]}) for s in (2, 1)],
  }
  entry, = comparisons.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=200)
  assert entry["seeds"] == [1, 2] and entry["users"] == 2
  assert entry["difference"] == pytest.approx(0.75)  # user u: mean of 1 and 2; user v: 0
  assert entry["p_seeds"] is None  # two seeds are too few


def test_identical_runs_are_undecided_with_p_one():
  runs = {n: [make_run(s, [b"u", b"v"], {KEY: [0.5, 0.1]}) for s in range(3)] for n in "ab"}
  entry, = comparisons.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=200)
  assert entry["p_t"] == entry["p_bootstrap"] == entry["p_t_holm"] == entry["p_seeds"] == 1.0
  assert entry["ci"] == [0.0, 0.0] and entry["verdict"] == "undecided"


def test_holm_covers_the_pairs_of_one_family_only():
  rng = np.random.default_rng(0)
  users = [b"%03d" % i for i in range(100)]
  keys = ("train/full/mrr", "train/pop100/mrr")
  runs = {n: [make_run(0, users, {k: rng.normal(size=100) for k in keys})] for n in "abc"}
  pairs = [("b", "b", "a"), ("c", "c", "a")]
  entries = comparisons.compare(runs, pairs, metrics=("mrr",), draws=200)
  assert len(entries) == 4
  for protocol in ("full", "pop100"):
    family = [e for e in entries if e["protocol"] == protocol]
    expected = statistics.holm([e["p_t"] for e in family])
    np.testing.assert_allclose([e["p_t_holm"] for e in family], expected)


def test_a_run_without_seeds_pairs_with_every_seed():
  one = make_run(0, [b"u", b"v"], {KEY: [0.5, 0.5]})
  many = [make_run(s, [b"u", b"v"], {KEY: [0.1 * s, 0.0]}) for s in (3, 4, 5)]
  for runs, sign in (({"a": [one], "b": many}, 1), ({"b": [one], "a": many}, -1)):
    entry, = comparisons.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=50)
    assert entry["seeds"] == [3, 4, 5] and entry["p_seeds"] is not None
    np.testing.assert_allclose(entry["by_seed"], sign * np.array([0.35, 0.3, 0.25]), atol=1e-7)
  assert comparisons.pair_runs([one], []) == ([], [], [])
  assert comparisons.pair_runs([], many) == ([], [], [])


def test_any_reference_with_values_per_user_can_be_compared_with():
  run = make_run(0, [b"u", b"v"], {
    "train/all/mse": [0.5, 0.25], "train+val/all/mse": [0.25, 0.25], "item_bias/all/mse": [1, 0.5]},
    details={"references": ["item_bias", "global_mean"]})
  compare = lambda other: comparisons.compare(
    {"a": [run]}, [("a – x", "a", other)], metrics=("mse",), draws=50)
  entries = {entry["context"]: entry for entry in compare("item_bias")}
  assert set(entries) == {"train", "train+val"}  # and not the reference against itself
  assert entries["train"]["difference"] == pytest.approx(-0.375)
  assert compare("global_mean") == compare("popularity") == []


def test_smaller_errors_are_better():
  rng = np.random.default_rng(0)
  users, base = np.arange(100), rng.uniform(size=100)
  key = "train/all/mse"
  runs = {"a": [make_run(0, users, {key: base - 0.1 + 0.01 * rng.normal(size=100)})],
          "b": [make_run(0, users, {key: base})]}
  metrics = comparisons.tested(("rmse", "ndcg@10"))
  assert metrics == ("rmse", "mse", "mae", "ndcg@10")
  entry, = comparisons.compare(runs, [("a – b", "a", "b")], metrics=metrics, draws=200)
  assert entry["difference"] < 0 and entry["verdict"] == "better"
  entry, = comparisons.compare(runs, [("b – a", "b", "a")], metrics=metrics, draws=200)
  assert entry["verdict"] == "worse"


def test_a_pooled_error_is_tested_on_what_users_have():
  assert comparisons.per_user_metric("rmse", {"mse", "mae"}) == "mse"
  assert comparisons.per_user_metric("rmse", {"rmse", "mse"}) == "rmse"
  assert comparisons.per_user_metric("ndcg@10", {"mse"}) is None


def test_runs_of_other_users_are_not_compared():
  runs = {"a": [make_run(0, [b"u"], {KEY: [1.0]})], "b": [make_run(0, [b"v"], {KEY: [1.0]})]}
  assert comparisons.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=50) == []
  sliced = comparisons.by_slice(runs, [("a – b", "a", "b")], metric=lambda run: "mrr",
                                context="train", protocols=("full",), draws=50)
  assert sliced == []


def test_many_pairs_give_what_each_gives_alone(monkeypatch):
  rng = np.random.default_rng(0)
  runs = {name: [make_run(0, np.arange(n), {KEY: rng.normal(size=n)})]
          for name, n in (("a", 60), ("b", 60), ("c", 40), ("d", 60))}
  pairs = [("b", "b", "a"), ("c", "c", "a"), ("d", "d", "a")]
  together = comparisons.compare(runs, pairs, metrics=("mrr",), draws=100)
  monkeypatch.setattr(comparisons, "_BUDGET", 1)
  assert comparisons.compare(runs, pairs, metrics=("mrr",), draws=100) == together
  alone, = comparisons.compare(runs, pairs[1:2], metrics=("mrr",), draws=100)
  assert alone["ci"] == together[1]["ci"] and alone["users"] == 40


def sliced_runs(gain, *, users=400, seeds=(0, 1, 2)):
  """Returns {"none", "model"}: the model gains `gain` (by place in HISTORY) on every user."""
  rng = np.random.default_rng(0)
  level = rng.uniform(0.2, 0.6, users)
  lengths = rng.choice([2, 7, 30], users)
  shift = np.asarray(gain)[slices.of_history(lengths)]
  runs = {"none": [], "model": []}
  for seed in seeds:
    for name, added in (("none", 0), ("model", shift)):
      order = rng.permutation(users)
      value = (level + added + 0.02 * rng.normal(size=users)).astype(np.float32)
      items = np.stack([np.full(users, np.nan), value, value, -value], axis=1)
      items[lengths != 2, 1] = np.nan  # Users of short histories alone have tail items.
      run = make_run(seed, order, {KEY: value[order]})
      runs[name].append(dataclasses.replace(
        run, lengths=lengths[order], by_popularity={"train/full/rr": items[order]}))
  return runs, lengths


def test_slices_find_where_transfer_hurts():
  runs, lengths = sliced_runs([0, -0.05, 0.0, 0.05, 0])
  entries = comparisons.by_slice(runs, [("model", "model", "none")], metric=lambda run: "mrr",
                                 context="train", protocols=("full", "pop100"), draws=300)
  found = {(e["kind"], e["slice"]): e for e in entries}
  assert set(found) == {("all", "all"), ("history", "1-3"), ("history", "4-10"),
                        ("history", "11-50"), ("popularity", "tail"), ("popularity", "mid"),
                        ("popularity", "head")}  # nobody is cold, and pop100 was not measured
  assert found["history", "1-3"]["verdict"] == "worse"
  assert found["history", "4-10"]["verdict"] == "undecided"
  assert found["history", "11-50"]["verdict"] == "better"
  assert found["popularity", "tail"]["verdict"] == "worse"
  assert found["popularity", "tail"]["metric"] == "rr"
  for name, length in (("1-3", 2), ("4-10", 7), ("11-50", 30)):
    entry = found["history", name]
    assert entry["users"] == (lengths == length).sum()
    assert entry["ci"][0] < entry["difference"] < entry["ci"][1]
  weighted = sum(e["users"] * e["difference"] for e in entries if e["kind"] == "history")
  assert weighted / len(lengths) == pytest.approx(found["all", "all"]["difference"], abs=1e-9)
  assert found["popularity", "mid"]["difference"] == pytest.approx(
    -found["popularity", "head"]["difference"])
  # Holm covers all slices of the call.
  np.testing.assert_allclose([e["p_t_holm"] for e in entries],
                             statistics.holm([e["p_t"] for e in entries]))


def test_small_slices_have_no_verdict_and_do_not_count_in_holm():
  runs, lengths = sliced_runs([0, 0.05, 0.05, 0.05, 0], users=45)
  entries = comparisons.by_slice(runs, [("model", "model", "none")], metric=lambda run: "mrr",
                                 context="train", protocols=("full",), draws=100)
  small = [e for e in entries if e["users"] < comparisons.SLICE_USERS]
  assert small and all(e["verdict"] is None and e["ci"] is None for e in small)
  tested = [e for e in entries if e not in small]
  np.testing.assert_allclose([e["p_t_holm"] for e in tested],
                             statistics.holm([e["p_t"] for e in tested]))


def test_older_runs_have_the_slice_of_everybody_only():
  runs, _ = sliced_runs([0, 0, 0, 0, 0])
  runs = {name: [dataclasses.replace(run, lengths=None, by_popularity={}) for run in group]
          for name, group in runs.items()}
  entry, = comparisons.by_slice(runs, [("model", "model", "none")], metric=lambda run: "mrr",
                                context="train", protocols=("full",), draws=50)
  assert entry["kind"] == "all"
