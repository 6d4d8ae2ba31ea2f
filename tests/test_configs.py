"""Every config in configs/ builds, can be locked and overridden, and tells how it is run."""

import ast
import dataclasses
import functools
import json
import pathlib
import runpy

import numpy as np
import pytest
import tiny_graph

from recjax import errors, models, objectives, spec, train
from recjax.data import graphs, prepare, sequences

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATHS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py")
               if path.name not in ("common.py", "__init__.py"))
COMMANDS = {"configs": "train", "configs/data": "prepare", "configs/studies": "study"}
RUNS = [path for path in PATHS if path.count("/") == 1]
RUN_FIELDS = {"seed", "data_dir", "dataset", "model", "objective", "batch_size", "optim", "eval",
              "checkpoint", "transfer", "log"}


@functools.cache
def _globals(path):
  return runpy.run_path(str(ROOT / path))


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", PATHS)
def test_builds(path):
  config = spec.load_config(path).lock()
  assert spec.field_names(config)
  with pytest.raises((AttributeError, KeyError)):
    config.no_such_field = 1


@pytest.mark.parametrize("path", PATHS)
def test_builds_anew(path):
  # Two calls share nothing: changing one config must not change the next.
  first, second = spec.load_config(path), spec.load_config(path)
  before = second.to_json_best_effort()
  for name in spec.field_names(first):
    spec.override(first, {name: "changed"})
  assert second.to_json_best_effort() == before
  assert spec.load_config(path).to_json_best_effort() == before


@pytest.mark.parametrize("path", PATHS)
def test_docstring_has_the_command(path):
  folder = path.rpartition("/")[0]
  docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
  assert f"python -m recjax.{COMMANDS[folder]}" in docstring
  assert f"--config={path}" in docstring


@pytest.mark.parametrize("path", PATHS)
def test_imports_only_what_builds_configs(path):
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      assert name.startswith(("ml_collections", "configs.", "recjax.spec", "recjax.errors")), name


@pytest.mark.parametrize("path", RUNS)
def test_run_has_the_fields_of_a_run(path):
  assert RUN_FIELDS <= set(spec.load_config(path).keys())


@pytest.mark.parametrize("path", PATHS)
def test_sweep_sets_known_fields(path):
  sweep = _globals(path).get("sweep")
  if sweep is None:
    pytest.skip("no sweep")
  trials = []
  sweep(lambda **values: trials.append(values))
  assert trials
  for values in trials:
    spec.override(spec.load_config(path), values)
  assert len({tuple(sorted(values.items())) for values in trials}) == len(trials)


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("demo")
  config = spec.load_config(str(ROOT / "configs/data/demo.py"))
  prepare.prepare(config, raw_dir="", data_dir=folder, log=lambda *_: None)
  demo = sequences.load(folder, "demo")
  graphs.save(folder / "ml1m_kg", dataclasses.replace(
    tiny_graph.make(), item_ids=np.asarray(demo.item_ids[1:31]), item_entities=np.arange(30)))
  graphs.save(folder / "lastfm_friends", dataclasses.replace(
    tiny_graph.communities(), entity_ids=np.asarray(demo.user_ids[1:81])))
  return str(folder)


# Their steps take a minute to compile; what is special about them has tests of its own, or they are
# the ones of MovieLens-1M on other data.
SLOW = ("configs/cl4srec_ml1m.py", "configs/nbp_tafeng.py", "configs/conet.py",
        "configs/bert4rec_food_kitchen.py", "configs/caser_food_kitchen.py",
        "configs/dupn_ml1m.py", "configs/bert4sessrec_ml1m.py",
        "configs/knowledge_ml1m.py", "configs/social_lastfm.py", "configs/content_ml1m.py",
        "configs/gru4rec_ml1m.py", "configs/pair_ml1m.py", "configs/bert4rec_ml1m.py",
        "configs/rating_ml1m.py", "configs/leaderboard_ml1m.py", "configs/caser_ml1m.py")
# What the generated data have in place of what a config reads.
ON_DEMO = {"configs/dupn_ml1m.py": {
  "model.fields": (("creator", 8, 1),), "model.profile": (("taste", 4),),
  "objective.mix.parts": (("click", 1.0), ("shop_preference", 1.0)),
  "objective.shop_preference.attribute": "creator"}}


@pytest.mark.parametrize("path", [pytest.param(path, marks=[pytest.mark.slow] * (path in SLOW))
                                  for path in RUNS])
def test_takes_a_step(path, demo_data, tmp_path):
  config = spec.load_config(path)
  task = config.objective.name
  task = config.objective.mix.parts[0][0] if task == "mix" else task
  protocol, metric = {"masked_rating": ("rating", "mae"), "margin_ranking": ("filtered", "mrr"),
                      "skip_gram": ("edges", "mrr"), "click": ("click", "auc")}.get(
                        task, ("full", "mrr"))
  of_graph = protocol in ("filtered", "edges")
  layers = "num_layers" in {f.name for f in dataclasses.fields(models.MODELS[config.model.name])}
  config = spec.override(config, {
    "data_dir": str(tiny_graph.root() / "data") if of_graph else demo_data,
    "dataset": "line" if of_graph else "demo_tgt", "batch_size": 64, "micro_batch": None,
    "total_epochs": None, "total_steps": 2, "eval.max_users": 32,
    "eval.protocols": (protocol,), "log.tensorboard": False,
    **({"model.num_layers": 1} if layers else {}),
    **{f"objective.{name}.group": 16 for name in ("contrast", "friends")
       if name in config.objective},
    **({"model.other": "demo_src"} if "other" in config.model else {}), **ON_DEMO.get(path, {})})
  report = train.train_and_evaluate(config, tmp_path / "run")
  assert report["run"]["steps"] == (0 if config.objective.name == "untrained" else 2)
  assert 0 < report["test"][protocol][metric] < (2 if protocol == "rating" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["masked_rating", "masked_item"])
def test_ratings_and_items_are_learned_from_one_batch(judge, demo_data, tmp_path):
  protocol, metric = {"masked_rating": ("rating", "rmse"), "masked_item": ("full", "mrr")}[judge]
  config = spec.override(spec.load_config("configs/rating_ml1m.py:model=bert4rec_recjax,items"), {
    "data_dir": demo_data, "dataset": "demo_tgt", "batch_size": 64, "total_epochs": None,
    "total_steps": 2, "eval.max_users": 32, "eval.protocols": (protocol,),
    "eval.metric": f"{protocol}/{metric}", "objective.mix.evaluate": judge,
    "log.tensorboard": False})
  report = train.train_and_evaluate(config, tmp_path / "run")
  assert report["test"][protocol][metric] > 0
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  row = next(row for row in rows if row["split"] == "train")
  assert {"masked_rating/loss", "masked_rating/labels", "masked_item/loss"} <= row.keys()


@pytest.mark.parametrize("arg,patch,objective", [
  ("task=gender", "serial_two", "profile"), ("backbone=noncausal", "none", "masked_item"),
  ("task=items,backbone=noncausal,patch=parallel,size=cpu", "parallel", "first_item"),
  ("task=age,backbone=bert4rec,patch=lora", "lora", "profile"),
  ("task=items,backbone=sasrec,size=cpu", "adapter", "first_item"),
  ("task=next,backbone=noncausal", "serial_two", "next_item"),
  ("backbone=bert4rec,objective=contrast,size=cpu", "none", "mix"),
  ("backbone=noncausal,objective=contrast", "none", "mix")])
def test_every_task_fits_its_backbone(arg, patch, objective):
  config = spec.load_config(f"configs/peterrec_ml1m.py:{arg}")
  model = models.make(**config.model.to_dict(), num_items=9, num_users=9, field_rows={})
  made = objectives.make(**config.objective.to_dict(), num_items=9, known=model.objectives)
  assert (model.patch, config.objective.name) == (patch, objective) and not model.user_width
  assert getattr(made, "ends", "last") == ("both" if "items,backbone=non" in arg else "last")
  assert bool(config.history) == (objective == "first_item")


@pytest.mark.parametrize("path, arg, found", [
  ("dupn_ml1m", "tasks=shop,size=cpu", ("shop_preference",)),
  ("dupn_ml1m", "tasks=price+click", ("price_preference", "click")),
  ("bert4sessrec_ml1m", "stage=2,size=cpu", ("click",)), ("bert4sessrec_ml1m", "stage=1", ())])
def test_every_question_fits_its_model(path, arg, found):
  config = spec.load_config(f"configs/{path}.py:{arg}")
  objective = objectives.make(**config.objective.to_dict(), num_items=9,
                              known=models.MODELS[config.model.name].objectives)
  assert tuple(q["name"] for q in objective.questions) == found
  assert objective.task == ("response" if found else "ranking")
  if found:
    assert tuple(config.eval.protocols) == found and config.eval.metric.split("/")[0] == found[0]


@pytest.mark.parametrize("path, args", [
  ("kge", ("transe,loss=adversarial", "transh", "transr,size=cpu", "transd", "complex,size=cpu",
           "complex", "complex,loss=softmax", "proje,data=ml1m_kg", "tucker", "tucker,size=cpu")),
  ("social", ("node2vec", "line,data=ciao_trust", "line,size=cpu"))])
def test_every_model_of_graphs_fits_its_objective(path, args):
  for arg in args:
    config = spec.load_config(f"configs/{path}.py:{arg}")
    model = models.make(**config.model.to_dict(), num_entities=9, num_relations=2, field_rows={})
    objectives.make(**config.objective.to_dict(), num_entities=9, known=model.objectives)
  with pytest.raises(errors.UserError, match="choose one of"):
    spec.load_config(f"configs/{path}.py:{args[0].partition(',')[0]},"
                     f"{args[1].partition(',')[0]}")


@pytest.mark.parametrize("arg", ["sasrec", "bert4rec", "gsasrec", "sasrec_bce", "gru4rec",
                                 "model=gsasrec,size=cpu,negatives=row"])
def test_every_model_of_the_leaderboard_fits_its_objective(arg):
  config = spec.load_config(f"configs/leaderboard_ml1m.py:{arg}")
  model = models.make(**config.model.to_dict(), num_items=9, num_users=9, field_rows={})
  objective = objectives.make(**config.objective.to_dict(), num_items=9, known=model.objectives)
  assert model.max_len == 200
  found = (model.item_width, objective.criterion, objective.num_negatives)
  assert found == {"sasrec": (64, "softmax", 256), "bert4rec": (64, "softmax", 256),
                   "gsasrec": (128, "gbce", 256), "sasrec_bce": (50, "bce", 1),
                   "gru4rec": (128, "softmax", 256)}.get(arg, (64, "gbce", 256))
