"""Objectives: what is hidden, what is predicted, and that gathering labels changes no loss."""

import functools

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import catalog
from recjax import errors
from recjax import models
from recjax import objectives
from recjax import step
from recjax.data import batches
from recjax.objectives import losses
from recjax.objectives import next_item

N, T, B = 40, 10, 8
MASK = N + 1
POOL = np.arange(1, N + 1, 2, dtype=np.int32)  # the domain: odd items
RESIDENT = {"pool": POOL}
NAMES = ("masked_item", "next_item", "causal_next_item")  # of items at positions


def _make(name, **kw):
  return objectives.make(name, num_items=N, known=(name,), **kw)


def _batch(rows=B, width=T, seed=0):
  rng = np.random.default_rng(seed)
  items = rng.integers(1, N + 1, (rows, width)).astype(np.int32)
  items[np.arange(width) < rng.integers(0, width, rows)[:, None]] = 0
  items[-1] = 0  # a row that fills up the epoch's last batch
  return {"items": items, "users": np.arange(rows, dtype=np.int32)[::-1].copy()}


# Masked item prediction.


@pytest.fixture(scope="module")
def masked():
  """Many masked items: (original items, prepared inputs)."""
  objective = _make("masked_item")
  batch = _batch(4000, 30)
  out = jax.jit(objective.prepare)(jax.random.key(0), batch, RESIDENT)
  return batch["items"], jax.tree.map(np.asarray, out)


def _close(count, total, share):
  return abs(count - share * total) < 4 * np.sqrt(total * share * (1 - share))


def test_fifteen_percent_are_chosen_and_never_padding(masked):
  items, out = masked
  real, chosen = items > 0, out["labels"] > 0
  assert _close(chosen.sum(), real.sum(), 0.15)
  assert not (chosen & ~real).any() and (out["items"][~real] == 0).all()
  np.testing.assert_array_equal(out["labels"][chosen], items[chosen])
  np.testing.assert_array_equal(out["items"][~chosen], items[~chosen])
  for column in range(items.shape[1]):  # everywhere alike
    total = real[:, column].sum()
    assert abs(chosen[:, column].sum() - 0.15 * total) < 5 * np.sqrt(total * 0.1275)


def test_eighty_ten_ten(masked):
  items, out = masked
  chosen = out["labels"] > 0
  now, before, total = out["items"][chosen], items[chosen], chosen.sum()
  assert _close((now == MASK).sum(), total, 0.8)
  # A replacement is the item itself once in a pool, where that item belongs to the pool.
  same = 0.1 + 0.1 / len(POOL) * np.isin(before, POOL).mean()
  assert _close((now == before).sum(), total, same)
  replaced = now[(now != MASK) & (now != before)]
  assert np.isin(replaced, POOL).all()
  counts = np.bincount(replaced, minlength=N + 1)[POOL]
  assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_masks_follow_the_key():
  prepare = jax.jit(_make("masked_item").prepare)
  one, again, other = (prepare(jax.random.key(k), _batch(), RESIDENT)["items"] for k in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()


def test_shares_come_from_the_config():
  objective = _make("masked_item", masked_item=dict(rate=1.0, mask_share=0.0, random_share=1.0))
  batch = _batch(200)
  out = objective.prepare(jax.random.key(0), batch, RESIDENT)
  np.testing.assert_array_equal(out["labels"], batch["items"])
  assert np.isin(out["items"][batch["items"] > 0], POOL).all()


# Next item prediction.


def test_the_target_of_a_prefix_is_replaced_by_mask():
  batch = _batch()
  batch["items"][0] = 7  # the target occurs elsewhere: only its own place is hidden
  out = jax.tree.map(np.asarray, _make("next_item").prepare(None, batch, RESIDENT))
  real = batch["items"][:, -1] > 0
  assert real.sum() == B - 1
  np.testing.assert_array_equal(out["items"][:, -1], np.where(real, MASK, 0))
  np.testing.assert_array_equal(out["items"][:, :-1], batch["items"][:, :-1])
  np.testing.assert_array_equal(out["labels"][:, -1], batch["items"][:, -1])
  assert (out["labels"][:, :-1] == 0).all()


def test_next_items_follow_uniform_prefixes():
  # Survey's code: k uniform over 3..n; the first k - 1 items and MASK predict the k-th.
  n, draws = 9, 3000
  data = evaluator_data.dataset([(range(1, n + 1), [20], [21])], N)
  objective = _make("next_item")
  resident = jax.tree.map(jnp.asarray, batches.resident(data, min_length=objective.min_length))
  sample = batches.make_sampler(num_users=1, batch_size=1, length=n, window=objective.window)
  rng = jax.random.key(0)
  run = jax.jit(jax.vmap(lambda s: objective.prepare(rng, sample(resident, rng, s), RESIDENT)))
  out = jax.tree.map(lambda x: np.asarray(x)[:, 0], run(jnp.arange(draws)))
  targets = out["labels"][:, -1]
  counts = np.bincount(targets, minlength=n + 1)
  assert counts[:3].sum() == 0 and counts.sum() == draws
  options = n - 2
  assert np.abs(counts[3:] - draws / options).max() < 4.5 * np.sqrt(draws / options)
  for row, target in zip(out["items"], targets, strict=True):
    assert row[row > 0].tolist() == [*range(1, target), MASK]  # neither the target nor the future


def test_causal_labels_are_the_shifted_inputs():
  batch = _batch(width=T + 1)
  out = jax.tree.map(np.asarray, _make("causal_next_item").prepare(None, batch, RESIDENT))
  assert out["items"].shape == out["labels"].shape == (B, T)
  np.testing.assert_array_equal(out["items"], batch["items"][:, :-1])
  real = out["items"] > 0
  np.testing.assert_array_equal(out["labels"][real], batch["items"][:, 1:][real])
  assert (out["labels"][~real] == 0).all()  # nothing predicts the first item from padding
  np.testing.assert_array_equal((out["labels"] > 0).sum(1),
                                np.maximum((batch["items"] > 0).sum(1) - 1, 0))


# Losses.


def test_cross_entropy_is_minus_the_log_probability():
  rng = np.random.default_rng(0)
  scores, labels = rng.normal(size=(3, 4, 9)).astype(np.float32) * 3, rng.integers(0, 9, (3, 4))
  weights = rng.integers(0, 2, (3, 4))
  p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  want = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
  given = lambda dtype: catalog.Given(jnp.asarray(scores, dtype)).against_all(jnp.asarray(labels))
  total, weight = losses.cross_entropy(*given(jnp.float32), weights)
  np.testing.assert_allclose(total, (want * weights).sum(), rtol=1e-5)
  assert weight == weights.sum()
  rough, _ = losses.cross_entropy(*given(jnp.bfloat16), weights)
  assert rough.dtype == jnp.float32
  np.testing.assert_allclose(rough, total, rtol=0.02)


def test_large_scores_stay_finite():
  total, _ = losses.cross_entropy(*catalog.Given(jnp.array([[[1e4, -1e4]]])).against_all(
    jnp.array([[0]])), jnp.ones((1, 1)))
  assert total == 0


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_labeled_positions_find_every_label_once(shards):
  labels = _make("masked_item", masked_item=dict(rate=0.4)).prepare(
    jax.random.key(1), _batch(), RESIDENT)["labels"]
  flat = np.asarray(labels).reshape(shards, -1)
  room = int((flat > 0).sum(1).max())
  for capacity in (room, room + 5):
    positions, picked, weights, dropped = jax.tree.map(np.asarray, losses.labeled_positions(
      labels, shards=shards, capacity=capacity))
    assert dropped == 0 and positions.shape == (shards, capacity)
    for s in range(shards):
      used = weights[s] > 0
      assert sorted(positions[s][used]) == np.flatnonzero(flat[s]).tolist()
      np.testing.assert_array_equal(picked[s][used], flat[s][positions[s][used]])
  *_, weights, dropped = losses.labeled_positions(labels, shards=shards, capacity=room - 2)
  want = np.maximum((flat > 0).sum(1) - (room - 2), 0).sum()
  assert dropped == want > 0 and weights.sum() == (flat > 0).sum() - want


@functools.cache
def _model(causal):
  model = models.make("sasrec" if causal else "bert4rec", variant="survey_code", num_items=N,
                      num_users=B, field_rows={}, num_layers=1, item_width=8, user_width=4, heads=2,
                      hidden=8, max_len=T + 1, dropout=0.0)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), {})["params"])
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)
  return step.make_apply(model, {}), params


def _plain_loss(apply_fn, params, inputs):
  """Scores all positions and sums the labeled ones: the three-line version."""
  scores = apply_fn(params, {name: inputs[name] for name in ("items", "users")}, None)
  logp = jax.nn.log_softmax(scores)
  picked = jnp.take_along_axis(logp, inputs["labels"][..., None], -1)[..., 0]
  return -jnp.sum(jnp.where(inputs["labels"] > 0, picked, 0))


@pytest.mark.parametrize("name", NAMES)
def test_gathering_the_labels_changes_neither_loss_nor_gradient(name):
  objective = _make(name, masked_item=dict(rate=0.4))
  apply_fn, params = _model(isinstance(objective, next_item.CausalNextItem))
  inputs = objective.prepare(jax.random.key(2), _batch(width=T + objective.extra_columns), RESIDENT)
  lengths = np.full(B, T)
  def gathered(p, shards):
    room = losses.capacity(*objective.label_statistics(lengths), rows=B // shards)
    total, weight, metrics = objective.loss(apply_fn, p, inputs, shards=shards, capacity=room,
                                            rng=None)
    return total, (weight, metrics)
  def both(p, shards):
    return (jax.value_and_grad(lambda p: _plain_loss(apply_fn, p, inputs))(p),
            jax.value_and_grad(gathered, has_aux=True)(p, shards))
  labels = int((inputs["labels"] > 0).sum())
  (want, want_grad), ((total, (weight, metrics)), grad) = jax.jit(
    functools.partial(both, shards=2))(params)
  assert labels >= B - 1 and want > labels  # there is something to compare
  assert weight == labels and metrics["dropped"] == 0
  np.testing.assert_allclose(total, want, rtol=1e-5)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(want_grad))
  for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(want_grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_unlabeled_positions_do_not_count():
  """Any scores may stand where there is no label."""
  objective = _make("masked_item")
  inputs = objective.prepare(jax.random.key(3), _batch(), RESIDENT)
  everything = np.random.default_rng(0).normal(size=(B, T, N + 1)).astype(np.float32)
  changed = everything + 100 * np.random.default_rng(1).normal(size=everything.shape) * (
    np.asarray(inputs["labels"]) == 0)[..., None]
  def loss(scores):
    apply_fn = lambda params, inputs, rng, positions, readout: readout(catalog.Given(
      jnp.take_along_axis(jnp.asarray(scores, jnp.float32).reshape(2, -1, N + 1),
                          positions[..., None], 1)))
    return objective.loss(apply_fn, None, inputs, shards=2, capacity=B * T // 2, rng=None)[0]
  assert loss(everything) == loss(changed) > 0


# Room for labels.


@pytest.mark.parametrize("lengths,rows", [
  (np.full(500, 50), 32), (np.random.default_rng(0).integers(1, 100, 500), 16),
  (np.array([3] * 400 + [100] * 4), 64), (np.full(9, 10), 2)])
@pytest.mark.parametrize("rate", [0.15, 0.6])
def test_masks_find_room(lengths, rows, rate):
  objective = _make("masked_item", masked_item=dict(rate=rate))
  room = losses.capacity(*objective.label_statistics(lengths), rows=rows)
  rng = np.random.default_rng(1)
  labels = rng.binomial(lengths[rng.integers(0, len(lengths), (20000, rows))], rate).sum(1)
  assert labels.max() <= room
  if rows * lengths.max() > 1000:  # and it is room saved
    assert room < 0.8 * rows * lengths.max()


@pytest.mark.parametrize("rows", [1, 2, 4, 64])
def test_a_long_row_among_short_ones_finds_room(rows):
  # One user in ten thousand: too rare for a variance, yet every epoch's loss must hold all of them.
  lengths = np.array([3] * 9999 + [200])
  for objective in (_make("causal_next_item"), _make("masked_item")):
    room = losses.capacity(*objective.label_statistics(lengths), rows=rows)
    share = getattr(objective, "rate", 1)
    assert room >= share * 199 + (rows - 1) * share * 2


def test_room_is_exact_where_labels_are():
  next_item = _make("next_item")
  assert losses.capacity(*next_item.label_statistics(np.array([1, 50])), rows=64) == 64
  causal = _make("causal_next_item")
  assert losses.capacity(*causal.label_statistics(np.full(7, 11)), rows=4) == 40


# Prediction.


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_scores_after_the_last_item(name):
  objective = _make(name)
  apply_fn, params = _model(isinstance(objective, next_item.CausalNextItem))
  batch = _batch()
  items = batch["items"]
  if not isinstance(objective, next_item.CausalNextItem):
    items = np.concatenate([items, np.full((B, 1), MASK, np.int32)], 1)
  scores, want = jax.jit(lambda p: (
    objective.predict(apply_fn, p, batch["users"], batch["items"]),
    apply_fn(p, {"items": items, "users": batch["users"]}, None)[:, -1]))(params)
  assert scores.shape == (B, N + 1) and scores.dtype == jnp.float32
  np.testing.assert_allclose(scores, want, atol=1e-5)


# What people write.


def test_objective_and_model_must_fit():
  known = models.MODELS["bert4rec"].objectives
  with pytest.raises(errors.UserError, match="does not fit this model; choose masked_item or next"):
    objectives.make("causal_next_item", num_items=N, known=known)
  with pytest.raises(errors.UserError, match="does not fit this model; choose causal_next_item"):
    objectives.make("masked_item", num_items=N, known=models.MODELS["sasrec"].objectives)
  with pytest.raises(errors.UserError, match="masked_item has no field 'rat'; there are rate"):
    objectives.make("masked_item", num_items=N, known=known, masked_item=dict(rat=0.2))
  with pytest.raises(errors.UserError, match="unknown field 'msked_item'"):
    objectives.make("masked_item", num_items=N, known=known, msked_item=dict(rate=0.2))
  with pytest.raises(errors.UserError, match="'mlm'.*masked_item.*next_item.*causal_next_item"):
    objectives.make("mlm", num_items=N, known=known)


def test_windows_are_the_objectives_own_unless_set():
  assert [_make(name).window for name in NAMES] == ["last", "prefix", "last"]
  assert _make("masked_item", window="random").window == "random"
  assert _make("next_item", masked_item=dict(rate=0.3)).window == "prefix"  # not its fields


@pytest.mark.parametrize("mix, message", [
  (dict(parts=()), "parts is empty"),
  (dict(parts=(("masked_item", 1.0), ("masked_item", 1.0))), "names one twice: masked_item"),
  (dict(parts=(("masked_item", -1.0),)), "masked_item has the weight -1.0; weights are positive"),
  (dict(parts=(("masked_item", 0.0),)), "parts is empty"),
  (dict(parts=("masked_item",)), "each is .name, weight., not 'masked_item'"),
  (dict(parts=(("masked_item", 1.0), ("next_item", 1.0))),
   "different windows .masked_item: last, next_item: prefix.*set objective.window"),
  (dict(parts=(("causal_next_item", 1.0),)), "'causal_next_item' does not fit this model"),
  (dict(parts=(("masked_item", 1.0), ("profile", 1.0))), "profile learns from labeled users alone"),
  (dict(parts=(("masked_item", 1.0),), evaluate="next_item"), "objective.mix.evaluate.*next_item"),
])
def test_a_mix_that_cannot_be_is_one_line(mix, message):
  with pytest.raises(errors.UserError, match=message):
    objectives.make("mix", num_items=N, known=models.MODELS["bert4rec"].objectives, mix=mix)
