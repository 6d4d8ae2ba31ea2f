"""The compiled steps: how they are cut (calls, micro-batches, devices) changes nothing."""

import functools

import evaluator_data
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from recjax import catalog
from recjax import models
from recjax import objectives
from recjax import optim
from recjax import partition
from recjax import softmax
from recjax import state as state_lib
from recjax import step
from recjax import trees
from recjax.data import batches
from recjax.data import sequences
from recjax.models import layers
from recjax.objectives import objective as objective_lib

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
  return {"item": fill(N + 2, W), "user": fill(USERS + 1, W), "mix": fill(W, W),
          "head": fill(W, N + 1)}


def _apply(params, inputs, rng, positions=None, readout=None, *, rate):
  """A model in five lines: the steps must not care."""
  items, users = inputs["items"], inputs["users"]
  x = (params["item"][items] + params["user"][users][:, None]) * (items > 0)[..., None]
  x = jnp.tanh((x + x.sum(1, keepdims=True) / T) @ params["mix"])  # padding adds nothing
  if rate:
    x = x * jax.random.bernoulli(rng, 1 - rate, x.shape)
  x = x if positions is None else layers.select(x, positions)
  return catalog.read(catalog.Scores(x, params["head"], axis=1), readout=readout)


@functools.cache
def _setup(devices=1, micro_batches=1, cuts=(), rate=0.0, objective="masked_item", window=None,
           batch_size=B, rules=(), parts=(), **optim_fields):
  """Returns (start() -> state, train_steps, resident)."""
  mesh = partition.make_mesh(devices)
  objective = objectives.make(objective, num_items=N, known=("masked_item", "next_item"),
                              window=window, masked_item=dict(rate=0.4), mix=dict(parts=parts))
  resident = batches.resident(_data())
  lengths = np.minimum(resident["end"] - resident["begin"], T)
  config = ml_collections.ConfigDict({**OPTIM, **optim_fields, "rules": rules})
  plan = optim.plan(config, _params())
  tx = optim.make(config, _params(), schedule=optim.make_schedule(config, total_steps=100),
                  plan=plan)
  rows = batch_size // micro_batches // devices
  run = step.make_train_steps(
    apply_fn=functools.partial(_apply, rate=rate), objective=objective, tx=tx, mesh=mesh,
    sample=batches.make_sampler(num_users=USERS, batch_size=batch_size, length=T,
                                window=objective.window),
    trainable={leaf: not options["freeze"] for leaf, options in plan.items()},
    micro_batches=micro_batches * devices,
    rooms={columns: objective.capacity(np.array([columns]) if cuts else lengths, rows=rows)
           for columns in (*cuts, T)})
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


@pytest.mark.optimized
@pytest.mark.parametrize("setup", [
  pytest.param(dict(rate=0.3), marks=pytest.mark.slow), dict(rate=0.3, devices=4)])
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


class _Draws(objective_lib.Objective):
  """An objective that learns nothing and reports what it was given to draw from."""

  def prepare(self, rng, batch, pool):
    del pool
    return {"noise": jax.random.uniform(rng, batch["users"].shape)}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    del apply_fn, shards, capacity
    draws = {"corruption": jnp.sum(inputs["noise"]), "dropout": jax.random.uniform(rng)}
    return 0.0 * jnp.sum(params["mix"]), jnp.float32(1), draws


@pytest.mark.parametrize("parts", [1, 2])
def test_every_step_and_part_draws_anew(parts):
  tx = optim.make(ml_collections.ConfigDict(OPTIM), _params(), schedule=lambda step: 0.1,
                  plan=optim.plan(ml_collections.ConfigDict(OPTIM), _params()))
  nobody = lambda resident, rng, step: {"users": jnp.zeros(B, int), "items": jnp.zeros((B, 1), int)}
  run = step.make_train_steps(
    apply_fn=None, objective=_Draws(), tx=tx, sample=nobody, mesh=partition.make_mesh(1),
    trainable=dict.fromkeys(trees.flatten(_params()), True), micro_batches=parts,
    rooms={1: 1})
  state, drawn = state_lib.create(jax.tree.map(jnp.asarray, _params()), tx, 0), []
  for _ in range(4):
    state, sums = run(state, {"pool": jnp.zeros(1, int)}, np.int32(1))
    drawn.append((float(sums["corruption"]), float(sums["dropout"])))
  corruption, dropout = zip(*drawn, strict=True)
  assert len(set(corruption)) == len(set(dropout)) == 4
  if parts == 2:
    alone = []
    for part in (0, 1):  # a part that draws what another drew would give twice its number
      key = jax.random.fold_in(jax.random.fold_in(
        jax.random.split(jax.random.key(0), 3)[2], 0), part)
      alone.append(float(jax.random.uniform(key)))
    assert alone[0] != alone[1] and dropout[0] == pytest.approx(sum(alone), rel=1e-6)


def test_micro_batches_equal_the_whole_batch():
  whole, sums = _train(4)
  parted, parted_sums = _train(4, micro_batches=4)
  _assert_close(whole, parted, 1e-5)
  for name in ("examples", "tokens", "weight", "dropped"):
    assert sums[name] == parted_sums[name], name
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(sums[name], parted_sums[name], rtol=1e-5)


@pytest.mark.parametrize("devices,parts,cuts", [(1, 4, (2, 4)), (1, 1, (5,)), (2, 2, (3,))])
def test_cut_micro_batches_equal_the_whole_batch(devices, parts, cuts):
  whole, sums = _train(4)
  cut, cut_sums = _train(4, devices=devices, micro_batches=parts, cuts=cuts)
  _assert_close(whole, cut, 1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name], cut_sums[name], rtol=1e-5, err_msg=name)


# Mixes of objectives.


MIX = dict(objective="mix", parts=(("masked_item", 1.0), ("next_item", 0.5)), window="last",
           momentum=0.0)


def test_a_mix_of_one_part_is_that_part():
  alone, sums = _train(4, window="last", momentum=0.0)
  mixed, mixed_sums = _train(4, **{**MIX, "parts": MIX["parts"][:1]})
  _assert_close(alone, mixed, 1e-5)
  np.testing.assert_allclose(mixed_sums["grad_norm"], sums["grad_norm"], rtol=1e-5)
  assert mixed_sums["masked_item/weight"] == sums["weight"]
  np.testing.assert_allclose(mixed_sums["masked_item/loss"], sums["loss"], rtol=1e-5)


def test_the_gradient_of_a_mix_is_the_weighted_sum_of_its_parts():
  together, sums = _train(1, **MIX)
  moved, losses = {}, {}
  for name, weight in MIX["parts"]:
    params, own = _train(1, objective=name, window="last", momentum=0.0)
    for leaf, x in params.items():
      moved[leaf] = moved.get(leaf, 0) + weight * (x - _params()[leaf])
    losses[name] = weight * own["loss"] / own["weight"]
    assert sums[f"{name}/weight"] == own["weight"]
    np.testing.assert_allclose(sums[f"{name}/loss"], own["loss"], rtol=1e-5)
  _assert_close({leaf: _params()[leaf] + x for leaf, x in moved.items()}, together, 1e-4)
  np.testing.assert_allclose(sums["loss"] / sums["weight"], sum(losses.values()), rtol=1e-5)


def test_a_cut_mix_equals_the_whole_batch():
  # Labels of the masked part are spread unevenly: means over micro-batches would be another loss.
  whole, sums = _train(4, **MIX)
  parted, parted_sums = _train(4, **MIX, devices=2, micro_batches=2, cuts=(3,))
  _assert_close(whole, parted, 1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name], parted_sums[name], rtol=1e-5, err_msg=name)


def test_a_part_is_cut_to_the_fewest_columns_that_hold_it():
  rows = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])  # 1, 3, 2, 0 items
  branches = {columns: lambda params, part, rng, columns=columns: {
    "columns": jnp.zeros(5).at[columns].add(1), "items": jnp.sum(part["items"])}
              for columns in (2, 3, 4)}
  mesh = partition.make_mesh(1)
  found = step._accumulate(branches, None, {"items": jnp.asarray(rows)}, jax.random.key(0), 4, mesh)
  assert found["columns"].tolist() == [0, 0, 3, 1, 0] and found["items"] == 6
  found = step._accumulate(branches, None, {"items": jnp.asarray(rows)}, jax.random.key(0), 2, mesh)
  assert found["columns"].tolist() == [0, 0, 1, 1, 0]  # (0, 1) and (2, 3) go together


@pytest.mark.parametrize("devices,cuts", [
  (4, ()), pytest.param(2, (3,), marks=pytest.mark.slow)])
def test_any_number_of_devices_agrees(devices, cuts):
  setup = dict(rate=0.3, cuts=cuts)
  one, sums = _train(4, micro_batches=4, **setup)
  many, many_sums = _train(4, devices=devices, micro_batches=4 // devices, **setup)
  _assert_close(one, many, 1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name], many_sums[name], rtol=1e-5, err_msg=name)


def test_the_softmax_in_one_pass_is_the_same_step_on_any_number_of_devices(monkeypatch):
  plain, _ = _train(3, rate=0.3, micro_batches=2)
  monkeypatch.setattr(softmax, "FEW", 0)
  monkeypatch.setattr(softmax, "MANY", 2)
  monkeypatch.setattr(catalog.Scores, "against_all", lambda *_: pytest.fail("at once"))
  for devices in (1, 2):  # `eps` does nothing here but ask for another program
    found, _ = _train(3, rate=0.3, micro_batches=2 // devices, devices=devices, eps=1e-7)
    _assert_close(plain, found, 1e-5)


def test_a_real_model_agrees_over_devices_with_dropout():
  model = models.make("bert4rec", variant="survey_code", num_items=N, num_users=USERS,
                      field_rows={}, num_layers=1, item_width=4, user_width=4, heads=2, hidden=8,
                      max_len=T, dropout=0.3)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), {})["params"])
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(x.dtype), shapes)
  items, users = rng.integers(1, N + 1, (4, T)), np.arange(1, 5)
  apply_fn, scores = step.make_apply(model, {}), []
  for devices in (1, 4):
    mesh = partition.make_mesh(devices)
    def run(params, items, users, mesh=mesh):
      items, users = partition.constrain_rows((items, users), mesh)
      return apply_fn(params, {"items": items, "users": users}, jax.random.key(7))
    scores.append(jax.jit(run)(params, items, users))
  np.testing.assert_allclose(*scores, atol=1e-5)
  assert np.abs(scores[0] - apply_fn(params, {"items": items, "users": users}, None)).max() > 0.1


def test_a_step_follows_the_gradient_of_the_mean():
  # A batch of everybody, whose last item is the target: no randomness is left.
  params, sums = _train(1, objective="next_item", window="last", batch_size=24, momentum=0.0,
                        lr=1.0)
  begin, end = _data().span("train")
  rows = sequences.pad(_data().items, begin[1:], end[1:], width=T, align="right")
  @jax.jit
  @jax.value_and_grad
  def mean_loss(p):
    items = np.concatenate([rows[:, :-1], np.full((USERS, 1), N + 1)], 1)
    scores = _apply(p, {"items": items, "users": np.arange(1, USERS + 1)}, None, rate=0)[:, -1]
    return -jnp.mean(jax.nn.log_softmax(scores)[np.arange(USERS), rows[:, -1]])
  loss, grads = mean_loss(_params())
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


def test_the_gradient_norm_is_that_of_the_trained_leaves():
  rules = (("item|head", ml_collections.FrozenConfigDict({"freeze": True})),)
  norms = []
  for chosen in ((), rules):
    start, run, resident = _setup(rules=chosen)
    norms.append(float(run(start(), resident, np.int32(1))[1]["grad_norm"]))
  assert 0 < norms[1] < 0.99 * norms[0]


def test_predictions_are_the_same_on_any_number_of_devices():
  objective = objectives.make("masked_item", num_items=N, known=("masked_item",))
  rng = np.random.default_rng(2)
  users, histories = rng.integers(0, USERS, B), rng.integers(0, N + 1, (B, T)).astype(np.int32)
  scores = []
  for devices in (1, 4):
    predict = step.make_predict(functools.partial(_apply, rate=0), objective,
                                partition.make_mesh(devices))
    scores.append(np.asarray(jax.jit(predict)(_params(), users, histories)))
  assert scores[0].shape == (B, N + 1) and scores[0].dtype == np.float32
  np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
