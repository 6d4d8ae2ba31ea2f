"""Losses with drawn negatives: formulas, limits, draws; no split of a batch changes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import catalog, errors, objectives
from recjax.models import layers
from recjax.objectives import losses

N, T, B, K = 40, 6, 4, 5
POOL = np.arange(1, N + 1, 2, dtype=np.int32)  # the domain: odd items
OWNED = {1: [0, 3, 19], 2: list(range(20))}  # users' places in the pool; user 2 has seen all
CASES = [("bce", "position"), ("gbce", "position"), ("gbce", "row"), ("gbce", "batch"),
         ("sampled_softmax", "row"), ("sampled_softmax", "position")]


def _make(criterion, negatives="position", count=K, **kw):
  return objectives.make("causal_next_item", num_items=N, known=("causal_next_item",),
                         causal_next_item=dict(criterion=criterion, negatives=negatives,
                                               num_negatives=count, **kw))


def _resident():
  gaps, begin, end = [], np.zeros(B + 1, np.int32), np.zeros(B + 1, np.int32)
  for user, places in OWNED.items():
    begin[user] = len(gaps)
    gaps += [place - i for i, place in enumerate(places)]
    end[user] = len(gaps)
  return {"pool": jnp.asarray(POOL), "seen_gaps": jnp.asarray([*gaps, 0], jnp.int32),
          "seen_begin": jnp.asarray(begin), "seen_end": jnp.asarray(end)}


def _batch(rows=B):
  rng = np.random.default_rng(0)
  items = rng.choice(POOL, (rows, T + 1)).astype(np.int32)
  items[np.arange(T + 1) < rng.integers(0, T - 1, rows)[:, None]] = 0
  items[-1] = 0  # a row that fills up the epoch's last batch
  return {"items": items, "users": np.arange(rows, dtype=np.int32)}


def _apply(params, inputs, rng, *, positions=None, candidates=None, readout=None):
  """The smallest model: a vector for every item that is read, and one for every item scored."""
  del rng
  x = jnp.tanh(params["read"][inputs["items"]])
  x = x if positions is None else layers.select(x, positions)
  return catalog.read(catalog.Scores(x, params["scored"]), candidates, readout)


def _params():
  rng = np.random.default_rng(1)
  return {name: jnp.asarray(rng.normal(0, 1, (N + 2, 4)), jnp.float32)
          for name in ("read", "scored")}


def _prepare(objective):
  return jax.jit(lambda key: objective.prepare(key, _batch(), _resident()))(jax.random.key(3))


def _losses(pairs):
  """Returns the sums of [(objective, inputs)]."""
  run = lambda every: [o.loss(_apply, _params(), inputs, shards=1, capacity=B * T, rng=None)[0]
                       for (o, _), inputs in zip(pairs, every, strict=True)]
  return jax.jit(run)([inputs for _, inputs in pairs])


# Formulas.


def test_beta_has_the_limits_of_the_paper():
  beta = functools.partial(losses.calibrated_beta, num_negatives=256, offered=3416)
  assert beta(0) == 1
  assert beta(1) == pytest.approx(256 / 3415)
  assert beta(0.75) == pytest.approx(0.30622, abs=5e-6)


def test_gbce_is_bce_with_a_power_of_the_positive():
  rng = np.random.default_rng(0)
  positive, negatives = rng.normal(0, 3, (7, 1)), rng.normal(0, 3, (7, K))
  weights = np.array([1, 1, 0, 1, 1, 1, 0])
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  for beta in (1.0, 0.3):
    want = -(np.log(sigmoid(positive[:, 0])**beta) + np.log(1 - sigmoid(negatives)).sum(1))
    total, weight = losses.binary_cross_entropy(
      jnp.asarray(positive), jnp.asarray(negatives), jnp.ones((7, K), bool), weights, beta=beta)
    np.testing.assert_allclose(total, (want * weights).sum() / (K + 1), rtol=1e-5)
    assert weight == 5
  steep = jnp.array([[1e4]])
  total, _ = losses.binary_cross_entropy(-steep, steep, jnp.ones((1, 1), bool), jnp.ones(1))
  np.testing.assert_allclose(total, 1e4)


def test_sampled_softmax_of_everything_is_the_softmax():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.normal(0, 2, (9, N)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, N, 9))
  want, _ = losses.cross_entropy(*catalog.Given(scores[None]).against_all(labels[None]), 1.0)
  positive = jnp.take_along_axis(scores, labels[:, None], 1)
  keep = jnp.arange(N) != labels[:, None]
  got, weight = losses.sampled_cross_entropy(positive, scores, keep, jnp.ones(9), offered=N)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert weight == 9


def test_sampled_softmax_estimates_the_sum_over_the_others():
  # E[scaled sum of drawn exponentials] = sum over all others, whatever share is drawn.
  rng = np.random.default_rng(0)
  scores, label, draws = rng.normal(0, 1, N).astype(np.float32), 3, 4000
  drawn = np.stack([rng.choice(N, K, replace=False) for _ in range(draws)])
  each = jax.vmap(lambda ids: losses.sampled_cross_entropy(
    jnp.zeros((1, 1)), jnp.asarray(scores)[ids][None], (ids != label)[None], jnp.ones(1),
    offered=N)[0])(jnp.asarray(drawn))
  sums = np.exp(np.asarray(each)) - 1  # log(1 + sum) with a positive score of 0
  want = np.exp(np.delete(scores, label)).sum()
  assert abs(sums.mean() - want) < 4 * sums.std() / np.sqrt(draws)
  assert sums.std() > 0.1 * want  # they do differ


def test_a_label_alone_among_its_negatives_costs_nothing():
  total, _ = losses.sampled_cross_entropy(jnp.array([[2.0]]), jnp.array([[2.0]]),
                                          jnp.array([[False]]), jnp.ones(1), offered=N)
  assert total == 0


# Draws.


@pytest.mark.parametrize("negatives", ["position", "row", "batch"])
def test_negatives_are_uniform_over_the_domain(negatives):
  objective = _make("gbce", negatives)
  rows = 2000
  prepare = jax.jit(lambda key: objective.prepare(key, _batch(rows), _resident()))
  out = prepare(jax.random.key(0))
  drawn = np.asarray(out["negatives"])
  assert (np.asarray(out["offered"]) == len(POOL)).all() and len(out["offered"]) == rows
  np.testing.assert_array_equal(drawn, prepare(jax.random.key(0))["negatives"])
  if negatives == "batch":
    assert drawn.shape == (rows, K) and (drawn == drawn[0]).all() and len(set(drawn[0])) == K
    drawn = np.stack([prepare(jax.random.key(k))["negatives"][0] for k in range(400)])
  elif negatives == "row":
    assert drawn.shape == (rows, K) and all(len(set(row)) == K for row in drawn)
  else:
    assert drawn.shape == (rows, T, K)
  assert np.isin(drawn, POOL).all()
  for place in range(K):  # each of them
    counts = np.bincount(drawn[..., place].ravel(), minlength=N + 1)[POOL]
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_unseen_negatives_are_none_that_the_user_owns():
  objective = _make("bce", unseen=True)
  assert objective.columns == ("seen",) and _make("bce").columns == ()
  inputs = _prepare(objective)
  drawn = np.asarray(inputs["negatives"])
  assert set(drawn[1].ravel()) <= set(np.delete(POOL, OWNED[1])) and len(set(drawn[1].ravel())) > 5
  assert (drawn[2] == 0).all()  # a user who owns everything has none
  other = dict(inputs, negatives=inputs["negatives"].at[2].set(7))
  one, two = _losses([(objective, inputs), (objective, other)])
  assert one < two  # what is none costs nothing


# The objective.


def _plain(objective, params, inputs):
  """All scores at all positions, and the formulas as they are written."""
  scores = _apply(params, {name: inputs[name] for name in ("items", "users")}, None)
  labels, drawn = inputs["labels"], inputs["negatives"]
  drawn = drawn if drawn.ndim == 3 else np.repeat(drawn[:, None], T, axis=1)
  positive = jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
  negative = jnp.take_along_axis(scores, drawn, -1)
  if objective.criterion == "sampled_softmax":
    others = drawn != labels[..., None]
    scale = (len(POOL) - 1) / np.maximum(others.sum(-1), 1)
    each = jnp.log(jnp.exp(positive) + scale * (jnp.exp(negative) * others).sum(-1)) - positive
  else:
    alpha, t = K / (len(POOL) - 1), objective.calibration if objective.criterion == "gbce" else 0
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    each = -(beta * jnp.log(jax.nn.sigmoid(positive))
             + jnp.log(1 - jax.nn.sigmoid(negative)).sum(-1)) / (K + 1)
  return jnp.where(labels > 0, each, 0).sum()


@pytest.mark.parametrize("criterion,negatives", CASES)
def test_loss_and_gradient_are_those_of_the_formula(criterion, negatives):
  objective = _make(criterion, negatives)
  params = _params()
  inputs = _prepare(objective)
  inputs = jax.tree.map(np.asarray, inputs)
  weight = (inputs["labels"] > 0).sum()
  want = jax.jit(jax.value_and_grad(lambda p: _plain(objective, p, inputs)))(params)
  def part(p, low, high, shards):
    piece = jax.tree.map(lambda x: x[low:high], inputs)
    return objective.loss(_apply, p, piece, shards=shards, capacity=B * T // 2, rng=None)
  def split(p):  # two micro-batches, and two shards of one batch
    first, second = part(p, 0, 2, 1), part(p, 2, 4, 2)
    whole = part(p, 0, 4, 2)
    return first[0] + second[0], (whole[0], first[1] + second[1], whole[1], whole[2]["dropped"])
  (halves, (whole, halves_weight, whole_weight, dropped)), grad = jax.jit(
    jax.value_and_grad(split, has_aux=True))(params)
  assert weight == halves_weight == whole_weight and dropped == 0 and weight > B
  np.testing.assert_allclose(halves, want[0], rtol=1e-5)
  np.testing.assert_allclose(whole, want[0], rtol=1e-5)
  scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(want[1]))
  for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(want[1]), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def test_uncalibrated_gbce_is_bce():
  inputs = _prepare(_make("bce"))
  bce, plain, calibrated = _losses([(o, inputs) for o in (
    _make("bce"), _make("gbce", calibration=0.0), _make("gbce", calibration=0.75))])
  assert calibrated < plain == bce


def test_all_negatives_of_a_row_give_the_softmax_over_the_domain():
  objective = _make("sampled_softmax", "row", len(POOL))
  inputs = _prepare(objective)
  got, = _losses([(objective, inputs)])
  scores = _apply(_params(), inputs, None)
  labels = np.asarray(inputs["labels"])
  want = jax.nn.logsumexp(scores[..., POOL], -1) - jnp.take_along_axis(
    scores, labels[..., None], -1)[..., 0]
  np.testing.assert_allclose(got, (want * (labels > 0)).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["masked_item", "next_item"])
def test_masked_items_take_the_same_criteria(name):
  kind = dict(criterion="gbce", num_negatives=K)
  plain, gbce = (objectives.make(name, num_items=N, known=(name,), **{name: values})
                 for values in ({}, kind))
  one, two = _prepare(plain), _prepare(gbce)
  for key in ("items", "labels"):  # what is hidden does not depend on the loss
    np.testing.assert_array_equal(one[key], two[key])
  assert two["negatives"].shape == (B, T + 1, K) and "negatives" not in one


# What people write.


@pytest.mark.parametrize("kw,says", [
  (dict(criterion="hinge"), "criterion.*softmax, bce, gbce, bpr, sampled_softmax"),
  (dict(criterion="bce", negatives="user"), "negatives.*position, row, batch"),
  (dict(criterion="bce", count=0), "num_negatives must be at least 1"),
  (dict(criterion="gbce", calibration=1.5), "calibration in 0..1"),
  (dict(criterion="bce", negatives="row", unseen=True), "negatives=position"),
])
def test_mistakes_are_named(kw, says):
  with pytest.raises(errors.UserError, match=says):
    _make(**kw)


@pytest.mark.parametrize("criterion,negatives,count", [
  ("gbce", "position", 20), ("bce", "row", 21), ("sampled_softmax", "batch", 21)])
def test_more_negatives_than_items_are_refused(criterion, negatives, count):
  with pytest.raises(errors.UserError, match=f"num_negatives={count} is too many for the 20 items"):
    _make(criterion, negatives, count).prepare(jax.random.key(0), _batch(), _resident())
