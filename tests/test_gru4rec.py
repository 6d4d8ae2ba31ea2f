"""GRU4Rec: its equations, what a position sees, what padding changes, sizes, names, transfer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors, models, trees

N, U, T, B = 30, 5, 7, 3
SIZES = dict(num_layers=2, item_width=6, hidden=6, max_len=T, dropout=0.0)


@functools.cache
def _model(variant="gru4rec", **overrides):
  return models.make("gru4rec", variant=variant, num_items=N, num_users=U, field_rows={"genre": 4},
                     **{**SIZES, **overrides})


@functools.cache
def _params(*args, **overrides):
  """Returns parameters of which none is 0, so that leaving one out shows."""
  model = _model(*args, **overrides)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), **model.example_inputs(), tables=_tables())["params"])
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)


def _tables():
  return {"genre": np.random.default_rng(0).integers(0, 4, (N + 2, 2)).astype(np.int32)}


def _items():
  items = np.random.default_rng(0).integers(1, N + 1, (B, T)).astype(np.int32)
  items[0, :2], items[1, :5] = 0, 0
  return items


@functools.cache
def _compiled(*args, **overrides):
  return jax.jit(lambda params, items, **where: _model(*args, **overrides).apply(
    {"params": params}, items, jnp.ones(len(items), jnp.int32), _tables(), **where))


def _run(items, *args, params=None, where=None, **overrides):
  """Returns (scores, out) as numpy."""
  params = _params(*args, **overrides) if params is None else params
  return jax.tree.map(np.asarray, _compiled(*args, **overrides)(
    params, jnp.asarray(items), **(where or {})))


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _gru(p, x, keep):
  """Hidasi et al. 2016, Eq. 1-4, one item at a time."""
  (w_z, w_r, w_c), (u_z, u_r, u_c), (b_z, b_r, b_c) = p["kernel"], p["recurrent"], p["bias"]
  out = np.zeros((*x.shape[:2], u_z.shape[0]))
  for row in range(len(x)):
    h = np.zeros(u_z.shape[0])
    for t in range(x.shape[1]):
      if keep[row, t]:
        z = _sigmoid(x[row, t] @ w_z + h @ u_z + b_z)
        r = _sigmoid(x[row, t] @ w_r + h @ u_r + b_r)
        h = (1 - z) * h + z * np.tanh(x[row, t] @ w_c + (r * h) @ u_c + b_c)
      out[row, t] = h
  return out


def test_states_follow_the_equations():
  items = _items()
  scores, out = _run(items)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), _params())
  table = p["embed"]["item"]["embedding"]
  np.testing.assert_allclose(out["embedded"], table[items], atol=1e-6)
  x = table[items]
  for index in range(2):
    x = _gru(p["encoder"][f"gru_{index}"], x, items > 0)
    np.testing.assert_allclose(out["encoder"][f"gru_{index}"], x, atol=1e-5)
  np.testing.assert_allclose(scores, x @ table[:N + 1].T, atol=1e-4)
  assert (out["encoded"][items == 0] == 0).all()  # a state that has not seen anything


def test_only_the_past_is_seen():
  items = _items()
  other = items.copy()
  other[:, 5] = items[:, 5] % N + 1
  moved = np.abs(_run(items)[0] - _run(other)[0]).max(-1)
  assert (moved[:, :5] == 0).all() and (moved[:, 5:] > 1e-4).all()


def test_columns_of_padding_and_what_stands_in_them_change_nothing():
  items = _items()
  whole, _ = _run(items)
  items[:, :2] = 0
  whole, _ = _run(items)
  cut, _ = _run(items[:, 2:])
  np.testing.assert_allclose(whole[:, 2:], cut, atol=1e-6)
  params = jax.tree.map(np.copy, _params())
  params["embed"]["item"]["embedding"][0] += 100
  other, _ = _run(items, params=params)
  np.testing.assert_allclose(whole[..., 1:], other[..., 1:], atol=1e-5)


def test_candidates_have_the_scores_that_they_have_among_all():
  items = np.concatenate([_items(), _items()[::-1][:1]])
  positions = np.array([[6, 13, 3], [6, 13, 13]], np.int32)
  ids = np.random.default_rng(0).integers(0, N + 1, (2, 3, 4))
  everything, _ = _run(items, where=dict(positions=positions))
  (found, shared), _ = _run(items, where=dict(positions=positions, candidates=(ids, ids[:, :1])))
  np.testing.assert_allclose(found, np.take_along_axis(everything, ids, -1), atol=1e-5)
  np.testing.assert_allclose(shared, np.take_along_axis(
    everything, np.broadcast_to(ids[:, :1], ids.shape), -1), atol=1e-5)
  flat = _run(items)[0].reshape(2, 2 * T, N + 1)
  np.testing.assert_allclose(everything[1], flat[1][positions[1]], atol=1e-5)


@pytest.mark.parametrize("variant,layers,width,state", [("gru4rec", 1, 6, 6), ("untied", 2, 5, 9)])
def test_parameters(variant, layers, width, state):
  params = _params(variant, num_layers=layers, item_width=width, hidden=state)
  want = (N + 2) * width + sum(3 * state * ((state if i else width) + state + 1)
                               for i in range(layers))
  assert trees.count(params) == want + (N + 1) * (state + 1) * (variant == "untied")
  names = ["embed/item/embedding"] + [f"encoder/gru_{i}/{leaf}" for i in range(layers)
                                      for leaf in ("bias", "kernel", "recurrent")]
  names += ["head/scores/bias", "head/scores/kernel"] * (variant == "untied")
  assert sorted(trees.flatten(params)) == sorted(names)  # an interface: checkpoints have them


def test_rows_have_names_and_modes_have_rules():
  attributes = dict(fields=(("genre", 3, 2),), user_width=4, hidden=16, output="untied")
  model, flat = _model(**attributes), trees.flatten(_params(**attributes))
  sizes = {"item": N + 2, "output": N + 1, "user": U, "genre": 4}
  for leaf, (vocabulary, axis) in model.row_tables().items():
    assert flat[leaf].shape[axis] == sizes[vocabulary], leaf
  carried = lambda mode: set(trees.match(flat, model.transfer_rules(mode))[0])
  assert carried("embedding") == {"embed/user/embedding", "embed/genre/embedding"}
  assert carried("model") == {n for n in flat if not n.startswith("head/")}
  assert model.transfer_rules("none") == () and model.transfer_rules("all") is None
  assert _model().transfer_rules("embedding") == ()


def test_dropout_is_for_training():
  model = _model(dropout=0.5)
  run = jax.jit(lambda key: model.apply({"params": _params()}, _items(), jnp.ones(B, jnp.int32), {},
                                        train=True, rngs={"dropout": key})[0])
  assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 0.01
  np.testing.assert_array_equal(_run(_items(), params=_params(), dropout=0.5)[0], _run(_items())[0])


@pytest.mark.parametrize("initializer,sigma", [
  ("glorot", np.sqrt(2 / (60 + 90))), ("torch", np.sqrt(1 / 3 / 60)), ("bert", 0.02)])
def test_matrices_start_as_wide_as_they_say(initializer, sigma):
  model = _model("untied", item_width=60, hidden=90, num_layers=1, initializer=initializer)
  params = jax.jit(lambda: model.init(jax.random.key(0), **model.example_inputs(), tables={}))()
  kernel = np.asarray(params["params"]["encoder"]["gru_0"]["kernel"])
  assert np.abs(kernel.std((1, 2)) / sigma - 1).max() < 0.05


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(errors.UserError, match="hidden=8.*item_width=6.*untied"):
    _model(hidden=8)
  with pytest.raises(errors.UserError, match="num_layers must be at least 1"):
    _model(num_layers=0)
