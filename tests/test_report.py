"""What a study's report reads from its runs, and what it says."""

import json
import pathlib

import fake_runs
import ml_collections
import numpy as np
import pytest

from recjax import errors, plots, report, study

USERS = fake_runs.USERS


def test_aggregate_by_hand():
  got = report.aggregate([{"full": {"mrr": 0.1}}, {"full": {"mrr": 0.3}}])
  assert got["full"]["mrr"]["mean"] == pytest.approx(0.2)
  assert got["full"]["mrr"]["std"] == pytest.approx(np.sqrt(0.02))
  assert report.aggregate([{"mrr": 0.1}])["mrr"]["std"] is None


def test_curve_reads_the_validation_metric_of_full(tmp_path):
  rows = [{"step": 1, "split": "train", "full/ndcg@10": 9.0},
          {"step": 1, "split": "val", "full/ndcg@10": 0.1, "uniform100_global/ndcg@10": 0.5},
          {"step": 2, "split": "val", "full/ndcg@10": 0.2, "uniform100_global/ndcg@10": 0.6}]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 3, "spl')
  assert report.read_curve(path, "ndcg@10") == ("full/ndcg@10", {1: 0.1, 2: 0.2})
  assert report.read_curve(tmp_path / "none", "ndcg@10") == ("", {})


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
  lambda path: np.savez(path, external_users=[b"u"], **{"train/full/mrr": np.array([np.inf])}),
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


def test_a_user_whom_a_protocol_does_not_measure_is_no_damage(tmp_path):
  config = {"seed": 0, "dataset": "tgt", "transfer": {"mode": "none"}}
  fake_runs.write_run(tmp_path, config)
  path = tmp_path / "per_user_test.npz"
  with np.load(path) as stored:
    arrays = dict(stored)
  arrays["train/full/mrr"] = np.where(np.arange(USERS) < 3, np.nan, arrays["train/full/mrr"])
  np.savez(path, **arrays)
  values = report.load_run(tmp_path, "x", 0).values["train/full/mrr"]
  assert np.isnan(values).sum() == 3


@pytest.mark.parametrize("spoil", [
  lambda path: path.write_bytes(path.read_bytes()[:100]),
  lambda path: np.savez(path, rows=[USERS], popularity=[1], **{"train/full/dcg@10": np.zeros(1)}),
  lambda path: np.savez(path, rows=[0], popularity=[9], **{"train/full/dcg@10": np.zeros(1)}),
  lambda path: np.savez(path, rows=[0], popularity=[1], **{"train/full/dcg@10": np.zeros(2)}),
  lambda path: np.savez(path, rows=[0], **{"train/full/dcg@10": np.zeros(1)}),
])
def test_damaged_single_items_are_named(tmp_path, spoil):
  config = {"seed": 0, "dataset": "tgt", "transfer": {"mode": "none"}}
  fake_runs.write_run(tmp_path, config)
  spoil(tmp_path / "per_positive_test.npz")
  with pytest.raises(errors.UserError, match="per_positive_test.npz"):
    report.load_run(tmp_path, "x", 0)


def test_a_run_brings_its_slices_where_it_has_them(tmp_path):
  config = {"seed": 0, "dataset": "tgt", "transfer": {"mode": "none"}}
  fake_runs.write_run(tmp_path, config)
  run = report.load_run(tmp_path, "x", 0)
  assert run.lengths.shape == run.users.shape == (USERS,)
  assert run.by_popularity["train/full/dcg@10"].shape == (USERS, 4)
  (tmp_path / "per_positive_test.npz").unlink()
  fake_runs.write_run(tmp_path, config, older=True)
  run = report.load_run(tmp_path, "x", 0)
  assert run.lengths is None and run.by_popularity == {}
  assert run.references == ("popularity", "chance")


def test_metrics_that_a_report_reads():
  needed = lambda **kw: report.needed_metrics(ml_collections.ConfigDict(kw))
  assert needed() == ("ndcg@10", "recall@10", "mrr")
  assert needed(headline=("rmse", "mae")) == ("rmse", "mae", "mse")
  assert needed(headline=("mrr",), claims=(("x", (("a", "b"),), "full/ndcg@3"),
                                           ("y", (("a", "b"),)))) == ("mrr", "ndcg@3")


@pytest.mark.parametrize("baseline, baselines, expected", [
  ("a", None, {"a": None, "b": "a", "c": "a"}),
  ("a", {"b": "c"}, {"a": None, "b": "c", "c": None}),
  (None, {"b": "a", "c": None}, {"a": None, "b": "a", "c": None}),
])
def test_baseline_of_a_row(baseline, baselines, expected):
  config = ml_collections.ConfigDict({"baseline": baseline, "baselines": baselines})
  assert {run: report.baseline_of(config, run) for run in "abc"} == expected


@pytest.fixture(scope="module", autouse=True)
def no_plots():
  """tests/test_plots.py draws them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, "draw", lambda workdir, report: [])
    patch.setattr(study.gc, "collect", lambda: None)  # takes longer than a fake run
    yield


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


def test_the_written_report_is_the_report(built):
  folder, result = built
  assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(result))
  assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


def test_slices_are_those_of_the_runs(built):
  folder, result = built
  runs = [json.loads((folder / f"runs/none/seed{s}/report.json").read_text()) for s in range(3)]
  row = next(row for row in result["rows"] if row["run"] == "none")
  for kind, name, metric in (("history", "4-10", "mrr"), ("popularity", "head", "dcg@10")):
    piece = row["slices"][kind][name]
    each = [run["slices"][kind][name]["test"]["full"][metric] for run in runs]
    assert piece["results"]["full"][metric] == report.summary(each)
    assert piece["users"] == runs[0]["slices"][kind][name]["users"]
  references = {row["name"]: row for row in result["references"]}
  assert list(references) == ["chance", "popularity"]
  piece = references["popularity"]["slices"]["history"]["1-3"]
  assert piece["results"]["full"]["mrr"]["std"] is None
  gains = result["slices"]["gains"]
  assert {e["run"] for e in gains} == {"model", "embedding"} and result["slices"]["missing"] == []
  verdicts = {(e["run"], e["kind"]): e["verdict"] for e in gains if e["protocol"] == "full"}
  assert verdicts["model", "all"] == "better" and verdicts["embedding", "all"] == "worse"


def test_older_runs_are_reported_without_slices(tmp_path):
  def train(config, workdir):
    pathlib.Path(workdir).mkdir(parents=True)
    fake_runs.write_run(pathlib.Path(workdir), config.to_dict(), older=True)

  config = fake_runs.make_study(tmp_path, seeds=(0,))
  result = study.run_study(config, tmp_path / "w", train=train)
  assert result["slices"]["missing"] == ["none", "model", "embedding"]
  assert {e["kind"] for e in result["slices"]["gains"]} == {"all"}
  assert [row["slices"] for row in result["rows"]] == [{}, {}, {}]
  assert "`none`, `model`, `embedding`" in (tmp_path / "w/report.md").read_text()


def test_references_are_told_apart_by_data_set(tmp_path):
  config = fake_runs.make_study(tmp_path, seeds=(0,))
  config.rows += (("source", "a_source"),)
  result = study.run_study(config, tmp_path / "w", train=fake_runs.make_trainer())
  assert [row["label"] for row in result["references"]] == [
    "chance, tgt", "chance, src", "popularity, tgt", "popularity, src"]
