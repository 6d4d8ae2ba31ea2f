"""BERT4Rec for ratings: what it reads, where it starts, what it must not see, transfer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recjax import errors, models, objectives, step, trees

N, U, B, T = 9, 5, 3, 6
SMALL = dict(num_layers=1, item_width=4, rating_width=4, user_width=4, heads=2, hidden=8, max_len=8)
TABLES = {"genre": jnp.asarray(np.arange(N + 2)[:, None] % 3, jnp.int32)}
MEAN = 3.5


def _model(variant="survey_code", **fields):
  return models.make(
    "bert4rec_rating", variant=variant, num_items=N, num_users=U, field_rows={"genre": 3},
    facts={"rating_levels": lambda: (1.0, 2.0, 3.0, 4.0, 5.0), "rating_mean": lambda: MEAN,
           "rating_range": lambda: (1.0, 5.0)}, **{**SMALL, **fields})


def _init(model):
  return jax.jit(lambda key: model.init(key, **model.example_inputs(), tables=TABLES)["params"])(
    jax.random.key(0))


def _inputs():
  rng = np.random.default_rng(0)
  items = rng.integers(1, N + 1, (B, T)).astype(np.int32)
  items[0, :2] = 0
  values = np.where(items > 0, rng.integers(1, 6, items.shape), 0).astype(np.float32)
  hidden = np.zeros(items.shape, bool)
  hidden[:, -2:] = True
  return {"users": jnp.arange(1, B + 1), "items": jnp.asarray(items),
          "ratings": jnp.asarray(values), "hidden": jnp.asarray(hidden)}


@functools.cache
def _started(**fields):
  """Returns (parameters, jitted run(params, inputs) -> ratings [B, T]) of a small model."""
  model = _model(**fields)
  apply_fn = step.make_apply(model, TABLES)
  return _init(model), jax.jit(lambda params, inputs: apply_fn(params, inputs, None))


def test_parameter_paths_and_counts():
  # Checkpoints depend on them.
  params = trees.flatten(_started(fields=(("genre", 2, 1),))[0])
  shapes = {name: x.shape for name, x in params.items() if name.startswith(("embed/", "head/"))}
  assert shapes == {
    "embed/item/embedding": (N + 2, 4), "embed/item_pos/embedding": (8, 4),
    "embed/user/embedding": (U, 4), "embed/user_pos/embedding": (8, 4),
    "embed/genre/embedding": (3, 2), "embed/genre_pos/embedding": (8, 2),
    "embed/rating/embedding": (7, 4), "embed/rating_pos/embedding": (8, 4),
    "head/kernel": (14, 1), "head/bias": (1,)}
  full = models.make("bert4rec_rating", variant="survey_code", num_items=3706, num_users=6040,
                     field_rows={}, facts={"rating_levels": lambda: (1.0, 2.0, 3.0, 4.0, 5.0)})
  width, rows = 128 + 128 + 32, 3708 * 128 + 7 * 128 + 6040 * 32
  linear = lambda a, b: a * b + b
  block = (linear(width, 3 * width) + linear(width, width) + linear(width, 512)
           + linear(512, width) + 4 * width)
  assert trees.count(jax.eval_shape(lambda: _init(full))) == (
    rows + 100 * width + 6 * block + linear(width, 1))


def test_hidden_ratings_do_not_leak_and_visible_ones_count():
  params, run = _started()
  inputs = _inputs()
  base = run(params, inputs)
  other = {**inputs, "ratings": jnp.where(inputs["hidden"], 6 - inputs["ratings"],
                                          inputs["ratings"])}
  np.testing.assert_array_equal(run(params, other), base)
  seen = {**inputs, "ratings": inputs["ratings"].at[:, 3].set(6 - inputs["ratings"][:, 3])}
  changed = np.abs(run(params, seen) - base).max(axis=1)
  same = np.asarray(inputs["ratings"][:, 3] == 3)
  np.testing.assert_array_equal(changed > 1e-6, ~same)
  items = {**inputs, "items": inputs["items"].at[:, -1].set(inputs["items"][:, -1] % N + 1)}
  assert (np.abs(run(params, items) - base)[:, -1] > 1e-6).all()  # the item itself is visible


def test_padding_changes_nothing():
  params, run = _started()
  inputs = _inputs()
  wide = {name: x if name == "users" else jnp.pad(x, ((0, 0), (2, 0)))
          for name, x in inputs.items()}
  np.testing.assert_allclose(run(params, wide)[:, 2:], run(params, inputs), rtol=1e-5, atol=1e-6)
  empty = {**inputs, "items": jnp.zeros((B, T), jnp.int32)}
  assert np.isfinite(run(params, empty)).all()


def test_levels_mask_and_unknown_are_tags_of_their_own():
  model = _model()
  items = jnp.array([[0, 1, 2, 3, 4, 5]], jnp.int32)
  values = jnp.array([[4.0, 1, 5, 2.5, 3, 5]])
  hidden = jnp.array([[True, False, False, False, True, False]])
  _, out = jax.jit(lambda params: model.apply(
    {"params": params}, items, jnp.ones(1, jnp.int32), TABLES, ratings=values, hidden=hidden))(
      _started()[0])
  assert out["levels"].tolist() == [[0, 1, 5, 7, 6, 5]]


def test_the_head_starts_at_the_mean():
  assert _started()[0]["head"]["bias"] == MEAN
  assert _started(mean_bias=False)[0]["head"]["bias"] == 0
  # Ours: small tables and a final norm, so that the mean is about what it predicts.
  params, run = _started(variant="recjax")
  np.testing.assert_allclose(run(params, _inputs()), MEAN, atol=0.5)


def test_predictions_are_clipped_and_losses_are_not():
  params = _started()[0]
  params["head"] = {**params["head"], "bias": params["head"]["bias"] + 50}
  assert _started(clip=True)[1](params, _inputs()).max() == 5
  assert _started()[1](params, _inputs()).max() > 5
  apply_fn = step.make_apply(_model(clip=True), TABLES)
  assert jax.jit(apply_fn)(params, _inputs(), jax.random.key(0)).max() > 5


def test_constant_ratings_are_learned():
  model = _model(dropout=0.0)
  apply_fn = step.make_apply(model, TABLES)
  objective = objectives.make("masked_rating", num_items=N, known=model.objectives,
                              masked_rating={"rate": 0.5})
  batch = _inputs()
  batch["ratings"] = jnp.where(batch["items"] > 0, 2.0, 0)
  tx = optax.adam(0.01)
  def loss(params, rng):
    total, weight, _ = objective.loss(apply_fn, params, objective.prepare(rng, batch, {}), shards=1,
                                      capacity=1, rng=rng)
    return total / jnp.maximum(weight, 1)
  def body(n, carry):
    params, slots = carry
    updates, slots = tx.update(jax.grad(loss)(params, jax.random.key(n)), slots)
    return optax.apply_updates(params, updates), slots
  params = _init(model)
  params, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 300, body, c))((params, tx.init(params)))
  predict = jax.jit(lambda params: objective.predict(
    apply_fn, params, batch["users"], batch["items"][:, :4], batch["ratings"][:, :4],
    batch["items"][:, 4:]))
  np.testing.assert_allclose(predict(params), 2, atol=0.05)


def test_transfer_modes():
  params = _started()[0]
  model = _model()
  crossing = lambda mode: set(trees.match(params, model.transfer_rules(mode))[0])
  assert crossing("embedding") == {f"embed/{name}/embedding"
                                   for name in ("rating", "rating_pos", "user", "user_pos")}
  every = set(trees.flatten(params))
  assert crossing("model") == {n for n in every if not n.startswith("head/")}
  assert crossing("model_head") == every
  assert crossing("none") == set() and model.transfer_rules("other") is None
  assert model.row_tables()["embed/rating/embedding"] == ("rating", 0)


def test_a_width_that_does_not_split_is_an_error():
  with pytest.raises(errors.UserError, match="rating"):
    _model(rating_width=5)
  with pytest.raises(errors.UserError, match="does not fit"):
    objectives.make("autoencode", num_items=N, known=_model().objectives)


def _mix(model, evaluate="masked_rating"):
  fields = dict(num_items=N, known=model.objectives, masked_rating={"rate": 0.4},
                masked_item={"rate": 0.4})
  parts = (("masked_rating", 1.0), ("masked_item", 0.5))
  mixed = objectives.make("mix", mix={"parts": parts, "evaluate": evaluate}, **fields)
  return mixed, [objectives.make(name, **fields) for name, _ in parts]


def test_items_and_ratings_are_learned_from_one_batch_and_reported_apart():
  model = _model(item_head=True)
  mixed, parts = _mix(model)
  apply_fn, key = step.make_apply(model, TABLES), jax.random.key(3)
  batch = {name: x for name, x in _inputs().items() if name != "hidden"}
  resident, room = {"pool": jnp.arange(1, N + 1)}, B * T

  @jax.jit
  def run(params):
    inputs = mixed.prepare(key, batch, resident)
    def mean(params):
      total, weight, metrics = mixed.loss(apply_fn, params, inputs, shards=1, capacity=(room, room),
                                          rng=None)
      return total / weight, metrics
    found = jax.value_and_grad(mean, has_aux=True)(params)
    keys = key, jax.random.fold_in(key, 0x10001)
    return found, [part.loss(apply_fn, params, part.prepare(key, batch, resident), shards=1,
                             capacity=room, rng=None)[:2] for part, key in zip(parts, keys,
                                                                               strict=True)]

  ((loss, metrics), grads), ((rated, ratings), (guessed, items)) = run(_init(model))
  assert ratings > 0 and items > 0
  np.testing.assert_allclose(loss, rated / ratings + 0.5 * guessed / items, rtol=1e-5)
  for name, value in (("masked_rating/loss", rated), ("masked_rating/weight", ratings),
                      ("masked_item/loss", guessed), ("masked_item/weight", items)):
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  flat = trees.flatten(grads)
  for name in ("head/kernel", "item_head/scores/kernel", "embed/item/embedding",
               "embed/rating/embedding", "encoder/block_0/mlp/up/kernel"):
    assert np.abs(flat[name]).max() > 0, name


def test_who_predicts_decides_how_a_mix_is_judged():
  model = _model(item_head=True)
  assert _mix(model)[0].task == "rating" and _mix(model)[0].columns == ("ratings",)
  assert _mix(model, "masked_item")[0].task == "ranking"
  shapes = lambda model: trees.flatten(jax.eval_shape(lambda: _init(model))).keys()
  added = shapes(model) - shapes(_model())
  assert added == {"item_head/scores/kernel", "item_head/scores/bias"}
  assert added <= model.row_tables().keys() and not added & set(_model().row_tables())
  crossing, _ = trees.match(dict.fromkeys(shapes(model), 0), model.transfer_rules("model"))
  assert not added & crossing.keys()
  with pytest.raises(errors.UserError, match="masked_item.* does not fit this model"):
    objectives.make("mix", num_items=N, known=_model().objectives,
                    mix={"parts": (("masked_rating", 1.0), ("masked_item", 1.0))})
