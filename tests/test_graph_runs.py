"""Runs on graphs: training, resuming, transfer by external id, evaluation, export."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pa_parquet
import pytest
import tiny
import tiny_graph

from configs import social
from recjax import analysis, errors, evaluate, export, recommend, report, results, train
from recjax.data import graphs

MODELS = ("transe", "transh", "transr", "transd", "complex", "proje", "tucker")


@pytest.fixture(scope="module")
def transe(tmp_path_factory):
  """The workdir of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp("runs") / "transe"
  train.train_and_evaluate(tiny_graph.config(), workdir)
  return workdir


def test_a_run_reports_and_keeps_its_constraints(transe):
  found = results.finished(transe)
  assert found["data"]["name"] == "line" and found["run"]["steps"] == 12
  assert set(found["test"]) == {"filtered", "raw", "filtered_tail", "filtered_head"}
  assert found["test"]["raw"]["mr"] >= found["test"]["filtered"]["mr"]
  assert found["slices"] == {} and found["chance"]["raw"]["mr"] == 20.5
  values = tiny.state(transe)
  for leaf in ("entity", "relation"):
    norms = np.linalg.norm(values[f"params/{leaf}/embedding"], axis=1)
    assert norms.max() <= 1 + 1e-6 and norms.min() > 0.1
  run = report.load_run(transe, "transe", 0, metrics=("mrr", "mr"))
  assert run.users[0].count(b"\t") == 2 and len(set(run.users)) == 12
  assert run.values["train/filtered/mrr"].mean() == pytest.approx(found["test"]["filtered"]["mrr"])
  assert "transe" in results.summary(found) and "hits@10" in results.summary(found)
  table = analysis.table(transe, "entity/embedding")
  assert table.index[3] == "n03" and table.shape == (40, 8)


def test_resuming_equals_not_stopping(transe, tmp_path):
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  workdir = tmp_path / "run"
  with pytest.MonkeyPatch.context() as patch:
    tiny.stop_at(patch, 8, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(tiny_graph.config(), workdir)
  train.train_and_evaluate(tiny_graph.config(), workdir)
  mine, theirs = tiny.state(workdir), tiny.state(transe)
  assert mine.keys() == theirs.keys()
  assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
  assert results.finished(workdir)["test"] == results.finished(transe)["test"]


@pytest.mark.slow
def test_transr_starts_from_transe_by_external_id(transe, tmp_path):
  config = tiny_graph.config("transr", **{
    "dataset": "enil", "model.relation_width": 8, "total_steps": 2, "eval.every_steps": 2,
    "transfer.checkpoint": str(transe), "transfer.mode": "embedding",
    "transfer.freeze": "entity/embedding"})
  train.train_and_evaluate(config, tmp_path / "transr")
  plan = json.loads((tmp_path / "transr/restore_report.json").read_text())
  matched = {leaf["target"]: leaf.get("rows", {}).get("matched") for leaf in plan["leaves"]}
  assert matched == {"entity/embedding": 40, "relation/embedding": 3, "projection/kernel": None}
  source = analysis.table(transe, "entity/embedding")
  target = analysis.table(tmp_path / "transr", "entity/embedding")
  assert target.index[0] == "n39"
  assert np.array_equal(target.loc[source.index].to_numpy(), source.to_numpy())
  kernel = tiny.state(tmp_path / "transr")["params/projection/kernel"]
  assert 0 < np.abs(kernel - np.eye(8)).max() < 0.1


@pytest.mark.slow
def test_tucker_keeps_running_statistics(tmp_path):
  workdir = tmp_path / "tucker"
  config = tiny_graph.config("tucker", **{"model.relation_width": 3, "optim.clip_norm": 0.1})
  found = train.train_and_evaluate(config, workdir)
  values = tiny.state(workdir)
  for norm in ("input_norm", "hidden_norm"):
    # After 12 steps the start, mean 0 and variance 1, weighs 0.9^12 = 0.28.
    assert np.abs(values[f"params/{norm}/mean"]).max() > 1e-3
    assert np.abs(values[f"params/{norm}/var"] - 1).min() > 0.01
    assert not any(norm in name and name.endswith(("mean", "var")) for name in values
                   if name.startswith("opt_state"))
  again = evaluate.evaluate(workdir, step=found["run"]["best_step"])
  assert again["test"] == found["test"]
  with pytest.raises(errors.UserError, match="is of links; it does not rank items"):
    recommend.Recommender(workdir)


def test_export_by_external_id(transe, tmp_path):
  graph, table = tiny_graph.make(), analysis.table(transe, "entity/embedding")
  ids, vectors = export.vectors(transe)
  assert ids.tolist() == graph.entity_ids.tolist() and vectors.dtype == np.float32
  items, of_items = export.vectors(transe, items=True)
  assert items.tolist() == [b"9", b"4"]
  assert np.array_equal(of_items, table.loc[["n03", "n05"]].to_numpy())
  _, both = export.vectors(transe, ("entity/embedding", "entity/embedding"), normalize=True)
  np.testing.assert_allclose(np.linalg.norm(both[:, :8], axis=1), 1, rtol=1e-5)
  export.write(tmp_path / "out.npz", items, of_items)
  with np.load(tmp_path / "out.npz", allow_pickle=False) as stored:
    assert np.array_equal(stored["vectors"], of_items) and stored["ids"].tolist() == [b"9", b"4"]
  export.write(tmp_path / "out.parquet", items, of_items)
  stored = pa_parquet.read_table(tmp_path / "out.parquet").to_pydict()
  assert stored["id"] == ["9", "4"] and np.array_equal(stored["vector"], of_items)
  for problem, message in ((dict(leaves=("relation/embedding",)), "has no row for each of the 40"),
                           (dict(leaves=("entity",)), "leaf"),
                           (dict(vocabulary="item"), "vocabulary")):
    with pytest.raises(errors.UserError, match=message):
      export.vectors(transe, **problem)
  with pytest.raises(errors.UserError, match="must end in"):
    export.write(tmp_path / "out.csv", items, of_items)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns(model, tmp_path):
  """By chance MRR is 0.07."""
  width = 32
  fields = {"dataset": "kinds", "model.width": width, "total_steps": 200, "eval.every_steps": 100,
            "batch_size": 156, "micro_batch": None, "log.every_steps": 100,
            "checkpoint.every_steps": None, "optim.name": "adam", "optim.lr": 0.01}
  if model in ("transr", "transd"):
    fields["model.relation_width"] = width
  if model == "tucker":
    fields |= {"model.relation_width": 8, "model.dropouts": (0.0, 0.0, 0.0)}
  if model == "proje":
    fields["model.dropout"] = 0.1
  if model == "complex":
    fields["optim.lr"] = 0.1  # From N(0, 1) it is far.
  found = train.train_and_evaluate(tiny_graph.config(model, **fields), tmp_path / model)
  assert found["test"]["filtered"]["mrr"] > 3 * found["chance"]["filtered"]["mrr"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["deepwalk", "node2vec", "line"])
def test_every_social_method_learns(method, tmp_path):
  graph = tiny_graph.communities()
  graphs.save(tmp_path / "data/town", graph)
  config = social.get_config(f"{method},size=cpu")
  config.data_dir, config.dataset = str(tmp_path / "data"), "town"
  config.model.width, config.batch_size = 16, 40
  config.total_epochs, config.eval.every_epochs = 100.0, 50.0
  config.optim.update(name="adam", lr=0.02)
  config.log.tensorboard = False
  found = train.train_and_evaluate(config, tmp_path / "run")
  assert found["test"]["edges"]["auc"] > 0.75 > found["popularity"]["edges"]["auc"]
  shutil.rmtree(tmp_path / "run")
