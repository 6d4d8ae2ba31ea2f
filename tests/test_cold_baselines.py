"""Cold users, and what ranks them and cold items without training: neighbors, and content."""

import dataclasses

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import errors, evaluate, experiment, models, spec, study_plan, train
from recjax.data import held_out, histories, views
from recjax.models import features

N = 6
GENRES = np.array([[0, 0], [1, 0], [1, 2], [3, 0], [0, 0], [2, 1], [2, 0], [0, 0]])  # item 4: none
WORDS = np.array([[0, 0, 0], [1, 1, 2], [2, 0, 0], [3, 0, 0], [1, 3, 0], [0, 0, 0], [4, 0, 0],
                  [0, 0, 0]])
GIVEN = np.array([[0, 0], [1, 0], [1, 1], [0, 2], [5, 5], [-1, 0], [3, 1], [0, 0]], np.float32)


def _vectors(ids, size, weights=1):
  """Returns [R, size + 1] by the definition: how much of each id a row holds."""
  out = np.zeros((len(ids), size + 1))
  np.add.at(out, (np.arange(len(ids))[:, None], ids), np.where(ids > 0, weights, 0))
  return out


def _unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def test_content_cosine_is_the_mean_of_its_features_cosines():
  known = np.array([0, 1, 1, 1, 0, 1, 1, 0], bool)  # nothing is given of item 4
  weight = np.where(WORDS > 0, WORDS / 2, 0).astype(np.float32)
  tables = {"feature/genre": GENRES, "feature/plot": WORDS, "feature/plot/weight": weight,
            "feature/image": GIVEN, "feature/image/known": known, "item/unowned": known}
  schema = features.specs({
    "genre": {"kind": "attribute", "width": 2}, "plot": {"kind": "text", "width": 2},
    "image": {"kind": "given", "width": 0}}, {"genre": 3, "plot": 4, "image": 2})
  model = models.MODELS["content_cosine"](num_items=N, num_users=3, features=schema)
  items = np.array([[0, 1, 3], [2, 2, 6], [0, 0, 0]])
  found, _ = jax.jit(lambda items: model.apply({"params": model.fit(None)}, items, None, tables))(
    jnp.asarray(items))
  wanted = 0
  for rows in (_vectors(GENRES, 3), _vectors(WORDS, 4, weight), np.where(known[:, None], GIVEN, 0)):
    asked = _unit(rows)[items].sum(1)
    wanted = wanted + _unit(asked) @ _unit(rows).T / 3
  assert found.shape == (3, N + 1) and not found[2].any() and np.abs(wanted).max() > 0.5
  np.testing.assert_allclose(found, wanted[:, :N + 1], atol=1e-6)
  with pytest.raises(errors.UserError, match="content_cosine needs model.features"):
    models.MODELS["content_cosine"](num_items=N, num_users=3).check()


def _random(seed, domain=30):
  data = evaluator_data.random_dataset(num_users=20, num_items=40, domain=domain, seed=seed)
  return dataclasses.replace(data, manifest={**data.manifest, "split": {}})


def _neighbors(data, recommended, user, *, shrink):
  """Returns scores [N + 1] by the definition, with all users as neighbors."""
  span = lambda split, who: set(np.asarray(data.items)[slice(*(
    int(edge[who]) for edge in data.span(split)))].tolist())
  scores = np.zeros(data.num_items + 1)
  mine = span("train", user)
  for other in range(1, data.num_users + 1):
    theirs = span("train", other)
    if other == user or not mine or not theirs:
      continue
    near = len(mine & theirs) / (np.sqrt(len(mine) * len(theirs)) + shrink)
    rows = slice(*(int(edge[other]) for edge in data.span(recommended)))
    for item in np.asarray(data.items)[rows]:
      scores[item] += near
  return scores


@pytest.mark.parametrize("joined", [False, True])
def test_neighbors_are_found_in_one_domain_and_asked_in_another(joined):
  data = _random(1)
  if joined:
    data = histories.join(data, _random(2, domain=40))
  model = models.MODELS["user_knn"](num_items=40, num_users=20, neighbors=20, shrink=3.0)
  users = np.array([1, 7, 20, 0])
  found, _ = jax.jit(lambda users: model.apply(
    {"params": model.fit(data)}, jnp.zeros((4, 1), jnp.int32), users, {}))(jnp.asarray(users))
  recommended = "targets" if joined else "train"
  wanted = [_neighbors(data, recommended, user, shrink=3.0) for user in users[:3]]
  np.testing.assert_allclose(found[:3, 1:], np.array(wanted)[:, 1:], rtol=1e-5, atol=1e-6)
  assert not found[3].any()


def test_cold_users_train_nowhere_and_keep_what_they_did_elsewhere():
  fields = {"held_out_users": (0.4, 3)}
  before = experiment.build(tiny.config("tgt")).data
  data, *_ = views.as_configured(tiny.config("tgt", **fields), before)
  held = data.held_out_users
  assert 10 < held.sum() < 40 and not held[0] and data.withholds
  for split in ("train", "val"):
    lengths = data.lengths(split)
    assert not lengths[held].any() and np.array_equal(lengths[~held], before.lengths(split)[~held])
  assert np.array_equal(data.lengths("test"), before.lengths("test"))
  assert np.array_equal(data.items, before.items) and data.identity() != before.identity()
  exp = experiment.build(tiny.config("tgt", **fields, history="src"))
  joined = exp.data
  assert np.array_equal(joined.held_out_users, held)
  assert not joined.lengths("targets")[held].any() and joined.lengths("train")[held].any()
  assert not exp.train_lengths(np.flatnonzero(held)).any()
  # Items of the other domain are read, those of this one scored.
  needed = exp.needed_rows()["item"]
  assert needed[1:-1].any() and not needed[1:-1][joined.in_domain[1:]].any()


def test_held_out_items_are_in_no_history():
  joined = histories.join(held_out.hold_out(_random(1), (0.3, 0)), _random(2, domain=40))
  for split in ("train", "targets", "val"):
    begin, end = joined.span(split)
    for user in range(1, 21):
      assert not joined.held_out[np.asarray(joined.items)[begin[user]:end[user]]].any()


@pytest.mark.parametrize("wanted", [(0.0, 1), (1.0, 1), (0.2,), (0.2, "1")])
def test_a_mistake(wanted):
  with pytest.raises(errors.UserError, match="held_out_users"):
    held_out.hold_out_users(evaluator_data.random_dataset(), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", [
  ("user_knn", {"history": "src", "held_out_users": (0.4, 3)}),
  ("content_cosine", {"held_out_items": (0.2, 3), "eval.protocols": ("full", "cold"),
                      "model.features": (("genre", {"kind": "attribute", "width": 2}),)})])
def test_a_run_is_evaluated_again_from_its_checkpoint(name, fields, tmp_path):
  config = tiny.config("tgt", **{
    "model.name": name, "model.variant": name, "objective.name": "untrained", "model.fields": (),
    **{f"model.{key}": None for key in ("num_layers", "item_width", "user_width", "heads", "hidden",
                                        "max_len", "dropout")}, **fields})
  report = train.train_and_evaluate(config, tmp_path / "run")
  assert evaluate.evaluate(tmp_path / "run")["test"] == report["test"]
  assert report["slices"]["history"]["cold"]["users"] or "cold" in report["test"]


def test_held_out_items_are_not_learned_in_a_second_domain():
  data, *_ = views.as_configured(tiny.config("tgt", **{"held_out_items": (0.2, 3)}),
                                 experiment.build(tiny.config("tgt")).data)
  with pytest.raises(errors.UserError, match="held_out_items: items of 'tgt' .* domain of 'tgt'"):
    views.beside(tiny.root() / "data", "tgt", data)


@pytest.mark.parametrize("arg, runs", [("cpu", 6), ("of=users,cpu", 6), ("of=users", 16)])
def test_the_studies_of_cold_start_are_well_formed(arg, runs):
  config = spec.load_config(str(tiny.ROOT / f"configs/studies/cold_start.py:{arg}"))
  config.data_dir = "anywhere"
  study_plan.check(config)
  assert len(study_plan.plan(config, "w")) == runs
