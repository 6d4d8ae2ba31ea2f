"""Autoencoders of ratings: sizes, what reaches the network, re-feeding, transfer, a whole run."""

import dataclasses
import functools
import json

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from recjax import (
  checkpoint,
  errors,
  models,
  objectives,
  partition,
  state,
  step,
  train,
  transfer,
  trees,
)
from recjax.data import batches, sequences

N, B, L = 9, 4, 5
OURS = dict(widths=(6, 4, 6))
TABLES = {"item_rating": jnp.linspace(2, 4, N)}
EXTRA = {**TABLES, "extra_offsets": jnp.array([0, 0, 2, 2, 3, 3]),
         "extra_items": jnp.array([8, 9, 9]), "extra_ratings": jnp.array([5.0, 1.0, 4.0])}


def _model(variant="oppermann", num_items=N, **fields):
  return models.make("autoencoder", variant=variant, num_items=num_items, num_users=B,
                     field_rows={}, facts={"rating_range": lambda: (1.0, 5.0)}, **fields)


@functools.cache
def _started(model, seed):
  return jax.jit(lambda key: model.init(key, **model.example_inputs(), tables=EXTRA)["params"])(
    jax.random.key(seed))


def _init(model, seed=0):
  return jax.tree.map(lambda x: x, _started(model, seed))  # to be changed at will


def _inputs(seed=0):
  rng = np.random.default_rng(seed)
  items = np.stack([rng.permutation(N - 2)[:L] + 1 for _ in range(B)]).astype(np.int32)
  items[0, :2] = items[1, 0] = 0  # nobody rated the last two items
  values = np.where(items > 0, rng.integers(1, 6, items.shape), 0).astype(np.float32)
  return {"users": jnp.arange(1, B + 1), "items": jnp.asarray(items),
          "ratings": jnp.asarray(values)}


def _apply(model, tables=TABLES):
  return step.make_apply(model, tables)


# The networks.


def test_parameter_counts_of_the_papers():
  count = lambda *args, **kw: trees.count(jax.eval_shape(lambda: _init(_model(*args, **kw))))
  assert count(num_items=3952) == 2_089_600  # Oppermann's, without a bias of the output
  n, widths = 3952, (512, 512, 1024, 512, 512)
  sizes = (n, *widths, n)
  kernels = [a * b for a, b in zip(sizes, sizes[1:], strict=False)]
  assert count("nvidia", num_items=n) == sum(kernels) + sum(widths) + n
  assert count("nvidia", num_items=n, tied=True) == sum(kernels) // 2 + sum(widths) + n


def test_parameter_paths():
  # Checkpoints depend on them.
  assert set(trees.flatten(_init(_model(**OURS)))) == {
    f"{layer}/{leaf}" for layer in ("embed", "hidden_1", "hidden_2") for leaf in ("kernel", "bias")
  } | {"head/kernel"}
  ours = trees.flatten(_init(_model("recjax", widths=(4,))))
  assert set(ours) == {"embed/kernel", "embed/bias", "head/kernel", "bias/item", "bias/log_shrink"}
  np.testing.assert_array_equal(ours["bias/item"], TABLES["item_rating"])


@pytest.mark.parametrize("act, last_act, tied", [("sigmoid", False, False), ("selu", True, True)])
def test_the_network_is_its_five_line_version(act, last_act, tied):
  model = _model(**OURS, act=act, last_act=last_act, tied=tied, head_bias=True)
  params, inputs = _init(model), _inputs()
  params = jax.tree.map(lambda x: x + 0.1, params)  # biases, too
  x = np.zeros((B, N))
  for row, (items, values) in enumerate(zip(inputs["items"], inputs["ratings"], strict=True)):
    x[row, items[items > 0] - 1] = values[items > 0]
  dense = x
  fn = {"sigmoid": lambda z: 1 / (1 + np.exp(-z)), "selu": jax.nn.selu}[act]
  names = ("embed", "hidden_1", "hidden_2", "head")
  for place, name in enumerate(names):
    kernel = params[names[3 - place]]["kernel"].T if tied and place > 1 else params[name]["kernel"]
    x = x @ kernel + params[name]["bias"]
    x = fn(x) if place < 3 or last_act else x
  vector = {"users": inputs["users"], "dense": jnp.asarray(dense, jnp.float32),
            "rated": jnp.asarray(dense > 0)}
  full, columns, again = jax.jit(lambda params, inputs, vector: (
    _apply(model)(params, inputs, None, full=True), _apply(model)(params, inputs, None),
    _apply(model)(params, vector, None, full=True)))(params, inputs, vector)
  np.testing.assert_allclose(full, x, rtol=1e-4, atol=1e-5)
  real = inputs["items"] > 0
  picked = np.take_along_axis(np.asarray(full), np.maximum(inputs["items"] - 1, 0), 1)
  np.testing.assert_array_equal(columns[real], picked[real])
  np.testing.assert_allclose(again, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["oppermann", "recjax"])
def test_order_padding_and_hidden_ratings_change_nothing(variant):
  model = _model(variant, widths=(6, 4, 6))
  params, inputs = jax.tree.map(lambda x: x + .1, _init(model)), _inputs()
  run = jax.jit(lambda inputs: _apply(model)(params, inputs, None, full=True))
  full = lambda **kw: np.asarray(run({"hidden": jnp.zeros((B, L), bool), **inputs, **kw}))
  base = full()
  turn = lambda name: inputs[name][:, ::-1]
  np.testing.assert_allclose(full(items=turn("items"), ratings=turn("ratings")), base, rtol=1e-5)
  wide = {name: jnp.pad(inputs[name], ((0, 0), (2, 3))) for name in ("items", "ratings")}
  np.testing.assert_allclose(run({**inputs, **wide}), base, rtol=1e-5)
  hidden = jnp.zeros((B, L), bool).at[:, 3].set(True)
  hiding = full(hidden=hidden)
  assert np.abs(hiding - base).max() > 1e-3
  np.testing.assert_array_equal(
    full(hidden=hidden, ratings=jnp.where(hidden, 5.0, inputs["ratings"])), hiding)
  without = full(items=jnp.where(hidden, 0, inputs["items"]))
  np.testing.assert_allclose(hiding, without, rtol=1e-6)


def test_an_item_rated_twice_has_the_mean():
  model = _model(**OURS)
  params = _init(model)
  one = jax.jit(lambda items, values: _apply(model)(
    params, {"users": jnp.ones(1, jnp.int32), "items": items, "ratings": values}, None, full=True))
  twice = one(jnp.array([[3, 4, 3]]), jnp.array([[1.0, 5, 4]]))
  np.testing.assert_allclose(twice, one(jnp.array([[3, 4, 0]]), jnp.array([[2.5, 5, 0]])),
                             rtol=1e-6)


def test_unrated_items_get_no_gradient():
  model = _model(**OURS)
  objective = objectives.make("autoencode", num_items=N, known=model.objectives)
  loss = lambda params: objective.loss(_apply(model), params, _inputs(), shards=1, capacity=1,
                                       rng=jax.random.key(0))[0]
  grads = jax.jit(jax.grad(loss))(_init(model))
  used = np.isin(np.arange(1, N + 1), _inputs()["items"])
  assert used.sum() == N - 2
  for rows in (grads["embed"]["kernel"], grads["head"]["kernel"].T):
    moved = np.abs(rows).sum(axis=1) > 0
    np.testing.assert_array_equal(moved, used)


def test_dropout_is_on_the_code_alone_and_off_at_test():
  model = _model(**OURS, dropout=0.5)
  params, inputs = _init(model), _inputs()
  run = lambda key: _apply(model)(params, inputs, key)
  np.testing.assert_array_equal(run(None), run(None))
  assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 1e-4
  # Without a way past the code, dropping all of it leaves the same for everybody.
  gone = _apply(_model(**OURS, dropout=1 - 1e-9))(params, inputs, jax.random.key(0), full=True)
  np.testing.assert_allclose(gone, jnp.broadcast_to(gone[:1], gone.shape), rtol=1e-5)


def test_constant_ratings_are_learned():
  inputs = _inputs()
  inputs["ratings"] = jnp.where(inputs["items"] > 0, 4.0, 0)
  model = _model(**OURS, head_bias=True)
  objective = objectives.make("autoencode", num_items=N, known=model.objectives)
  tx = optax.adam(0.03)
  def loss(params):
    total, weight, _ = objective.loss(_apply(model), params, inputs, shards=1, capacity=1,
                                      rng=jax.random.key(0))
    return total / weight
  def body(_, carry):
    params, slots = carry
    updates, slots = tx.update(jax.grad(loss)(params), slots)
    return optax.apply_updates(params, updates), slots
  params = _init(model)
  params, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 600, body, c))((params, tx.init(params)))
  assert loss(params) < 1e-4
  # Held-out items of known users, too: the last columns are asked for without their ratings.
  asked = objective.predict(_apply(model), params, inputs["users"], inputs["items"][:, :3],
                            inputs["ratings"][:, :3], inputs["items"][:, 3:])
  np.testing.assert_allclose(asked, 4, atol=0.3)


# Biases and extra ratings.


def test_biases_are_shrunk_residuals():
  model = _model("recjax", widths=(4,), clip=False)
  params, inputs = _init(model), _inputs()
  params["head"]["kernel"] *= 0
  params["bias"]["log_shrink"] = jnp.log(jnp.array([7.0, 3.0]))
  full = np.asarray(_apply(model)(params, inputs, None, full=True))
  item = np.asarray(TABLES["item_rating"])
  for row, (items, values) in enumerate(zip(inputs["items"], inputs["ratings"], strict=True)):
    real = np.asarray(items) > 0
    left = np.asarray(values)[real] - item[np.asarray(items)[real] - 1]
    np.testing.assert_allclose(full[row], item + left.sum() / (real.sum() + 3), rtol=1e-5)


def test_extra_ratings_are_read_for_their_users():
  run = jax.jit(lambda tables, inputs, length: step.make_apply(
    _model("recjax", widths=(4,), extra_ratings="other", extra_len=length), tables)(
      params, inputs, None, full=True), static_argnums=2)
  model = _model("recjax", widths=(4,))
  params, inputs = _init(model), _inputs()
  alone = _apply(model)(params, inputs, None, full=True)
  both = run(EXTRA, inputs, 2)
  same = np.isclose(alone, both, atol=1e-6).all(axis=1)
  assert same.tolist() == [False, True, False, True]  # users 1 and 3 have more
  unknown = {**inputs, "users": jnp.zeros(B, jnp.int32)}
  np.testing.assert_allclose(run(EXTRA, unknown, 2), alone, rtol=1e-6)
  newest = {**EXTRA, "extra_offsets": jnp.array([0, 0, 1, 1, 2, 2]),
            "extra_items": jnp.array([9, 9, 1]), "extra_ratings": jnp.array([1.0, 4.0, 2.0])}
  np.testing.assert_allclose(run(EXTRA, inputs, 1), run(newest, inputs, 2), rtol=1e-6)


def test_predictions_are_clipped_and_losses_are_not():
  model = _model("recjax", widths=(4,), dropout=0.0)
  params, inputs = _init(model), _inputs()
  params["bias"]["item"] = params["bias"]["item"] + 50.0
  assert _apply(model)(params, inputs, None).max() == 5
  assert _apply(model)(params, inputs, jax.random.key(0)).max() > 5


# Re-feeding in the compiled step.


@pytest.mark.parametrize("refeed", [0, 2])
def test_a_step_with_refeeding_is_so_many_updates(refeed):
  data = _rated(seed=0)
  model = _model(num_items=data.num_items, **OURS, dropout=0.3)
  objective = objectives.make("autoencode", num_items=data.num_items, known=model.objectives,
                              autoencode={"refeed": refeed})
  apply_fn, tx = _apply(model), optax.sgd(0.05, momentum=0.9)
  mesh = partition.make_mesh(1)
  resident = jax.tree.map(jnp.asarray, batches.resident(data, columns=objective.columns))
  users = len(resident["users"])
  sample = batches.make_sampler(num_users=users, batch_size=users, length=6, window="last")
  params = _init(model)
  steps = step.make_train_steps(
    apply_fn=apply_fn, objective=objective, tx=tx, sample=sample, mesh=mesh, micro_batches=1,
    trainable=dict.fromkeys(trees.flatten(params), True), rooms={0: 1})
  first = state.create(params, tx, 0)
  after, _ = steps(jax.tree.map(jnp.copy, first), resident, np.int32(1))
  assert int(after.step) == 1

  keys = [jax.random.fold_in(key, 0) for key in jax.random.split(first.rng, 3)[1:]]
  batch = jax.tree.map(np.asarray, jax.jit(sample)(
    resident, jax.random.split(first.rng, 3)[0], jnp.int32(0)))
  def loss(params, inputs, rng):
    predicted = apply_fn(params, inputs, rng, full=True)
    known = np.zeros(predicted.shape, bool)
    truth = np.zeros(predicted.shape, np.float32)
    rows = np.arange(users)[:, None]
    known[rows, np.maximum(batch["items"] - 1, 0)] = batch["items"] > 0
    truth[rows, np.maximum(batch["items"] - 1, 0)] = batch["ratings"]
    if "dense" in inputs:
      known, truth = np.broadcast_to(data.in_domain[1:], known.shape), inputs["dense"]
    return jnp.sum(jnp.where(known, predicted - truth, 0)**2) / known.sum()
  @jax.jit
  def reference(params, inputs):
    slots, rng, before = tx.init(params), keys[1], params
    for turn in range(1 + refeed):
      if turn:
        made = apply_fn(before, inputs, rng, full=True)
        rated = jnp.broadcast_to(data.in_domain[1:], made.shape)
        inputs = {"users": inputs["users"], "dense": jnp.where(rated, made, 0), "rated": rated}
        rng = jax.random.fold_in(rng, turn)
      before = params
      updates, slots = tx.update(jax.grad(loss)(params, inputs, rng), slots)
      params = optax.apply_updates(params, updates)
    return params
  params = reference(params, {name: batch[name] for name in ("users", "items", "ratings")})
  for name, array in trees.flatten(params).items():
    np.testing.assert_allclose(trees.flatten(after.params)[name], array, rtol=2e-4, atol=1e-6)


# Transfer and a whole run.


def test_rows_of_items_cross_by_name_and_untrained_ones_start_fresh():
  model = _model(**OURS, head_bias=True)
  source, fresh = (trees.flatten(_init(model, seed)) for seed in (1, 2))
  theirs = checkpoint.Rows(np.array([b"i%d" % n for n in range(N)]), np.arange(N) < 4)
  mine = checkpoint.Rows(theirs.names[::-1], np.ones(N, bool))
  plan = transfer.make_plan(
    trees.unflatten(fresh), source, model.transfer_rules("model"), row_tables=model.row_tables(),
    target_rows={"rated": mine}, source_rows={"rated": theirs})
  merged = trees.flatten(transfer.merge(plan, trees.unflatten(fresh), source))
  np.testing.assert_array_equal(merged["hidden_1/kernel"], source["hidden_1/kernel"])
  rows = merged["embed/kernel"]
  np.testing.assert_array_equal(rows[-4:], source["embed/kernel"][:4][::-1])
  np.testing.assert_array_equal(rows[:-4], fresh["embed/kernel"][:-4])
  np.testing.assert_array_equal(merged["head/kernel"][:, -1], source["head/kernel"][:, 0])
  np.testing.assert_array_equal(merged["head/kernel"][:, 0], fresh["head/kernel"][:, 0])
  rules = model.transfer_rules("embedding")
  matched, rest = trees.match(trees.unflatten(fresh), rules)
  assert set(matched) == {"embed/kernel", "head/kernel", "head/bias"} and rest
  assert model.transfer_rules("other") is None


def test_sizes_that_do_not_fit_are_errors():
  for wrong in (dict(widths=(4, 4)), dict(widths=(4, 5, 6), tied=True), dict(act="tanh")):
    with pytest.raises(errors.UserError):
      _model(**wrong)


def _rated(seed, *, name="small", in_domain=range(1, 8), users=24):
  rng = np.random.default_rng(seed)
  pool = list(in_domain)
  rows = [rng.permutation(pool)[:7] for _ in range(users)]
  data = evaluator_data.dataset([(r[:4], r[4:5], r[5:7]) for r in rows], 14, in_domain=in_domain)
  # Users differ in their mean, so that ratings elsewhere tell something.
  level = np.repeat(rng.integers(1, 6, users), np.diff(data.offsets)[1:])
  manifest = dict(name=name, title="small", generated=True, users=users, items=len(pool),
                  interactions=len(data.items), evaluated_users=users, mean_train_length=4.0,
                  raw_sha256="0" * 64, split={})
  return dataclasses.replace(data, manifest=manifest, ratings=level.astype(np.float32))


@pytest.mark.slow
def test_a_run_takes_what_the_source_has_learned(tmp_path):
  domains = {"src": range(8, 15), "tgt": range(1, 8)}
  for name, domain in domains.items():
    sequences.save(tmp_path / name, _rated(seed=3, name=name, in_domain=domain))
  def config(dataset, **extra):
    config = common.get_config()
    config.update(data_dir=str(tmp_path), dataset=dataset, batch_size=8, total_steps=12)
    config.model.update(name="autoencoder", variant="recjax", widths=(4,), **extra)
    config.objective.name = "masked_rating"
    config.objective.masked_rating = dict(rate=0.5, held_out=3)
    config.optim.update(lr=0.01, decay="linear")
    config.eval.update(metric="rating/rmse", protocols=("rating",), every_epochs=None,
                       every_steps=4, batch_size=8)
    config.log.tensorboard = False
    return config
  source = train.train_and_evaluate(config("src"), tmp_path / "run_src")
  assert source["references"] == ["global_mean", "item_bias", "item_user_bias"]
  target = config("tgt", extra_ratings="src")
  target.transfer.update(checkpoint=str(tmp_path / "run_src"), mode="model")
  report = train.train_and_evaluate(target, tmp_path / "run_tgt")
  means = report["test"]["rating"]
  assert set(means) == {"rmse", "mae", "user_rmse", "user_mae"}
  assert means["rmse"] < report["item_user_bias"]["rating"]["rmse"]  # it knows the user's level
  with np.load(tmp_path / "run_tgt" / "per_user_test.npz") as arrays:
    mse, count = arrays["train/rating/mse"], arrays["train/rating/count"]
    assert np.sqrt(np.average(mse, weights=count)) == pytest.approx(means["rmse"], rel=1e-5)
    assert arrays["item_user_bias/rating/mae"].shape == mse.shape == (24,)
  crossed = json.loads((tmp_path / "run_tgt" / "restore_report.json").read_text())["leaves"]
  rows = {leaf["target"]: leaf.get("rows", {}).get("matched") for leaf in crossed}
  assert rows["bias/item"] == rows["head/kernel"] == 7 and rows["bias/log_shrink"] is None
