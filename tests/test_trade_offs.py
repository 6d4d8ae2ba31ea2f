"""Rows of several tasks: each judged by its own metric, quality beside what it trains."""

import fake_runs
import pytest

from recjax import errors, plots, study, study_plan, tables, trade_offs

TASKS = (("one", "full/ndcg@10", ("none", "model")), ("two", "pop100/mrr", ("embedding", "twin")))


def make_study(folder, **changes):
  """Returns a study of two tasks with two rows each, of which one transfers."""
  rows = (("one: A: alone", "none"), ("one: A: all", "model"), ("two: B: few", "embedding"),
          ("two: B: alone", "twin"))
  config = fake_runs.make_study(
    folder, seeds=(0, 1), bootstrap_draws=500, tasks=TASKS, rows=rows, headline=("ndcg@10", "mrr"),
    comparisons=(("all – popularity", "model", "popularity"),))
  with config.unlocked():
    del config["baseline"], config["published"]
    config.runs.twin = {"config": config.runs.none.config}
    config.baselines = {"model": "none", "embedding": "twin"}
    config.update(changes)
  return config


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The model gains 2 points, what embeddings do to short histories costs 5."""
  folder = tmp_path_factory.mktemp("study")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, "draw", lambda workdir, report: [])
    patch.setattr(study.gc, "collect", lambda: None)  # takes longer than a fake run
    result = study.run_study(make_study(folder), folder / "w", train=fake_runs.make_trainer(
      {"model": 0.02, "embedding": {"1-3": -0.05}}))
  return (folder / "w/report.md").read_text(), result


def test_every_row_is_judged_by_the_metric_of_its_task(built):
  _, result = built
  assert {row["run"]: (row["task"], row["metric"], row["tested"]) for row in result["rows"]} == {
    "none": ("one", "ndcg@10", "ndcg@10"), "model": ("one", "ndcg@10", "ndcg@10"),
    "embedding": ("two", "mrr", "mrr"), "twin": ("two", "mrr", "mrr")}
  gains = {(e["run"], e["metric"], e["protocol"]) for e in result["slices"]["gains"]
           if e["kind"] != "popularity"}
  assert {("model", "ndcg@10", "full"), ("embedding", "mrr", "pop100")} <= gains
  assert {run: metric for run, metric, _ in gains} == {"model": "ndcg@10", "embedding": "mrr"}
  assert {row["label"] for row in result["references"]} == {
    f"{task}: {name}" for task in ("one", "two") for name in ("popularity", "chance")}


def test_quality_stands_beside_what_is_trained(built):
  text, result = built
  first, second = tables.groups(result)
  assert [row["run"] for row in first["rows"]] == ["none", "model"]
  best = {point["run"]: (point["trained"], point["best"]) for group in (first, second)
          for point in trade_offs.points(result, group)}
  assert best == {"none": (1234, False), "model": (1234, True), "embedding": (123, True),
                  "twin": (1234, True)}
  part = text.partition("### two, `pop100`")[2].partition("\n#")[0]
  rows = {cells[0]: cells for line in part.splitlines() if line.startswith("|")
          for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}
  assert list(rows)[2:] == ["chance", "popularity", "B: few", "B: alone"]
  assert rows["B: few"][3:6] == ["123", "9.97 %", "0.5"] and rows["B: alone"][3] == "1,234"
  *_, gain, best, hurts = rows["B: few"]
  assert "▼ hurts" in gain and best == "●"
  assert "history 1-3" in hurts and "history 4-10" not in hurts and rows["B: alone"][-1] == "–"
  assert rows["popularity"][3:] == ["–"] * 7
  assert "Slices by length" in text and "two, `pop100`, MRR:" in text


def test_a_panel_for_each_task(built):
  figure = plots.quality(built[1])
  axes = [axis for axis in figure.axes if axis.get_visible()]
  plots.plt.close(figure)
  assert [axis.get_title() for axis in axes] == ["one", "two"]
  assert [axis.get_ylabel() for axis in axes] == ["full NDCG@10 (%)", "pop100 MRR (%)"]
  assert all(axis.get_xscale() == "log" and len(axis.containers) == 2 for axis in axes)
  labels = [text.get_text() for text in figure.legends[0].get_texts()]
  assert labels == ["A", "B", "alone", "all", "few"]
  panels = [axis.get_title() for axis in plots.transfer_gain(built[1]).axes]
  assert panels == ["one", "two"]
  plots.plt.close("all")
  assert plots.quality({**built[1], "tasks": []}) is None


@pytest.mark.parametrize("tasks, message", [
  ((("one", "full/ndcg@10", ("none", "model")),), "rows without a task: there is no 'embedding'"),
  ((*TASKS, ("three", "full/mrr", ("none",))), "holds one of them twice"),
  ((("one", "ndcg@10", ("none",)),), "'ndcg@10' is not \"PROTOCOL/METRIC\""),
  ((("one", "full/mrr", "none"),), "each is .title")])
def test_tasks_that_cannot_be_are_one_line(tmp_path, tasks, message):
  with pytest.raises(errors.UserError, match=message):
    study_plan.check(make_study(tmp_path, tasks=tasks))
