"""Jobs of a study that are trained at once: which, in what order, and what is said of it."""

import fake_runs
import pytest

from recjax import errors, plots, record, report, study, study_cohorts


@pytest.fixture(autouse=True)
def no_report(monkeypatch, request):
  """Statistics and plots take longer than all the rest; one test has them."""
  monkeypatch.setattr(plots, "draw", lambda workdir, report: [])
  if "report" not in request.node.name:
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(report, "build", lambda config, finished, *, states, command: {
      "notes": "", "states": states, "finished": all(s["state"] == "done" for s in states)})


def run(folder, config, *, calls, broken=(), crash=False):
  """Runs the study; `calls` gets [folder under runs/, ...] of every program."""
  alone = fake_runs.make_trainer(broken=broken)

  def train(config, workdir):
    calls.append([_short(workdir)])
    alone(config, workdir)

  def together(configs, workdirs):
    calls.append([_short(workdir) for workdir in workdirs])
    if crash:
      raise MemoryError("too\nmuch")
    found = []
    for config, workdir in zip(configs, workdirs, strict=True):
      try:
        alone(config, workdir)
      except ValueError as error:
        found.append(errors.UserError(str(error)))
        continue
      path = f"{workdir}/report.json"
      content = report.read_json(path)
      content["speed"] |= {"cohort": len(configs), "wall_s": 15.0, "cohort_wall_s": 45.0}
      record.write_json(path, content)
      found.append(content)
    return found

  return study.run_study(config, folder / "w", train=train, train_together=together)


def _short(workdir):
  return "/".join(str(workdir).split("/")[-2:])


def _study(folder, **fields):
  config = fake_runs.make_study(folder)
  with config.unlocked():
    config.update({"bootstrap_draws": 20, **fields})
  return config


def seeds(name, numbers=(0, 1, 2)):
  return [f"{name}/seed{seed}" for seed in numbers]


def test_alike_jobs_whose_sources_are_done_are_trained_at_once(tmp_path, capsys):
  calls = []
  result = run(tmp_path, _study(tmp_path, cohort_size=4), calls=calls)
  # The target's runs are all alike; those that transfer wait for their source.
  assert calls == [seeds("none"), seeds("z_source"), seeds("model"), seeds("a_source"),
                   seeds("embedding")]
  assert result["finished"] and {s["state"] for s in result["states"]} == {"done"}
  assert "[2/15] z_source seed 0: running with 2 others" in capsys.readouterr().out
  calls.clear()
  run(tmp_path, _study(tmp_path, cohort_size=4), calls=calls)
  assert calls == []


def test_the_size_bounds_and_a_run_can_be_left_out(tmp_path):
  calls = []
  config = _study(tmp_path, cohort_size=2)
  with config.unlocked():
    config.runs.z_source.cohort_size = 1
  run(tmp_path, config, calls=calls)
  assert max(map(len, calls)) == 2 and calls[0] == seeds("none", (0, 1))
  assert [call for call in calls if "z_source" in call[0]] == [[s] for s in seeds("z_source")]
  trained = [folder for call in calls for folder in call]
  assert len(trained) == len(set(trained)) == 15
  for target, source in (("model", "z_source"), ("embedding", "a_source")):
    for seed in range(3):
      assert trained.index(f"{source}/seed{seed}") < trained.index(f"{target}/seed{seed}")


def test_without_a_size_every_run_is_alone(tmp_path):
  calls = []
  result = run(tmp_path, _study(tmp_path), calls=calls)
  assert [len(call) for call in calls] == [1] * 15 and result["cohorts"] == []


def test_a_cut_cohort_is_formed_again_without_what_is_done(tmp_path):
  config, calls = _study(tmp_path, cohort_size=3), []
  run(tmp_path, config, calls=calls)
  for seed in (0, 2):
    (tmp_path / f"w/runs/model/seed{seed}/report.json").unlink()
  calls.clear()
  run(tmp_path, config, calls=calls)
  assert calls == [seeds("model", (0, 2))]


def test_a_member_that_fails_costs_nobody_but_its_own(tmp_path):
  config, calls = _study(tmp_path, cohort_size=3), []
  result = run(tmp_path, config, calls=calls, broken=("model",))
  states = {(s["name"], s["seed"]): s for s in result["states"]}
  assert states["model", 1]["state"] == "failed" and "it broke" in states["model", 1]["error"]
  assert states["embedding", 2]["state"] == "done"


def test_where_a_cohort_crashes_its_members_are_trained_alone(tmp_path, capsys):
  config, calls = _study(tmp_path, cohort_size=3), []
  result = run(tmp_path, config, calls=calls, crash=True)
  assert result["finished"] and calls[:4] == [seeds("none"), *([s] for s in seeds("none"))]
  assert "(MemoryError: too much)" in capsys.readouterr().err


def test_preemption_passes_through(tmp_path):
  def together(configs, workdirs):
    raise errors.Preempted("saved")
  with pytest.raises(errors.Preempted):
    study.run_study(_study(tmp_path, cohort_size=3), tmp_path / "w", train=None,
                    train_together=together)


@pytest.mark.slow
def test_the_report_says_what_was_saved_where_one_was_timed_alone(tmp_path):
  calls = []
  result = run(tmp_path, _study(tmp_path, cohort_size=3, time_alone=True), calls=calls)
  assert calls[:3] == [["none/seed0"], ["z_source/seed0"],
                       ["model/seed0", *seeds("none", (1, 2))]]
  entry = next(e for e in result["cohorts"] if "none" in e["names"])
  # Of the nine target runs two were alone, each 75 s, and the seven others took 15 s each.
  assert entry == {"runs": 7, "names": ["none", "model", "embedding"], "programs": 3,
                   "each_s": 15.0, "alone_s": 75.0}
  text = (tmp_path / "w/report.md").read_text()
  assert ("- none, model, embedding: 7 runs trained at once in 3 programs, 15 s a run; alone one "
          "took 1 min 15 s, so that it saved 7 min") in text
  without = run(tmp_path, _study(tmp_path, cohort_size=3), calls=[])
  assert without["cohorts"] == result["cohorts"]  # as measured, whoever asks


def test_a_loss_is_called_one():
  entry = {"runs": 3, "names": ["a"], "programs": 1, "each_s": 20.0, "alone_s": 10.0}
  assert "so that it cost 30 s (0.50 times" in study_cohorts.describe(entry)
  assert "none was timed alone" in study_cohorts.describe(entry | {"alone_s": None})


@pytest.mark.parametrize("size", [True, -1, "3", 2.0])
def test_a_wrong_size_is_a_users_mistake(tmp_path, size):
  with pytest.raises(errors.UserError, match="cohort_size must be"):
    run(tmp_path, _study(tmp_path, cohort_size=size), calls=[])
  assert not (tmp_path / "w").exists()
