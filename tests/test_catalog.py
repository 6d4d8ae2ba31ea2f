"""Scores of a catalog: in blocks, or of chosen ids, they are those of the plain product."""

import functools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from recjax import catalog, models, objectives, softmax

S, C, W, V = 2, 5, 4, 37  # V ids, of a table with two rows more


def _blocks(monkeypatch, size):
  """Makes blocks of `size` scores (64 items at least), however few there are in all."""
  monkeypatch.setattr(catalog, "BLOCK", {"cpu": size})
  monkeypatch.setattr(catalog, "WHOLE", 0)


def _inputs(axis, count=V, seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  table, bias = rng.normal(size=(count + 2, W)), rng.normal(size=count + 2)
  x = jnp.asarray(rng.normal(size=(S, C, W)), dtype)
  labels = rng.integers(0, count, (S, C))
  labels[0, :2] = 0, count - 1
  return (x, jnp.asarray(table.T if axis else table, jnp.float32), jnp.asarray(bias, jnp.float32),
          jnp.asarray(labels))


def _plain(x, table, bias, labels, *, axis, count):
  scores = x.astype(jnp.float32) @ (table if axis else table.T)[:, :count] + bias[:count]
  picked = jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
  return picked, jax.nn.logsumexp(scores, -1)


def _value_and_grad(fn):
  """Returns fn's two outputs, and the gradients of an uneven sum of both."""
  pull = np.random.default_rng(5).normal(size=(2, S, C))
  def total(x, table, bias, labels):
    out = fn(x, table, bias, labels)
    return sum(jnp.sum(o * p) for o, p in zip(out, pull, strict=True)), out
  return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("count", [150, 128, 1])  # 3 blocks, the last one partial; 2; a single id
@pytest.mark.parametrize("with_bias", [False, True])
def test_blocks_equal_the_plain_softmax(axis, count, with_bias, monkeypatch):
  _blocks(monkeypatch, 1)
  def ours(x, table, bias, labels):
    scores = catalog.Scores(x, table, bias if with_bias else None, axis, count)
    assert scores.width() == min(64, count)
    return scores.against_all(labels)
  plain = lambda x, table, bias, labels: _plain(
    x, table, bias if with_bias else 0 * bias, labels, axis=axis, count=count)
  inputs = _inputs(axis, count)
  ((_, got), grads), ((_, want), wanted) = (_value_and_grad(f)(*inputs) for f in (ours, plain))
  for a, b in zip((*got, *grads), (*want, *wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  tokens = grads[1].swapaxes(0, axis)[count:]
  assert len(tokens) == 2 and not tokens.any()  # tokens that are no items


def test_a_small_catalog_is_scored_at_once_and_alike(monkeypatch):
  inputs = _inputs(1)
  ours = lambda x, table, bias, labels: catalog.Scores(x, table, bias, 1).against_all(labels)
  at_once = jax.jit(ours)(*inputs)
  assert "while" not in str(jax.make_jaxpr(ours)(*inputs))
  _blocks(monkeypatch, 1)
  for a, b in zip(at_once, jax.jit(lambda *i: ours(*i))(*inputs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_large_scores_neither_overflow_nor_vanish(monkeypatch):
  _blocks(monkeypatch, 1)
  table = jnp.zeros((300, 1)).at[290].set(1e4).at[3].set(-1e4)
  scores = catalog.Scores(jnp.ones((1, 2, 1)), table)
  picked, partition = scores.against_all(jnp.array([[290, 3]]))
  np.testing.assert_array_equal(picked, [[1e4, -1e4]])
  np.testing.assert_allclose(partition, 1e4)
  grad = jax.grad(lambda t: catalog.Scores(jnp.ones((1, 2, 1)), t).against_all(
    jnp.array([[290, 3]]))[1].sum())(table)
  np.testing.assert_allclose(grad, np.zeros((300, 1)) + 2 * (np.arange(300) == 290)[:, None])


def test_bfloat16_sums_in_float32(monkeypatch):
  _blocks(monkeypatch, 1)
  count = 4000
  x, table, bias, labels = _inputs(0, count, dtype=jnp.bfloat16)
  rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
  ours = lambda x, table, bias, labels: catalog.Scores(x, table, bias, 0, count).against_all(labels)
  plain = functools.partial(_plain, axis=0, count=count)
  (_, got), grads = _value_and_grad(ours)(x, table, bias, labels)
  (_, want), wanted = _value_and_grad(plain)(x, rounded, bias, labels)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=1e-4)  # 4,000 terms of 8 bits would be off by more
  assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32
  for a, b in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())


def _largest(jaxpr):
  """Returns the most elements of any array in a jaxpr, those of inner ones included."""
  most = 0
  for eqn in jaxpr.eqns:
    most = max([most, *(int(np.prod(v.aval.shape)) for v in eqn.outvars)])
    for inner in core.jaxprs_in_params(eqn.params):
      most = max(most, _largest(inner))
  return most


@pytest.mark.parametrize("name,variant", [
  ("sasrec", "sasrec"), ("sasrec", "survey_code"), ("bert4rec", "bert4rec"), ("gru4rec", "untied"),
  ("caser", "survey")])
def test_no_array_of_a_gradient_holds_positions_times_items(name, variant):
  # 4,096 positions and 20,000 items of the models as they are, tied and untied.
  count, rows, length, width = 20000, 64, 64, 8
  sizes = dict(item_width=width, user_width=0) if name == "caser" else dict(
    item_width=width, user_width=0, hidden=8, num_layers=1, max_len=length)
  if name in ("sasrec", "bert4rec"):
    sizes["heads"] = 1
  model = models.make(name, variant=variant, num_items=count, num_users=9, field_rows={}, **sizes)
  task = model.objectives[-1] if name == "caser" else model.objectives[0]
  if name == "caser":
    rows, length = 4096, model.max_len
  objective = objectives.make(task, num_items=count, known=model.objectives)
  inputs = {"items": jnp.ones((rows, length), jnp.int32), "users": jnp.ones(rows, jnp.int32),
            "labels": jnp.ones((rows, length), jnp.int32)}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **model.example_inputs(),
                                             tables={})["params"])
  apply_fn = lambda params, inputs, rng, **where: model.apply(
    {"params": params}, **inputs, **where, tables={})[0]
  def loss(params, capacity):
    return objective.loss(apply_fn, params, inputs, shards=2, capacity=capacity, rng=None)[0]
  jaxpr = jax.make_jaxpr(jax.grad(functools.partial(loss, capacity=2048)))(shapes)
  assert _largest(jaxpr.jaxpr) < 4096 * count / 10
  few = jax.make_jaxpr(jax.grad(functools.partial(loss, capacity=8)))(shapes)  # fits at once
  assert 16 * count <= _largest(few.jaxpr)


# The loss and its gradient in one pass.


def _in_passes(monkeypatch, block):
  """Has `cross_entropy` go over `block` positions at a time."""
  monkeypatch.setattr(softmax, "FEW", 0)
  monkeypatch.setattr(softmax, "MANY", block)
  monkeypatch.setattr(catalog.Scores, "against_all", lambda *_: pytest.fail("by blocks of items"))


@pytest.mark.parametrize("axis,with_bias,count", [(0, True, V), (1, True, V), (0, False, 150)])
@pytest.mark.parametrize("block", [2, 3, 6])  # 10 positions: five blocks, four of 3 or less, two
def test_one_pass_gives_the_loss_and_gradients_of_the_plain_softmax(axis, with_bias, count, block,
                                                                    monkeypatch):
  _in_passes(monkeypatch, block)
  weights = jnp.asarray(np.random.default_rng(1).random((S, C)), jnp.float32).at[1, 3:].set(0)
  def ours(x, table, bias, labels):
    scores = catalog.Scores(x, table, bias if with_bias else None, axis, count)
    return 3 * scores.cross_entropy(labels, weights)
  def plain(x, table, bias, labels):
    picked, partition = _plain(x, table, bias if with_bias else 0 * bias, labels, axis=axis,
                               count=count)
    return 3 * jnp.sum((partition - picked) * weights)
  inputs = _inputs(axis, count)
  (got, grads), (want, wanted) = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*inputs)
                                  for f in (ours, plain))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(jax.jit(ours)(*inputs), want, rtol=1e-6)  # without a gradient
  for a, b in zip(grads, wanted, strict=True):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("block,visited", [(2, 4), (5, 5)])
def test_positions_behind_the_last_label_are_not_scored(block, visited, monkeypatch):
  _in_passes(monkeypatch, block)
  x, table, bias, labels = _inputs(0)
  weights = jnp.zeros((S, C)).at[0, :3].set(1)  # two blocks of five have labels, or one of two
  spoiled = jnp.where(jnp.arange(S * C).reshape(S, C, 1) < visited, x, jnp.nan)  # 0 x NaN is NaN
  loss = lambda x: catalog.Scores(x, table, bias, 0, V).cross_entropy(labels, weights)
  (got, grad), (want, wanted) = (jax.jit(jax.value_and_grad(loss))(y) for y in (spoiled, x))
  assert got == want > 0
  np.testing.assert_array_equal(grad, wanted)
  assert np.all(grad[0, 3:] == 0) and np.all(grad[1] == 0)
  nothing = jax.value_and_grad(lambda x: catalog.Scores(x, table, bias, 0, V).cross_entropy(
    labels, 0 * weights))(spoiled)
  assert nothing[0] == 0 and not np.any(nothing[1])


def test_one_pass_of_several_models_at_once(monkeypatch):
  _in_passes(monkeypatch, 2)
  many = [_inputs(0, seed=seed) for seed in range(3)]
  weights = jnp.stack([jnp.ones((S, C)), jnp.zeros((S, C)).at[0, 0].set(1), jnp.zeros((S, C))])
  def loss(x, table, bias, labels, weights):
    return catalog.Scores(x, table, bias, 0, V).cross_entropy(labels, weights)
  each = jax.value_and_grad(loss, argnums=(0, 1, 2))
  got = jax.jit(jax.vmap(each))(*map(jnp.stack, zip(*many, strict=True)), weights)
  for lane, inputs in enumerate(many):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(each(*inputs, weights[lane])),
                    strict=True):
      np.testing.assert_allclose(a[lane], b, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_pass_in_bfloat16_sums_in_float32(axis, monkeypatch):
  _in_passes(monkeypatch, 3)
  count = 4000
  x, table, bias, labels = _inputs(axis, count, dtype=jnp.bfloat16)
  weights, rounded = jnp.ones((S, C)), table.astype(jnp.bfloat16).astype(jnp.float32)
  got, grads = jax.value_and_grad(lambda x, table, bias: catalog.Scores(
    x, table, bias, axis, count).cross_entropy(labels, weights), argnums=(0, 1, 2))(x, table, bias)
  def plain(x, table, bias):
    picked, partition = _plain(x, table, bias, labels, axis=axis, count=count)
    return jnp.sum(partition - picked)
  want, wanted = jax.value_and_grad(plain, argnums=(0, 1, 2))(x, rounded, bias)
  np.testing.assert_allclose(got, want, rtol=1e-6)  # the bias is not rounded to bfloat16
  assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32
  for a, b in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())


def test_which_way_is_taken_depends_on_sizes(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(jax, "default_backend", lambda: "gpu")
    most = softmax.SCORES // 2**11
    assert softmax.block(2 * most + 1, 2**11) == most and softmax.block(2 * most, 2**11) is None
    assert softmax.block(10**6, softmax.SCORES // 100) is None
  for positions, found in ((64, None), (65, 41), (224, 140), (640, 400), (10**4, 400)):
    assert softmax.block(positions, 100) == found
  # Many items: what fits the cache, then 128 all the same, then another way.
  for items, found in ((2**14, 256), (2**17, 128), (2**17 + 1, None)):
    assert softmax.block(10**4, items) == found


# Chosen ids.


@pytest.mark.parametrize("rows_for_one", [0, 32])  # gathered rows; scores of all, picked
@pytest.mark.parametrize("with_bias,axis", [(False, 0), (True, 0), (True, 1)])
def test_candidates_are_scored_alike_on_every_path(rows_for_one, with_bias, axis, monkeypatch):
  monkeypatch.setattr(catalog, "ROWS_FOR_ONE", rows_for_one)
  rng = np.random.default_rng(0)
  x, table, bias, _ = _inputs(axis)
  ids = [jnp.asarray(rng.integers(0, V, shape)) for shape in ((S, C, 3), (S, 1, 6), (S, C, 1))]
  pull = [jnp.asarray(rng.normal(size=(S, C, i.shape[2])), jnp.float32) for i in ids]
  def some(x, table, bias):
    found = catalog.read(catalog.Scores(x, table, bias if with_bias else None, axis, V), tuple(ids))
    return sum(jnp.sum(f * p) for f, p in zip(found, pull, strict=True))
  def plain(x, table, bias):
    scores = x @ (table if axis else table.T) + (bias if with_bias else 0)
    return sum(jnp.sum(p * jnp.take_along_axis(
      scores, jnp.broadcast_to(i, (S, C, i.shape[2])), -1)) for i, p in zip(ids, pull, strict=True))
  got, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(x, table, bias)
               for f in (some, plain))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for a, b in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


# The best.


@pytest.mark.parametrize("size", [1, 10**6])
def test_the_best_are_those_of_a_sorted_list(size, monkeypatch):
  _blocks(monkeypatch, size)
  rng, count, k = np.random.default_rng(3), 300, 150  # more than a block holds
  table = rng.integers(-2, 3, (count + 2, W))  # many ties
  x = rng.integers(-1, 2, (S, C, W))
  allowed = rng.random(count) < 0.9
  barred = rng.integers(0, count, (S, C, 7))
  scores = catalog.Scores(jnp.asarray(x, jnp.float32), jnp.asarray(table, jnp.float32), count=count)
  found, ids = jax.jit(lambda: catalog.top(scores, k, jnp.asarray(allowed), jnp.asarray(barred)))()
  for s in range(S):
    for c in range(C):
      plain = np.where(allowed, table[:count] @ x[s, c], -np.inf)
      plain[barred[s, c]] = -np.inf
      order = np.argsort(-plain, kind="stable")[:k]
      np.testing.assert_array_equal(found[s, c], plain[order])
      np.testing.assert_array_equal(ids[s, c], order)


def test_given_scores_are_read_like_any_other():
  x, table, bias, labels = _inputs(0)
  scores = catalog.Scores(x, table, bias, count=V)
  given = catalog.Given(scores.all())
  ids = labels[..., None]
  nobody = jnp.zeros((S, C, 1), jnp.int32)
  for ask in (lambda s: s.against_all(labels), lambda s: s.of(ids),
              lambda s: catalog.top(s, 5, jnp.ones(V, bool), nobody)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ask(given), ask(scores))


@pytest.mark.slow
def test_the_bench_prints_its_table():
  root = pathlib.Path(__file__).resolve().parent.parent
  done = subprocess.run(
    [sys.executable, "-m", "launch.bench.catalog", "--items=300", "--seconds=0",
     "--cases=dense,chunked,in_batch_rows"], cwd=root, text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  header, _, *rows = done.stdout.splitlines()
  assert "300" in header
  assert [row.split(" | ")[0] for row in rows] == ["| dense", "| chunked", "| in_batch_rows"]
  assert all(re.fullmatch(r"\| \w+ \| [\d,]+ / [\d,]+ / \d+\.\d \|", row) for row in rows), rows
