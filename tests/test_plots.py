"""Pictures are drawn from what a report has, with a mark for every row that it compares."""

import fake_runs
import pytest

from recjax import plots, study

NAMES = ["transfer_gain.png", "gain_by_history.png", "gain_by_popularity.png",
         "learning_curves.png"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, "draw", lambda workdir, report: [])
    patch.setattr(study.gc, "collect", lambda: None)  # takes longer than a fake run
    return study.run_study(fake_runs.make_study(folder, seeds=(0, 1)), folder / "w",
                           train=fake_runs.make_trainer({"model": 0.02, "embedding": -0.02}))


def test_plots_are_pictures_and_go_when_there_is_nothing_to_show(result, tmp_path):
  assert [name for _, name in plots.draw(tmp_path, result)] == NAMES
  assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in NAMES)
  rows = [{**row, "curve": {"steps": []}} for row in result["rows"]]
  empty = {**result, "comparisons": [], "rows": rows, "slices": {**result["slices"], "gains": []}}
  assert plots.draw(tmp_path, empty) == [] and not list(tmp_path.glob("*.png"))


def panels(figure):
  axes = [axis for axis in figure.axes if axis.get_visible()]
  plots.plt.close(figure)
  return axes


def test_a_dot_and_an_interval_for_every_comparison(result):
  axes = panels(plots.transfer_gain(result))
  assert [axis.get_title() for axis in axes] == [
    "full", "uniform100_domain", "pop100", "uniform100_global"]
  assert [label.get_text() for label in axes[0].get_yticklabels()] == ["model", "embedding | MIP"]
  for axis in axes:
    assert sorted(text.get_text()[0] for text in axis.texts) == ["+", "-"]
    assert axis.get_xlabel().split() == ["←", "hurts", "helps", "→"]


@pytest.mark.parametrize("kind, columns", [("history", 3), ("popularity", 4)])
def test_slices_without_users_have_no_panel(result, kind, columns):
  axes = panels(plots.gain_by_slice(result, kind))
  assert len(axes) == 2 * columns  # two protocols
  assert all("users" in axis.get_title() for axis in axes)


def many_rows(result):
  """Returns the report with its curves under 12 rows: two models with a baseline, two without."""
  curve = result["rows"][0]["curve"]
  row = lambda label, baseline: {**result["rows"][0], "label": label, "run": label,
                                 "baseline": baseline, "curve": curve}
  rows = [row(f"{model}{what}", model if what else None) for model in ("Caser", "BERT4Rec")
          for what in ("", ": embedding", ": model", ": rules", ": all")]
  return {**result, "rows": [*rows, row("ItemKNN", None), row("GRU4Rec", None)]}


def test_many_curves_get_a_panel_for_each_baseline(result):
  assert len(panels(plots.learning_curves(result))) == 1
  axes = panels(plots.learning_curves(many_rows(result)))
  names = {axis.get_title(): [line.get_label() for line in axis.lines] for axis in axes}
  moved = ["baseline", "embedding", "model", "rules", "all"]
  assert names == {"Caser": moved, "BERT4Rec": moved, "without a baseline": ["ItemKNN", "GRU4Rec"]}
  first, second = ({line.get_label(): line.get_color() for line in axis.lines}
                   for axis in axes[:2])
  assert first == second and len(set(first.values())) == 5


def test_what_is_validated_otherwise_has_a_panel_of_its_own(result):
  of = lambda row, name: {**row, "curve": {**row["curve"], "measured": name}}
  first, *rest = result["rows"]
  mixed = {**result, "rows": [of(first, "click/auc"), *(of(row, "shop/accuracy") for row in rest)]}
  axes = panels(plots.learning_curves(mixed))
  assert {axis.get_title(): len(axis.lines) for axis in axes} == {"click": 1, "shop": 2}


def test_errors_point_the_other_way(result):
  comparisons = [{**e, "metric": "mse"} for e in result["comparisons"] if e["metric"] == "ndcg@10"]
  rows = [{**row, "metric": "rmse", "tested": "mse"} for row in result["rows"]]
  errors = {**result, "tested": "mse", "headline": ["rmse"], "comparisons": comparisons,
            "rows": rows}
  axis, *_ = panels(plots.transfer_gain(errors))
  assert axis.get_xlabel().split() == ["←", "helps", "hurts", "→"]
  assert all(len(text.get_text()) == len("+0.0200") for text in axis.texts)
  assert "smaller is better" in panels(plots.learning_curves(errors))[0].get_ylabel()
