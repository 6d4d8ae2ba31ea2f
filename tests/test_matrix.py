"""The transfer matrix: what its study crosses, what is compared with what, what trains at once."""

import pathlib

import pytest

from recjax import cohort_plan, errors, models, objectives, spec, study_plan

PATH = str(pathlib.Path(__file__).resolve().parent.parent / "configs/studies/matrix.py")


def load(arg):
  config = spec.load_config(f"{PATH}:{arg}")
  with config.unlocked():
    config.data_dir = "anywhere"
  study_plan.check(config)
  return config


@pytest.fixture(scope="module")
def small():
  config = load("cpu,backbones=nextitnet+caser,tasks=next+gender+age")
  return config, study_plan.plan(config, "w")


def test_every_way_of_every_backbone_is_compared_with_none(small):
  config, _ = small
  rows = dict(map(reversed, config.rows))
  for run, base in config.baselines.items():
    task, family, way = rows[run].split(": ")
    assert rows[base] == f"{task}: {family.partition(',')[0]}: from scratch", (run, way)
  assert len(config.rows) == len(config.baselines) + 4  # three tasks, and that of Caser
  ways = {label.split(": ")[2] for label, _ in config.rows if label.startswith("gender: NextItNet")}
  assert ways == {"from scratch", "embeddings", "everything tuned", "head alone",
                  "patches, two serial"}
  tasks = {title: (where, {run.partition("_")[0] for run in runs})
           for title, where, runs in config.tasks}
  assert tasks == {"next items": ("full/ndcg@10", {"nextitnet", "caser"}),
                   "gender": ("profile/accuracy", {"nextitnet"}),
                   "age": ("profile/accuracy", {"nextitnet"})}
  texts = [text for text, *_ in config.claims]
  assert "Next items: pre-training helps" in texts
  assert "Gender: patches are better than the head alone" in texts


def test_runs_fit_their_models_and_carry_what_they_say(small):
  jobs = {job.name: job.config for job in small[1] if job.seed == 0}
  for config in jobs.values():
    model = models.make(**config.model.to_dict(), num_items=9, num_users=9, field_rows={})
    objectives.make(**config.objective.to_dict(), num_items=9, known=model.objectives)
    if config.transfer.mode not in ("none", "rules"):
      assert model.transfer_rules(config.transfer.mode)
  assert jobs["nextitnet_contrast"].objective.mix.parts == (
    ("causal_next_item", 1.0), ("contrast", 0.1))
  head, patch = (jobs[f"nextitnet_causal_gender_{way}"] for way in ("head", "serial_two"))
  assert head.model.patch == "none" and patch.model.patch == "serial_two"
  assert head.transfer.mode == patch.transfer.mode == "patch" and patch.transfer.task_tree
  assert jobs["caser_window_next_embedding"].transfer.rules == ((r"embed/.*", r"\g<0>"),)


def test_labels_are_trained_at_once_and_sources_are_shared(small):
  kinds = {}
  for job in small[1]:
    kinds.setdefault(cohort_plan.key(job.config), set()).add(job.name)
  together = next(names for names in kinds.values() if "nextitnet_causal_age_serial_two" in names)
  assert together == {f"nextitnet_{source}_{task}_serial_two"
                      for source in ("causal", "contrast") for task in ("age", "gender")}
  sources = {job.key for job in small[1] if not job.sources and "none" not in job.name}
  assert sources == {(name, 0) for name in ("nextitnet_causal", "nextitnet_contrast",
                                            "caser_window")}


def test_the_small_study_has_every_backbone_and_mode():
  config = load("cpu")
  assert [(title, len(runs)) for title, _, runs in config.tasks] == [
    ("first items", 27), ("next items", 3), ("gender", 27)]
  with pytest.raises(errors.UserError, match="tasks.*ages"):
    load("cpu,tasks=ages")
