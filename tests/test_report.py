"""Statistics against hand values and scipy, alignment of users, and what the report says."""

import json

import fake_runs
import numpy as np
import pytest
from scipy import stats

from recjax import errors, plots, report, study, tables


def test_holm_by_hand():
  # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; the last is raised to .06.
  np.testing.assert_allclose(report.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(report.holm([0.9, 0.8]), [1.0, 1.0])
  assert len(report.holm([])) == 0


def test_paired_ttest_is_scipys():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 40)) + [[0.3], [0.0]]
  expected = stats.ttest_rel(a, b)
  np.testing.assert_allclose(report.paired_ttest(a - b), (expected.statistic, expected.pvalue))


@pytest.mark.parametrize("diff, expected", [
  (np.zeros(10), (0.0, 1.0)),
  (np.full(10, 0.1), (np.inf, 0.0)),  # the standard deviation of these is 1e-17, not 0
  (np.full(10, -0.1), (-np.inf, 0.0)),
  (np.array([0.3]), (0.0, 1.0)),
])
def test_paired_ttest_without_variance(diff, expected):
  assert report.paired_ttest(diff) == expected


def test_bootstrap_interval_covers_the_mean():
  rng = np.random.default_rng(1)
  diff = rng.normal(0.5, 1.0, (60, 400))
  low, high, p = report.paired_bootstrap(diff, 1000, 0)
  # 400 draws of a 95 % interval (slightly narrow at n = 60) cover 0.5 within 4 standard errors.
  assert 0.89 < np.mean((low < 0.5) & (high > 0.5)) < 0.985
  np.testing.assert_allclose(np.mean(high - low), 2 * 1.96 / np.sqrt(60), rtol=0.05)
  reference = np.array([report.paired_ttest(column)[1] for column in diff.T])
  assert np.corrcoef(p, reference)[0, 1] > 0.98


def test_bootstrap_rejects_a_true_null_rarely():
  diff = np.random.default_rng(2).normal(0.0, 1.0, (80, 500))
  _, _, p = report.paired_bootstrap(diff, 1000, 0)
  assert 0.02 < np.mean(p < 0.05) < 0.1


def test_bootstrap_is_symmetric_seeded_and_the_same_in_any_blocks():
  diff = np.random.default_rng(3).normal(0.1, 1.0, 50)
  low, high, p = report.paired_bootstrap(diff, 999, 7)
  np.testing.assert_allclose(report.paired_bootstrap(-diff, 999, 7), (-high, -low, p))
  np.testing.assert_allclose(report.paired_bootstrap(diff, 999, 7, max_entries=1), (low, high, p))
  assert report.paired_bootstrap(diff, 999, 8) != (low, high, p)


def test_bootstrap_without_variance():
  assert report.paired_bootstrap(np.zeros(20), 99, 0) == (0.0, 0.0, 1.0)
  low, high, p = report.paired_bootstrap(np.full(20, 0.25), 99, 0)
  assert low == high == 0.25 and p == pytest.approx(0.02)


def test_verdict_needs_both_tests_and_all_seeds():
  assert report.verdict((0.01, 0.02), [0.1, 0.2]) == "better"
  assert report.verdict((0.01, 0.02), [-0.1]) == "worse"
  assert report.verdict((0.01, 0.06), [0.1, 0.2]) == "undecided"
  assert report.verdict((0.01, 0.02), [0.3, -0.1]) == "undecided"
  assert report.verdict((0.0, 0.0), [0.0, 0.0]) == "undecided"


def test_aggregate_by_hand():
  got = report.aggregate([{"full": {"mrr": 0.1}}, {"full": {"mrr": 0.3}}])
  assert got["full"]["mrr"]["mean"] == pytest.approx(0.2)
  assert got["full"]["mrr"]["std"] == pytest.approx(np.sqrt(0.02))
  assert report.aggregate([{"mrr": 0.1}])["mrr"]["std"] is None


def make_run(seed, users, values, name="x"):
  return report.Run(name, seed, {}, np.array(users), {
    key: np.array(v, np.float32) for key, v in values.items()}, {})


def test_users_are_paired_by_id_and_only_shared_ones_count():
  key = "train/full/mrr"
  ours = make_run(0, [b"c", b"a", b"b"], {key: [0.5, 0.25, 0.75]})
  theirs = make_run(0, [b"a", b"b", b"d"], {key: [0.0, 0.5, 1.0]})
  by_user, by_seed = report.differences([ours], [theirs], [(key, key)])
  np.testing.assert_allclose(by_user, [[0.25], [0.25]])
  np.testing.assert_allclose(by_seed, [[0.25]])


def test_seeds_are_averaged_per_user_and_paired_by_seed():
  key = "train/full/mrr"
  runs = {
    "a": [make_run(s, [b"u", b"v"], {key: [0.5 + s, 0.0]}) for s in (0, 1, 2)],
    "b": [make_run(s, [b"v", b"u"], {key: [0.0, 0.5]}) for s in (2, 1)],
  }
  entry, = report.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=200)
  assert entry["seeds"] == [1, 2] and entry["users"] == 2
  assert entry["difference"] == pytest.approx(0.75)  # user u: mean of 1 and 2; user v: 0
  assert entry["p_seeds"] is None  # two seeds are too few


def test_identical_runs_are_undecided_with_p_one():
  key = "train/full/mrr"
  runs = {n: [make_run(s, [b"u", b"v"], {key: [0.5, 0.1]}) for s in range(3)] for n in "ab"}
  entry, = report.compare(runs, [("a – b", "a", "b")], metrics=("mrr",), draws=200)
  assert entry["p_t"] == entry["p_bootstrap"] == entry["p_t_holm"] == entry["p_seeds"] == 1.0
  assert entry["ci"] == [0.0, 0.0] and entry["verdict"] == "undecided"


def test_holm_covers_the_pairs_of_one_family_only():
  rng = np.random.default_rng(0)
  users = [b"%03d" % i for i in range(100)]
  keys = ("train/full/mrr", "train/pop100/mrr")
  runs = {n: [make_run(0, users, {k: rng.normal(size=100) for k in keys})] for n in "abc"}
  entries = report.compare(runs, [("b", "b", "a"), ("c", "c", "a")], metrics=("mrr",), draws=200)
  assert len(entries) == 4
  for protocol in ("full", "pop100"):
    family = [e for e in entries if e["protocol"] == protocol]
    expected = report.holm([e["p_t"] for e in family])
    np.testing.assert_allclose([e["p_t_holm"] for e in family], expected)


def test_curve_reads_the_validation_metric_of_full(tmp_path):
  rows = [{"step": 1, "split": "train", "full/ndcg@10": 9.0},
          {"step": 1, "split": "val", "full/ndcg@10": 0.1, "uniform100_global/ndcg@10": 0.5},
          {"step": 2, "split": "val", "full/ndcg@10": 0.2, "uniform100_global/ndcg@10": 0.6}]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 3, "spl')
  assert report.read_curve(path, "ndcg@10") == {1: 0.1, 2: 0.2}
  assert report.read_curve(tmp_path / "none", "ndcg@10") == {}


def test_curves_keep_the_steps_that_all_seeds_have():
  runs = [report.Run("x", s, {}, np.array([]), {}, c)
          for s, c in enumerate([{1: 0.1, 2: 0.2, 3: 0.3}, {1: 0.3, 2: 0.2}])]
  got = report.curves(runs)
  assert got["steps"] == [1, 2]
  np.testing.assert_allclose(got["mean"], [0.2, 0.2])
  width = np.subtract(got["high"], got["low"])
  np.testing.assert_allclose(width, [2 * np.sqrt(0.02), 0], atol=1e-9)


@pytest.mark.parametrize("spoil", [
  lambda path: path.unlink(),
  lambda path: path.write_bytes(path.read_bytes()[:100]),
  lambda path: np.savez(path, external_users=[b"u"], **{"train/full/mrr": np.array([np.nan])}),
  lambda path: np.savez(path, external_users=[b"u"], **{"train/full/mrr": np.zeros(2)}),
  lambda path: np.savez(path, users=np.array([1])),
])
def test_a_damaged_run_is_named(tmp_path, spoil):
  config = {"seed": 0, "dataset": "tgt", "transfer": {"mode": "none"}}
  fake_runs.write_run(tmp_path, config)
  report.load_run(tmp_path, "x", 0)
  spoil(tmp_path / "per_user_test.npz")
  with pytest.raises(errors.UserError, match="per_user_test.npz"):
    report.load_run(tmp_path, "x", 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A study of fake runs: the model gains 2 points, embedding transfer costs 2."""
  folder = tmp_path_factory.mktemp("study")
  config = fake_runs.make_study(folder)
  trainer = fake_runs.make_trainer({"model": 0.02, "embedding": -0.02})
  return folder / "w", study.run_study(config, folder / "w", train=trainer, command="the command")


def test_report_finds_the_planted_effects(built):
  _, result = built
  verdicts = {(e["run"], e["against"]): e["verdict"] for e in result["comparisons"]
              if (e["context"], e["protocol"], e["metric"]) == ("train", "full", "ndcg@10")}
  assert verdicts == {("model", "none"): "better", ("embedding", "none"): "worse",
                      ("model", "embedding"): "better", ("none", "popularity"): "better"}
  entry = next(e for e in result["comparisons"] if e["run"] == "model")
  assert entry["ci"][0] < 0.02 < entry["ci"][1] and entry["to_baseline"] and entry["p_seeds"] < 0.05


def test_markdown_tells_what_ran_and_what_came_out(built):
  folder, result = built
  text = (folder / "report.md").read_text()
  assert text.startswith("# A study\n\n**Generated data")
  for part in ("the command", "Context `train`", "context `train+val`", "1 x cpu", "A remark.",
               "18 min 45 s", "[61.18]", "embedding \\| MIP",
               "transfer_gain.png"):
    assert part in text, part
  assert "need attention" not in text
  mean = result["rows"][0]["results"]["train"]["full"]["ndcg@10"]["mean"]
  assert any(line.startswith("| none ") and f" {100 * mean:.2f} ± " in line
             for line in text.splitlines())


def test_every_table_has_as_many_cells_in_each_line(built):
  folder, _ = built
  block = []
  for line in [*(folder / "report.md").read_text().replace("\\|", "/").splitlines(), ""]:
    if line.startswith("|"):
      block.append(line.count("|"))
    else:
      assert len(set(block)) <= 1
      block = []


def test_the_written_report_is_the_report(built):
  folder, result = built
  assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(result))
  assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


def test_headline_is_aligned_and_side_by_side(built):
  _, result = built
  title, *lines = tables.headline(result).splitlines()
  assert "generated data" in title and len({len(line) for line in lines}) == 1
  assert "full NDCG@10" in lines[0] and "uniform100_global NDCG@10" in lines[0]
  firsts = [line.split()[0] for line in lines[1:]]
  assert firsts == ["chance", "popularity", "none", "model", "embedding"]


def test_plots_are_pictures_and_go_when_there_is_nothing_to_show(built, tmp_path):
  _, result = built
  names = [name for _, name in plots.draw(tmp_path, result)]
  assert names == ["transfer_gain.png", "learning_curves.png"]
  assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.glob("*.png"))
  rows = [{**row, "curve": {"steps": []}} for row in result["rows"]]
  empty = {**result, "comparisons": [], "rows": rows}
  assert plots.draw(tmp_path, empty) == [] and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("seconds, text", [
  (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
  assert tables.duration(seconds) == text
