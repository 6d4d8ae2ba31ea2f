"""The encoder in columns: the same numbers and gradients as in rows, dropout, what is left out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax.models import blocks, columns, flash, layers, transformer
from recjax.objectives import losses

B, T, N, W = 6, 12, 50, 16
SIZES = dict(num_items=N, num_users=B, item_width=W, user_width=0, num_layers=2, heads=2, hidden=32,
             max_len=T, dropout=0.0)


def _batch(share, seed=0):
  """Returns items [B, T], left-padded, and labels [B, T] at a share of them."""
  rng = np.random.default_rng(seed)
  items = rng.integers(1, N + 1, (B, T))
  items[np.arange(T) < T - rng.integers(1, T + 1, (B, 1))] = 0
  labels = np.where((rng.random((B, T)) < share) & (items > 0), items, 0)
  return jnp.asarray(items, jnp.int32), jnp.asarray(labels, jnp.int32)


def _losses(layouts, *, share=0.2, shards=2, room=12, **attributes):
  """Returns [(loss, gradient)] of the same parameters and batch in each layout."""
  model = transformer.SequenceTransformer(**{**SIZES, **attributes})
  items, labels = _batch(share)
  users = jnp.zeros(B, jnp.int32)
  positions, picked, weights, dropped = losses.labeled_positions(labels, shards=shards,
                                                                 capacity=room)
  assert dropped == 0 and weights.sum() > 0
  params = jax.jit(model.init)(jax.random.key(0), items, users, {})

  @functools.partial(jax.jit, static_argnums=1)
  @jax.value_and_grad
  def loss(params, layout):
    found, _ = model.clone(layout=layout).apply(params, items, users, {}, positions=positions,
                                                readout=lambda scores: scores.against_all(picked))
    return losses.cross_entropy(*found, weights)[0]
  return [loss(params, layout) for layout in layouts]


@pytest.mark.parametrize("norm,causal", [
  ("pre", False), pytest.param("post", False, marks=pytest.mark.slow), ("query", True)])
def test_columns_equal_rows(norm, causal):
  (rows, rows_grad), (cols, cols_grad) = _losses(
    ("rows", "columns"), norm=norm, causal=causal, final_norm=causal,
    heads=1 if norm == "query" else 2)
  np.testing.assert_allclose(cols, rows, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cols_grad, rows_grad)
  assert max(np.abs(x).max() for x in jax.tree.leaves(rows_grad)) > 0.1


@pytest.mark.parametrize("kernel,norm,causal", [
  pytest.param("fused", "pre", True, marks=pytest.mark.slow), ("fused", "query", False),
  ("flash", "pre", True)])
def test_fused_attention_is_the_written_out_one(kernel, norm, causal):
  kept = dict(norm=norm, causal=causal, heads=1, dropout=0.0)
  (plain, plain_grad), = _losses(("rows",), **kept)
  (fused, fused_grad), = _losses(("auto",), attention_kernel=kernel, **kept)
  np.testing.assert_allclose(fused, plain, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fused_grad, plain_grad)


def test_fused_attention_says_where_it_cannot_be(monkeypatch):
  make = functools.partial(transformer.SequenceTransformer, **SIZES, attention_kernel="fused")
  make().check()
  with pytest.raises(errors.UserError, match="attention_kernel=fused is not there in columns"):
    make(layout="columns").check()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(errors.UserError, match="dtype=bfloat16"):
    make().check()
  make(dtype="bfloat16").check()
  make = functools.partial(transformer.SequenceTransformer, **SIZES, attention_kernel="flash")
  with pytest.raises(errors.UserError, match="heads must be 16, 32, 64, ... wide, and are 8"):
    make().check()
  monkeypatch.setattr(flash, "triton", None)
  with pytest.raises(errors.UserError, match="has no Pallas for Triton"):
    make().check()


@pytest.mark.parametrize("share,shards,room", [(0.9, 3, 24), (0.1, 1, 16)])
def test_any_share_of_labels_gives_the_same(share, shards, room):
  (rows, rows_grad), (cols, cols_grad) = _losses(
    ("rows", "columns"), share=share, shards=shards, room=room, act="relu", num_layers=1)
  np.testing.assert_allclose(cols, rows, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cols_grad, rows_grad)


def test_products_read_bfloat16_and_add_in_float32():
  (rows, exact), (cols, rounded) = (
    _losses((layout,), dtype=dtype)[0]
    for layout, dtype in (("rows", "float32"), ("columns", "bfloat16")))
  np.testing.assert_allclose(cols, rows, rtol=0.01)
  for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
    assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded),
                                            strict=True))


def _encoder(rate, **block):
  block = {**dict(heads=2, hidden=32, act="gelu_tanh", norm="pre", dropout=rate,
                  attention_dropout=rate, hidden_dropout=rate, output_dropout=rate,
                  initializer="torch", dtype="float32"), **block}
  settings = dict(num_layers=2, causal=False, final_norm=False, remat=False, block=block)
  x = jax.random.normal(jax.random.key(1), (B, T, W))
  keep = _batch(0.2)[0] > 0
  init = functools.partial(blocks.Encoder(2, block).init, train=False)
  params = jax.jit(init)(jax.random.key(2), x, keep)["params"]
  return settings, params, x, keep


def test_gradients_with_dropout_are_those_of_the_same_masks():
  settings, params, x, keep = _encoder(0.3)
  positions = losses.labeled_positions(_batch(0.2)[1], shards=1, capacity=24)[0]

  @jax.jit
  def total(params, x):
    out = columns.encode(params, x, keep, positions, settings=settings, rng=jax.random.key(5))
    return jnp.sum(out[:, :8] ** 2)  # the first places hold labels
  grads = jax.grad(total, argnums=(0, 1))(params, x)
  way = jax.tree.map(lambda g: g / 10, grads)
  slope = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (grads, way)), strict=True))
  step = 1e-2 / np.sqrt(slope)
  ahead, back = (total(*jax.tree.map(lambda p, w, s=s: p + s * step * w, (params, x), way))
                 for s in (1, -1))
  np.testing.assert_allclose((ahead - back) / (2 * step), slope, rtol=0.02)


@pytest.mark.parametrize("layout", ["columns", pytest.param("rows", marks=pytest.mark.slow)])
def test_recomputed_blocks_have_the_same_gradients_in_less_memory(layout):
  settings, params, x, keep = _encoder(0.3)
  settings["num_layers"], rows, length = 4, 16, 32
  x = jax.random.normal(jax.random.key(1), (rows, length, W))
  keep = jnp.ones((rows, length), bool)
  params = {**params, "block_2": params["block_0"], "block_3": params["block_1"]}
  positions = jnp.arange(rows * length)[None]
  def total(params, x, remat):
    key = jax.random.key(5)
    if layout == "columns":
      out = columns.encode(params, x, keep, positions, settings={**settings, "remat": remat},
                           rng=key)
    else:
      out, _ = blocks.Encoder(4, settings["block"], remat=remat).apply(
        {"params": params}, x, keep, train=True, rngs={"dropout": key})
    return jnp.sum(out ** 2)
  grads = [jax.jit(jax.grad(functools.partial(total, remat=remat)))(params, x)
           for remat in (False, True)]
  for kept, again in zip(*map(jax.tree.leaves, grads), strict=True):
    np.testing.assert_allclose(again, kept, atol=1e-6 * np.abs(kept).max() + 1e-9, rtol=1e-4)
  held = lambda remat: _held(functools.partial(total, remat=remat), params, x)
  assert held(True) < 0.3 * held(False)


def _held(fn, *args, dtypes=None):
  """Returns the bytes that wait for the backward pass, of all types or of `dtypes`."""
  pull = jax.eval_shape(lambda *args: jax.vjp(fn, *args)[1], *args)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull)
             if dtypes is None or leaf.dtype in dtypes)


def test_little_of_a_block_waits_for_the_backward_pass():
  settings, params, _, _ = _encoder(0.3, dtype="bfloat16")
  def a_column(*dtypes):
    """Returns what one block holds of one column."""
    def held(rows, blocks):
      def total(params, x):
        return columns.encode(params, x, jnp.ones((rows, T), bool), jnp.arange(rows * T)[None],
                              settings={**settings, "num_layers": blocks}, rng=jax.random.key(5))
      return _held(total, params, jnp.zeros((rows, T, W)), dtypes=dtypes)
    return (held(16, 2) - held(16, 1) - held(8, 2) + held(8, 1)) / (8 * T)
  heads, hidden = (settings["block"][name] for name in ("heads", "hidden"))
  # Standardized columns, counted by norms and by those who read them; queries, keys, values and
  # what is mixed; what the activation was given; weights of attention.
  assert a_column(jnp.bfloat16) == 2 * ((4 + 3 + 1) * W + hidden + heads * T)
  # Norms, and the zeros of three dropouts, which a compiled program does not hold.
  assert a_column(jnp.float32) == 4 * (2 + heads + 3 * W)


def test_dropout_leaves_the_mean_and_follows_its_key():
  settings, params, x, keep = _encoder(0.3)
  positions = jnp.arange(B * T)[None]
  run = jax.jit(lambda key: columns.encode(params, x, keep, positions, settings=settings, rng=key))
  one, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(one, again)
  assert np.mean(np.abs(one - other)) > 0.1
  seeds = jax.random.bits(jax.random.key(3), (2,), jnp.uint32)
  kept = np.asarray(layers.kept((400, 500), layers.draws(seeds, (400, 500)), 0.3))
  assert abs(kept.mean() - 0.7) < 0.005
  for axis in (0, 1):  # no stripes
    np.testing.assert_allclose(kept.mean(axis), 0.7, atol=0.13)
  assert abs(np.corrcoef(kept[:, 1:].ravel(), kept[:, :-1].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_is_as_independent_as_random_numbers(rate):
  """Of rows, of columns, and of the four places where two of each meet."""
  rows, columns = 2000, 400
  def scores(centered):
    """Returns values that are standard normal if all places are independent."""
    scaled = centered / np.sqrt(rate * (1 - rate))
    by_column, by_row = scaled.T @ scaled, scaled @ scaled.T
    pairs = lambda x, n: x[np.triu_indices(len(x), 1)] / np.sqrt(n)
    squares = (scaled**2).T @ scaled**2
    minors = np.sum(by_column**2 - squares) - np.sum(np.sum(scaled**2, 0)**2 - np.sum(scaled**4, 0))
    return (scaled.sum() / np.sqrt(rows * columns), pairs(by_column, rows), pairs(by_row, columns),
            minors / (2 * rows * columns))
  for seed in range(3):
    seeds = jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)
    kept = np.asarray(layers.kept((rows, columns), layers.draws(seeds, (rows, columns)), rate))
    total, of_columns, of_rows, minors = scores(kept - (1 - rate))
    assert abs(total) < 5 and abs(minors) < 5
    for pairs in (of_columns, of_rows):
      assert abs(pairs.mean()) < 5 / np.sqrt(pairs.size) + 0.01
      assert abs(pairs.var() - 1) < 0.03 and np.abs(pairs).max() < 8


def test_dropout_of_fewer_places_is_that_of_a_corner():
  seeds = jax.random.bits(jax.random.key(0), (2, 2), jnp.uint32)
  drawn = layers.draws(seeds, (3, 4, 7))
  assert drawn.rows.shape == (2, 12) and drawn.columns.shape == (2, 7)
  one = layers.Draws(drawn.rows[1], drawn.columns[1])
  whole = layers.kept((12, 7), one, 0.4)
  np.testing.assert_array_equal(layers.kept((2, 5, 6), one, 0.4), whole[:10, :6].reshape(2, 5, 6))
  assert not np.array_equal(whole, layers.kept((12, 7), layers.draws(seeds[0], (12, 7)), 0.4))
  assert layers.kept((12, 7), one, 0.0).all() and not layers.kept((12, 7), one, 1.0).any()


def test_the_last_block_computes_labeled_positions_only():
  settings, params, x, keep = _encoder(0.0)
  def hidden(layers, room):
    """Returns the columns of the feed-forward parts of `layers` blocks."""
    positions = jnp.arange(room, dtype=jnp.int32)[None]
    jaxpr = jax.make_jaxpr(lambda x: columns.encode(
      params, x, keep, positions, settings={**settings, "num_layers": layers}))(x)
    return {int(found) for found in re.findall(r"tanh.*?f32\[32,(\d+)\]|f32\[32,(\d+)\] = tanh",
                                               str(jaxpr)) for found in found if found}
  assert hidden(1, 60) == {B * T} and hidden(1, 8) == {8} and hidden(2, 8) == {B * T, 8}
