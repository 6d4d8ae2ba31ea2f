"""The compiled steps: how they are cut (calls, micro-batches, devices) changes nothing."""

import functools

import evaluator_data
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from recjax import models
from recjax import objectives
from recjax import optim
from recjax import partition
from recjax import state as state_lib
from recjax import step
from recjax import trees
from recjax.data import batches
from recjax.models import layers

N, USERS, T, B, W = 20, 21, 6, 8, 4  # 3 steps an epoch, the last of them 5 users and 3 empty rows
OPTIM = dict(name="sgd", lr=0.1, b1=0.9, b2=0.999, eps=1e-8, momentum=0.9, weight_decay=0.0,
             clip_norm=None, decay="constant", final_lr_scale=0.0, warmup_steps=None, rules=())


@functools.cache
def _data():
  rng = np.random.default_rng(0)
  return evaluator_data.dataset(
    [(rng.integers(1, N + 1, rng.integers(2, 9)), [1], [2]) for _ in range(USERS)], N)


def _params():
  rng = np.random.default_rng(1)
  fill = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)
  return {"item": fill(N + 2, W), "user": fill(USERS + 1, W), "mix": fill(W, W), "head": fill(W, N + 1)}


def _apply(params, items, users, positions, rng, *, rate):
  """A model in five lines: the steps must not care."""
  x = (params["item"][items] + params["user"][users][:, None]) * (items > 0)[..., None]
  x = jnp.tanh((x + x.mean(1, keepdims=True)) @ params["mix"])
  if rate:
    x = x * jax.random.bernoulli(rng, 1 - rate, x.shape)
  return (x if positions is None else layers.select(x, positions)) @ params["head"]


@functools.cache
def _setup(devices=1, micro_batches=1, rate=0.0, objective="masked_item", window=None, batch_size=B,
           rules=(), **optim_fields):
  """Returns (start() -> state, train_steps, resident)."""
  mesh = partition.make_mesh(devices)
  objective = objectives.make(objective, num_items=N, model_is_causal=False, window=window,
                              masked_item=dict(rate=0.4))
  resident = batches.resident(_data())
  lengths = np.minimum(resident["end"] - resident["begin"], T)
  config = ml_collections.ConfigDict({**OPTIM, **optim_fields, "rules": rules})
  tx = optim.make(config, _params(), schedule=optim.make_schedule(config, total_steps=100),
                  plan=optim.plan(config, _params()))
  rows = batch_size // micro_batches // devices
  run = step.make_train_steps(
    apply_fn=functools.partial(_apply, rate=rate), objective=objective, tx=tx, mesh=mesh,
    sample=batches.make_sampler(num_users=USERS, batch_size=batch_size, length=T,
                                window=objective.window),
    micro_batches=micro_batches, shards=devices,
    capacity=objectives.losses.capacity(*objective.label_statistics(lengths), rows=rows))
  everywhere = partition.replicated(mesh)
  start = lambda seed=0: partition.put_state(
    state_lib.create(jax.tree.map(jnp.asarray, _params()), tx, seed), everywhere)
  return start, run, partition.put(resident, everywhere)


def _train(steps, *, seed=0, **setup):
  """Returns ({leaf: array} of the parameters, sums) after `steps` in one call."""
  start, run, resident = _setup(**setup)
  state, sums = run(start(seed), resident, np.int32(steps))
  assert int(state.step) == steps
  return jax.tree.map(np.asarray, state.params), jax.tree.map(np.asarray, sums)


def _assert_close(one, two, tolerance):
  for name, x in one.items():
    scale = np.abs(x - _params()[name]).max()
    assert scale > 0.01, name  # there is something to compare
    np.testing.assert_allclose(two[name], x, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("setup", [dict(rate=0.3), dict(rate=0.3, devices=4)])
def test_many_steps_in_a_call_are_as_many_calls_bit_for_bit(setup):
  start, run, resident = _setup(**setup)
  together, sums = run(start(), resident, np.int32(7))
  apart, singles = start(), []
  for count in (1, 1, 3, 2):
    apart, more = run(apart, resident, np.int32(count))
    singles.append(more)
  for a, b in zip(jax.tree.leaves((together.step, together.params, together.opt_state)),
                  jax.tree.leaves((apart.step, apart.params, apart.opt_state)), strict=True):
    np.testing.assert_array_equal(a, b)
  for name in ("examples", "tokens", "weight", "dropped"):
    assert sums[name] == sum(s[name] for s in singles), name
  np.testing.assert_allclose(sums["loss"], sum(s["loss"] for s in singles), rtol=1e-5)


def test_no_steps_change_nothing():
  params, sums = _train(0)
  jax.tree.map(np.testing.assert_array_equal, params, _params())
  assert all(x == 0 for x in sums.values())


def test_runs_follow_their_seed():
  one, again, other = (_train(3, seed=seed, rate=0.3)[0] for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert all((one[name] != other[name]).any() for name in one)


def test_epochs_differ_in_order_and_masks():
  # The second epoch must not repeat the first one's corruption.
  start, run, resident = _setup(lr=0.0)
  state, losses = start(), []
  for _ in range(3):
    state, sums = run(state, resident, np.int32(3))
    losses.append(float(sums["loss"] / sums["weight"]))
  assert len(set(losses)) == 3


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_whole_batch(parts):
  whole, sums = _train(4)
  parted, parted_sums = _train(4, micro_batches=parts)
  _assert_close(whole, parted, 1e-5)
  for name in ("examples", "tokens", "weight", "dropped"):
    assert sums[name] == parted_sums[name], name
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(sums[name], parted_sums[name], rtol=1e-5)


def test_micro_batches_draw_dropout_of_their_own():
  # With dropout they may differ from the whole batch, but each part must draw anew.
  one, two = (_train(1, micro_batches=2, rate=0.5, seed=seed)[0] for seed in (0, 1))
  assert (one["mix"] != two["mix"]).any()


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_any_number_of_devices_agrees(devices, parts):
  setup = dict(rate=0.3, micro_batches=parts)
  one, sums = _train(4, **setup)
  many, many_sums = _train(4, devices=devices, **setup)
  _assert_close(one, many, 1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name], many_sums[name], rtol=1e-5, err_msg=name)


def test_a_real_model_agrees_over_devices_with_dropout():
  model = models.make("bert4rec", variant="survey_code", num_items=N, num_users=USERS, field_rows={},
                      num_layers=1, item_width=4, user_width=4, heads=2, hidden=8, max_len=T,
                      dropout=0.3)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), {})["params"])
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(x.dtype), shapes)
  objective = objectives.make("next_item", num_items=N, model_is_causal=False)
  resident = batches.resident(_data())
  inputs = objective.prepare(None, {"items": np.asarray(resident["items"])[:4 * T].reshape(4, T),
                                    "users": np.arange(1, 5)}, None)
  apply_fn = step.make_apply(model, {})
  grads = []
  for devices in (1, 4):
    mesh = partition.make_mesh(devices)
    def loss(p, inputs, mesh=mesh, shards=devices):
      inputs = partition.constrain_rows(inputs, mesh)
      return objective.loss(apply_fn, p, inputs, shards=shards, capacity=4 // shards,
                            rng=jax.random.key(7))[0]
    placed = partition.put((params, inputs), partition.replicated(mesh))
    grads.append(jax.jit(jax.grad(loss))(*placed))
  flat = [trees.flatten(jax.tree.map(np.asarray, g)) for g in grads]
  for name, g in flat[0].items():
    np.testing.assert_allclose(flat[1][name], g, atol=2e-5 * max(np.abs(g).max(), 1e-2), err_msg=name)


def test_a_step_follows_the_gradient_of_the_mean():
  # A batch of everybody, whose last item is the target: no randomness is left.
  params, sums = _train(1, objective="next_item", window="last", batch_size=24, momentum=0.0, lr=1.0)
  data = _data()
  begin, end = data.span("train")
  def mean_loss(p):
    total = 0.0
    for user in range(1, USERS + 1):
      row = data.items[begin[user]:end[user]][-T:]
      items = jnp.asarray([0] * (T - len(row)) + row[:-1].tolist() + [N + 1])[None]
      scores = _apply(p, items, jnp.array([user]), None, None, rate=0)[0, -1]
      total -= jax.nn.log_softmax(scores)[int(row[-1])]
    return total / USERS
  loss, grads = jax.value_and_grad(mean_loss)(jax.tree.map(jnp.asarray, _params()))
  np.testing.assert_allclose(sums["loss"] / sums["weight"], loss, rtol=1e-5)
  np.testing.assert_allclose(sums["grad_norm"], optim.global_norm(grads), rtol=1e-4)
  _assert_close({name: _params()[name] - np.asarray(g) for name, g in grads.items()}, params, 1e-4)


def test_sums_count_an_epoch():
  _, sums = _train(3)
  begin, end = _data().span("train")
  assert sums["examples"] == USERS
  assert sums["tokens"] == np.minimum(end - begin, T).sum()
  assert 0 < sums["weight"] < sums["tokens"] and sums["dropped"] == 0


def test_training_learns():
  _, first = _train(3)
  start, run, resident = _setup()
  state, _ = run(start(), resident, np.int32(300))
  _, last = run(state, resident, np.int32(3))
  assert last["loss"] / last["weight"] < 0.8 * first["loss"] / first["weight"]


def test_the_state_is_donated():
  start, run, resident = _setup()
  state = start()
  new, _ = run(state, resident, np.int32(1))
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  assert not any(x.is_deleted() for x in jax.tree.leaves((new, resident)))


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_frozen_leaves_stay_bit_for_bit(clip_norm):
  rules = (("item|head", ml_collections.FrozenConfigDict({"freeze": True})),)
  params, _ = _train(5, rules=rules, clip_norm=clip_norm, name="adam", weight_decay=0.1)
  for name, before in _params().items():
    assert np.array_equal(params[name], before) == (name in ("item", "head")), name


def test_predictions_are_the_same_on_any_number_of_devices():
  objective = objectives.make("masked_item", num_items=N, model_is_causal=False)
  rng = np.random.default_rng(2)
  users, histories = rng.integers(0, USERS, B), rng.integers(0, N + 1, (B, T)).astype(np.int32)
  scores = []
  for devices in (1, 4):
    predict = step.make_predict(functools.partial(_apply, rate=0), objective,
                                partition.make_mesh(devices))
    scores.append(np.asarray(jax.jit(predict)(_params(), users, histories)))
  assert scores[0].shape == (B, N + 1) and scores[0].dtype == np.float32
  np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
