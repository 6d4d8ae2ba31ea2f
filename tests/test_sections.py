"""What report.md says, in words and tables, of ranking, of ratings and of data."""

import json
import pathlib

import fake_runs
import ml_collections
import pytest

from recjax import plots, sections, study, tables

CLAIMS = (("Pre-training helps", (("model", "none"), ("embedding", "none"))),
          ("Models beat popularity", (("none", "popularity"), ("model", "popularity")),
           "uniform100_global/ndcg@10"))


@pytest.fixture(scope="module", autouse=True)
def no_plots():
  """tests/test_plots.py draws them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, "draw", lambda workdir, report: [("Gain", "transfer_gain.png")])
    patch.setattr(study.gc, "collect", lambda: None)  # takes longer than a fake run
    yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A study of fake runs: the model gains 2 points, embedding transfer costs short histories 5."""
  folder = tmp_path_factory.mktemp("study")
  config = fake_runs.make_study(folder, claims=CLAIMS)
  trainer = fake_runs.make_trainer({"model": 0.02, "embedding": {"1-3": -0.05}})
  result = study.run_study(config, folder / "w", train=trainer, command="the command")
  return (folder / "w/report.md").read_text(), result


def section(text, title):
  """Returns the text below a heading, up to the next one of its kind."""
  _, _, rest = text.partition(f"\n## {title}\n")
  assert rest, f"no section {title!r}"
  return rest.partition("\n## ")[0]


def rows(text):
  """Returns the cells of the lines of all tables, rules left out."""
  lines = [line for line in text.replace("\\|", "/").splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines
          if not line.startswith("| --")]


def test_markdown_tells_what_ran_and_what_came_out(built):
  text, result = built
  assert text.startswith("# A study\n\n**Generated data")
  for part in ("the command", "Context `train`", "context `train+val`", "1 x cpu", "A remark.",
               "18 min 45 s", "embedding \\| MIP", "![Gain](transfer_gain.png)"):
    assert part in text, part
  assert "need attention" not in text
  mean = result["rows"][0]["results"]["train"]["full"]["ndcg@10"]["mean"]
  assert any(line.startswith("| none ") and f" {100 * mean:.2f} ± " in line
             for line in text.splitlines())


def test_rows_are_told_by_how_soon_they_reach_their_baseline(built):
  text, result = built
  _, *found = rows(section(text, "How soon each row learns, in steps"))
  curves = {row["label"].replace("|", "/"): row["curve"] for row in result["rows"]}
  best = max(curves["none"]["mean"])
  first = lambda label: next((f"{step}" for step, value in zip(
    curves[label]["steps"], curves[label]["mean"], strict=True) if value >= best), "never")
  assert found == [[label, "full NDCG@10", f"{100 * best:.2f}", first("none"), first(label)]
                   for label in ("model", "embedding / MIP")]
  assert first("none") != first("model")
  # Curves of different metrics are not compared, and errors are reached from above.
  row = lambda label, measured, mean, baseline=None: {"label": label, "baseline": baseline,
    "curve": {"measured": measured, "steps": [2, 4, 6][:len(mean)], "mean": mean}}
  base = row("base", "rating/rmse", [1.2, 1.0, 1.1])
  of = lambda *others: tables.convergence({"rows": [base, *others]})[1]
  assert of(row("x", "full/mrr", [1.0], "base"), row("y", "", [], "base")) == []
  assert of(row("x", "rating/rmse", [1.1, 1.05], "base"), row("y", "rating/rmse", [0.9], "base")
            ) == [["x", "rating RMSE", "1.0000", "4", "never"],
                  ["y", "rating RMSE", "1.0000", "4", "2"]]


def test_every_table_has_as_many_cells_in_each_line(built):
  block = []
  for line in [*built[0].replace("\\|", "/").splitlines(), ""]:
    if line.startswith("|"):
      block.append(line.count("|"))
    else:
      assert len(set(block)) <= 1
      block = []


def test_the_published_number_stands_beside_ours(built):
  text, result = built
  part = section(text, "Beside the published numbers")
  mean = 100 * result["rows"][0]["results"]["train"]["uniform100_global"]["ndcg@10"]["mean"]
  row, = rows(part)[1:]
  assert row[:3] == ["none", "uniform100_global", "NDCG@10"]
  assert row[4:] == ["61.18", f"{mean - 61.18:+.2f}"]
  assert "at hand for: model; embedding | MIP." in part


def test_claims_have_their_rule_and_their_reading(built):
  text, result = built
  part = section(text, "What it says")
  readings = {row[0]: row[1] for row in rows(part)[1:3]}
  assert readings == {"1. Pre-training helps": "does not hold" if result["claims"][0][
    "worse"] >= result["claims"][0]["better"] else "holds in part",
    "2. Models beat popularity": "holds"}
  assert "more than half of the comparisons are better" in part
  assert ["model – none", "▲ better"] in [[row[0], row[-1]] for row in rows(part)]
  assert "NDCG@10 under `uniform100_global`" in part


def test_a_mean_effect_that_changes_with_the_seed_says_so(built):
  mean = {**built[1]["claims"][0]["mean"], "p_t_holm": 0.01, "p_bootstrap_holm": 0.01}
  claim = {**built[1]["claims"][0], "mean": {**mean, "verdict": "undecided"}}
  assert "sign changes with the seed" in sections.markdown({**built[1], "claims": [claim]})
  claim["mean"]["p_t_holm"] = 0.2
  assert "sign changes with the seed" not in sections.markdown({**built[1], "claims": [claim]})


def test_negative_transfer_is_named_where_it_is(built):
  text, _ = built
  found = [line for line in section(text, "Negative transfer").splitlines()
           if line.startswith("- ")]
  assert found and all(line.startswith("- **embedding | MIP** against none") for line in found)
  assert any("`full`, history 1-3 " in line and line.endswith("▼ hurts") for line in found)
  assert not any("history 4-10" in line or "history 11-50" in line for line in found)


def test_slices_show_empty_ones_and_who_is_helped_or_hurt(built):
  part = rows(section(built[0], "Slices by length of the user's history"))
  head, counts = part[0], part[1]
  assert head == ["train items of the user", "cold", "1-3", "4-10", "11-50", ">50"]
  assert counts[0] == "users" and counts[1] == counts[5] == "0"
  assert sum(int(n) for n in counts[1:]) == fake_runs.USERS
  assert [row[0] for row in part[2:6]] == ["popularity", "none", "model", "embedding / MIP"]
  gains = {row[0]: row for row in part if "[" in "".join(row)}
  assert gains["embedding / MIP"][2].endswith("▼ hurts")
  assert gains["embedding / MIP"][3].endswith("undecided")
  assert all(gains["model"][i].endswith("▲ helps") for i in (2, 3, 4))
  assert gains["model"][1] == "–" and "none" not in gains
  items = rows(section(built[0], "Slices by popularity of the held-out item"))
  assert [row[0] for row in items[1:5]] == ["users", "held-out items", "items",
                                            "interactions of an item"]
  assert items[4][1:] == ["0", "1-4", "7", "8"]


def rating_study(folder, **changes):
  config = fake_runs.make_study(
    folder, headline=("rmse", "mae"),
    comparisons=(("none – item + user bias", "none", "item_user_bias"),), **changes)
  config.published = ml_collections.ConfigDict({"none": {"heldout/rmse": 0.987}})

  def train(run_config, workdir):
    pathlib.Path(workdir).mkdir(parents=True)
    gain = {"model": -0.05, "embedding": 0.05}.get(run_config.transfer.mode, 0.0)
    fake_runs.write_rating_run(pathlib.Path(workdir), run_config.to_dict(), gain)

  return study.run_study(config, folder / "w", train=train), (folder / "w/report.md").read_text()


def test_errors_are_printed_as_they_are_and_smaller_is_better(tmp_path):
  result, text = rating_study(tmp_path)
  assert result["tested"] == "mse"
  table = {row[0]: row for row in rows(section(text, "Results, context `train`"))}
  assert table[""][1:] == ["heldout RMSE", "MAE"]
  assert list(table)[1:3] == ["global_mean", "item_user_bias"]
  mean = result["rows"][0]["results"]["train"]["heldout"]["rmse"]["mean"]
  assert table["none"][1].startswith(f"{mean:.4f} ± 0.")
  verdicts = {row[1]: row[-1] for row in rows(section(text, "Significance"))[1:]}
  assert verdicts == {"model – none": "▲ helps", "embedding / MIP – none": "▼ hurts",
                      "none – item + user bias": "▲ better"}
  assert "RMSE pools the users" in section(text, "Significance")
  published, = rows(section(text, "Beside the published numbers"))[1:]
  assert published[4:] == ["0.987", f"{mean - 0.987:+.3f}"]
  assert "percentage points" not in text and "Errors as they are" in text
  title, head, *_ = tables.headline(result).splitlines()
  assert "percent" not in title and "heldout RMSE" in head
  assert "▼ hurts" in section(text, "Negative transfer")


def test_rows_with_a_baseline_of_their_own(tmp_path):
  config = fake_runs.make_study(tmp_path, baselines={"model": "embedding"})
  result = study.run_study(config, tmp_path / "w", train=fake_runs.make_trainer({"model": 0.02}))
  text = (tmp_path / "w/report.md").read_text()
  compared = {row[1] for row in rows(section(text, "Significance"))[1:]}
  assert compared == {"model – embedding / MIP", "model – embedding", "none – popularity"}
  assert {e["run"] for e in result["slices"]["gains"]} == {"model"}


def data_config(folder, **changes):
  fake_runs.make_data(folder / "data", "src")
  path = folder / "data/src/manifest.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "users": 5811, "items": 1013,
                              "mean_train_length": 8.8465, "feature_coverage": {"actor": 606}}))
  return ml_collections.ConfigDict(dict(
    title="Data", data_dir=str(folder / "data"), data_rows=(
      ("target", "src", {
        "users": ("6,040", "some are too short."), "items": "1,012", "interactions": None,
        "mean_train_length": ("8.85", "not said, since it agrees."), "absent": "5",
        "feature_coverage/actor": "0.6k"}),), **changes))


def test_data_stand_beside_the_published_numbers(tmp_path):
  result = study.run_study(data_config(tmp_path), tmp_path / "w", train=None)
  text = (tmp_path / "w/report.md").read_text()
  assert result["finished"] and result["rows"] == [] and "Results" not in text
  assert rows(text)[1:] == [
    ["target", "users", "5,811", "6,040", "-229"],
    ["target", "items", "1,013", "1,012", "+1"],
    ["target", "interactions", "3", "–", "–"],
    ["target", "mean train length", "8.85", "8.85", "agrees"],
    ["target", "absent", "–", "5", "–"],
    ["target", "items with actor", "606", "0.6k", "agrees"]]
  assert "- target, users: some are too short." in text and "not said" not in text
  assert tables.headline(result) == "Data"


def test_data_that_are_gone_are_named_in_a_later_report(tmp_path):
  config = data_config(tmp_path)
  study.run_study(config, tmp_path / "w", train=None)
  (tmp_path / "data").rename(tmp_path / "gone")
  study.run_study(config, tmp_path / "w", report_only=True)
  assert "Not prepared here: `src`" in (tmp_path / "w/report.md").read_text()


def test_data_and_runs_in_one_study(tmp_path):
  both = data_config(tmp_path).data_rows
  config = fake_runs.make_study(tmp_path, seeds=(0,), data_rows=both)
  study.run_study(config, tmp_path / "w", train=fake_runs.make_trainer())
  text = (tmp_path / "w/report.md").read_text()
  assert "## Data beside" in text and "## Significance" in text


@pytest.mark.parametrize("value, printed, text", [
  (621521, "622k", "622k"), (621521, "620k", "622k"), (6040, "6,040", "6,040"),
  (97.92, "97.9", "97.9"), (8.8465, "8.85", "8.85"), (1_000_209, "1.0M", "1.0M"),
  (5811, "6040", "5811")])
def test_as_printed(value, printed, text):
  assert tables.as_printed(value, printed) == text


def test_parsed():
  assert [tables.parsed(p) for p in ("6,040", "97.9", "622k", "1.5M")] == [6040, 97.9, 622e3, 1.5e6]


def test_headline_is_aligned_and_side_by_side(built):
  title, *lines = tables.headline(built[1]).splitlines()
  assert "generated data" in title and len({len(line) for line in lines}) == 1
  assert "full NDCG@10" in lines[0] and "uniform100_global NDCG@10" in lines[0]
  firsts = [line.split()[0] for line in lines[1:]]
  assert firsts == ["chance", "popularity", "none", "model", "embedding"]


def test_other_protocols_come_after_the_known_ones():
  row = {"results": {"train": {"zeta": {}, "uniform100_global": {}, "full": {}, "alpha": {}}}}
  names = tables.protocols({"rows": [row]})
  assert names == ["full", "uniform100_global", "alpha", "zeta"]
  assert tables.slice_protocols(names) == ["full", "uniform100_global"]
  assert tables.slice_protocols({"heldout"}) == ["heldout"]


def test_markdown_of_a_study_without_results_says_so(tmp_path):
  config = fake_runs.make_study(tmp_path, seeds=(0,), claims=CLAIMS)
  result = study.run_study(config, tmp_path / "w", train=lambda c, w: None)
  text = sections.markdown(result)
  assert "No run is complete" in text and "not tested" in text


@pytest.mark.parametrize("seconds, text", [
  (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
  assert tables.duration(seconds) == text
