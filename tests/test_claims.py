"""The rule by which a claim is read, and the numbers that it is fed."""

import numpy as np
import pytest
from test_comparisons import make_run

from recjax import claims, comparisons

B, W, U = "better", "worse", "undecided"


@pytest.mark.parametrize("mean, verdicts, expected", [
  (B, [B], "holds"),
  (B, [B, B, U], "holds"),
  (B, [B, U], "holds in part"),  # half is not more than half
  (B, [B, B, B, W], "holds in part"),
  (B, [U, U], "holds in part"),
  (U, [B, U, U], "holds in part"),
  (U, [B, B, W], "holds in part"),
  (None, [B, B], "holds in part"),  # without a mean effect nothing holds as a whole
  (U, [U, U], "undecided at our sample size"),
  (None, [U], "undecided at our sample size"),
  (U, [B, W], "does not hold"),
  (U, [W, U, U], "does not hold"),
  (W, [U, U], "does not hold"),
  (W, [B, B, W], "does not hold"),
  (W, [W], "does not hold"),
  (None, [], "not tested"),
])
def test_reading(mean, verdicts, expected):
  assert claims.reading(mean, verdicts) == expected


def make_runs(gains, *, seeds=(0, 1, 2), users=300, metric="full/mrr", skip=0):
  """Returns {name: runs}: each run is the users' level, its gain and noise."""
  rng = np.random.default_rng(0)
  level = rng.uniform(0.2, 0.6, users)
  out = {}
  for name, gain in gains.items():
    first = skip if name.startswith("late") else 0
    out[name] = []
    for seed in seeds:
      order = rng.permutation(np.arange(first, users))
      value = (level + gain + 0.02 * rng.normal(size=users))[order]
      out[name].append(make_run(seed, order, {f"train/{metric}": value}))
  return out


def read(runs, *items, default="full/mrr"):
  return claims.read(items, runs, {"none": "No transfer"}, context="train", default=default,
                     draws=200)


def test_planted_effects_are_read_as_planted():
  runs = make_runs({"none": 0, "a": 0.05, "b": 0.05, "c": -0.05, "same": 0})
  found = read(runs, ("help", (("a", "none"), ("b", "none"))),
               ("hurt", (("c", "none"),)), ("mixed", (("a", "none"), ("b", "none"), ("c", "none"))),
               ("differ", (("a", "b"), ("same", "none"))))
  assert [c["reading"] for c in found] == [
    "holds", "does not hold", "holds in part", "undecided at our sample size"]
  first = found[0]
  assert (first["better"], first["worse"], first["planned"]) == (2, 0, 2)
  assert first["comparisons"][0]["label"] == "a – No transfer"


def test_the_mean_effect_is_the_mean_of_the_comparisons_on_shared_users():
  runs = make_runs({"none": 0, "a": 0.05, "late": 0.02}, skip=50)
  claim, = read(runs, ("x", (("a", "none"), ("late", "none"))))
  users = [run.users for run in (runs["a"][0], runs["late"][0])]
  assert claim["mean"]["users"] == len(users[1]) == 250 and len(users[0]) == 300
  value = lambda name, seed, user: runs[name][seed].values["train/full/mrr"][
    list(runs[name][seed].users).index(user)]
  expected = np.mean([(value("a", s, u) - value("none", s, u)) / 2
                      + (value("late", s, u) - value("none", s, u)) / 2
                      for s in range(3) for u in range(50, 300)])
  assert claim["mean"]["difference"] == pytest.approx(expected, rel=1e-5)
  assert len(claim["mean"]["by_seed"]) == 3


def test_seeds_that_disagree_leave_it_open():
  runs = make_runs({"none": 0, "a": 0.05})
  flipped = runs["a"][1]
  flipped.values["train/full/mrr"][:] -= 0.06  # worse than `none` in this seed
  claim, = read(runs, ("x", (("a", "none"),)))
  assert claim["mean"]["difference"] > 0.02
  assert claim["reading"] == "undecided at our sample size"


def test_errors_and_a_metric_of_its_own():
  runs = make_runs({"none": 0, "a": -0.05}, metric="heldout/mse")
  claim, = read(runs, ("x", (("a", "none"),), "heldout/rmse"))
  assert claim["metric"] == "mse" and claims.is_error(claim)
  assert claim["mean"]["difference"] < 0 and claim["reading"] == "holds"


def test_missing_runs_are_counted_and_none_is_not_tested():
  runs = make_runs({"none": 0, "a": 0.05})
  part, nothing, other = read(runs, ("x", (("a", "none"), ("gone", "none"))),
                              ("y", (("gone", "none"),)), ("z", (("a", "none"),), "pop100/mrr"))
  assert part["planned"] == 2 and len(part["comparisons"]) == 1 and part["reading"] == "holds"
  assert nothing["reading"] == other["reading"] == "not tested" and nothing["mean"] is None


def test_holm_covers_the_comparisons_of_a_claim_and_the_means_of_all():
  rng = np.random.default_rng(3)
  runs = {name: [make_run(0, np.arange(80), {"train/full/mrr": rng.normal(size=80)})]
          for name in "abcd"}
  found = read(runs, ("x", (("a", "b"), ("c", "d"))), ("y", (("a", "c"),)))
  entries = found[0]["comparisons"]
  expected = comparisons.statistics.holm([e["p_t"] for e in entries])
  np.testing.assert_allclose([e["p_t_holm"] for e in entries], expected)
  means = [claim["mean"] for claim in found]
  expected = comparisons.statistics.holm([e["p_t"] for e in means])
  np.testing.assert_allclose([e["p_t_holm"] for e in means], expected)
  assert found[1]["comparisons"][0]["p_t_holm"] == found[1]["comparisons"][0]["p_t"]


def test_the_only_run_of_a_method_pairs_with_all_seeds():
  runs = make_runs({"none": 0, "a": 0.05})
  runs["knn"] = make_runs({"knn": 0.1}, seeds=(0,))["knn"]
  claim, = read(runs, ("x", (("a", "none"), ("knn", "none"))))
  assert [len(e["seeds"]) for e in claim["comparisons"]] == [3, 3]
  assert claim["reading"] == "holds"
