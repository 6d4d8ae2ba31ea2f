"""Models: sizes and names that others depend on, what a position sees, what padding changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax import models
from recjax import trees
from recjax.models import layers
from recjax.objectives import losses

N, U, T, B = 30, 9, 8, 3
MASK = N + 1
FIELDS = (("genre", 4, 2),)
FIELD_ROWS = {"genre": 6}
SMALL = dict(num_layers=2, item_width=8, heads=2, hidden=16, max_len=T, dropout=0.0)
KINDS = {
  "survey_code": dict(name="bert4rec", variant="survey_code", user_width=8, fields=FIELDS, **SMALL),
  "survey_text": dict(name="bert4rec", variant="survey_text", user_width=8, **SMALL),
  "bert4rec": dict(name="bert4rec", variant="bert4rec", **SMALL),
  "sasrec": dict(name="sasrec", variant="sasrec", **SMALL),
  "kang": dict(name="sasrec", variant="kang", **SMALL),
}


@functools.cache
def _tables():
  table = np.random.default_rng(0).integers(0, 6, (MASK + 3, 2)).astype(np.int32)
  table[0], table[MASK:] = 0, FIELD_ROWS["genre"]  # padding has none; MASK and tokens: unknown
  return {"genre": table}


@functools.cache
def _model(kind, **overrides):
  values = {**KINDS[kind], **overrides}
  return models.make(**values, num_items=N, num_users=U, field_rows=FIELD_ROWS)


@functools.cache
def _params(kind, **overrides):
  """Returns parameters of which none is 0 or 1, so that leaving one out shows."""
  model = _model(kind, **overrides)
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), _tables())["params"])
  rng = np.random.default_rng(1)
  def fill(name, leaf):
    if leaf.ndim == 1:
      return rng.normal(float(name.endswith("scale")), 0.1, leaf.shape).astype(leaf.dtype)
    scale = 1 if name.startswith("embed") else 1 / np.sqrt(leaf.shape[0])
    return rng.normal(0, scale, leaf.shape).astype(leaf.dtype)
  return trees.map_names(fill, shapes)


@functools.cache
def _compiled(kind, **overrides):
  model = _model(kind, **overrides)
  return jax.jit(lambda params, items, users, tables, positions: model.apply(
    {"params": params}, items, users, tables, positions=positions))


def _run(kind, items, users=(1, 2, 3), *, params=None, tables=None, positions=None, **overrides):
  """Returns (scores, out) as numpy."""
  params = _params(kind, **overrides) if params is None else params
  return jax.tree.map(np.asarray, _compiled(kind, **overrides)(
    params, jnp.asarray(items, jnp.int32), jnp.asarray(users, jnp.int32), tables or _tables(),
    positions))


def _items(seed=0):
  items = np.random.default_rng(seed).integers(1, N + 1, (B, T))
  items[0, :3], items[1, :6] = 0, 0
  return items


# Sizes and names.


def _shapes(*, num_items, num_users, field_rows=(), **values):
  model = models.make(num_items=num_items, num_users=num_users, field_rows=dict(field_rows),
                      **values)
  tables = {name: jnp.zeros((num_items + 2 + model.extra_tokens, slots), jnp.int32)
            for name, _, slots in values.get("fields", ())}
  return model, jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), tables)["params"])


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_parameters_of_bert4rec_vae(heads):
  # (N+2)H + T H + L (12 H^2 + 13 H) + H (N+1) + (N+1).
  _, shapes = _shapes(name="bert4rec", variant="survey_code", num_items=3706, num_users=6040,
                      user_width=0, item_width=256, num_layers=2, heads=heads, hidden=1024)
  assert trees.count(shapes) == 3_507_067
  assert trees.count(shapes["encoder"]["block_0"]) == 789_760


def test_parameters_of_the_survey():
  sizes = dict(name="bert4rec", variant="survey_code", num_items=3706, num_users=6040)
  _, plain = _shapes(**sizes)
  assert trees.count(plain) == 2_889_883
  assert trees.count(plain["encoder"]["block_5"]) == 268_192
  _, meta = _shapes(**sizes, fields=(("director", 16, 1), ("actor", 16, 3)),
                    field_rows={"director": 1187, "actor": 4171})
  assert trees.count(meta) == 4_202_555
  assert trees.count(meta["encoder"]["block_0"]) == 432_608


def test_parameters_of_bert4rec_ml1m_64():
  # Sun et al. 2019 as released: 3416 items, PAD, MASK and two more tokens, token-type rows.
  _, shapes = _shapes(name="bert4rec", variant="bert4rec", num_items=3416, num_users=6040)
  assert trees.count(shapes) == 339_612


@pytest.mark.parametrize("layers_,width", [(2, 50), (3, 64)])
def test_parameters_of_kangs_sasrec(layers_, width):
  # Three projections and two dense layers d x d with biases, two norms; PAD, MASK, 200 positions.
  _, shapes = _shapes(name="sasrec", variant="kang", num_items=3416, num_users=6040,
                      num_layers=layers_, item_width=width, hidden=width)
  block = 5 * (width**2 + width) + 4 * width
  assert trees.count(shapes["encoder"]["block_0"]) == block
  assert trees.count(shapes) == (3418 + 200) * width + layers_ * block + 2 * width


def _block(*, index, attention=("out", "qkv")):
  parts = [*(f"attention/{part}" for part in attention), "attention_norm", "mlp/down", "mlp/up",
           "mlp_norm"]
  return [f"encoder/block_{index}/{part}/{leaf}" for part in parts
          for leaf in (["bias", "scale"] if part.endswith("norm") else ["bias", "kernel"])]


@pytest.mark.parametrize("kind,embed,others", [
  ("survey_code", ["genre/embedding", "genre_pos/embedding", "item/embedding", "item_pos/embedding",
                   "user/embedding", "user_pos/embedding"],
   ["head/scores/bias", "head/scores/kernel"]),
  ("survey_text", ["item/embedding", "item_pos/embedding", "user/embedding", "user_pos/embedding"],
   ["head/scores/bias", "head/scores/kernel"]),
  ("bert4rec", ["item/embedding", "item_pos/embedding", "layer_norm/bias", "layer_norm/scale",
                "segment/embedding"],
   ["head/bias", "head/norm/bias", "head/norm/scale", "head/transform/bias",
    "head/transform/kernel"]),
  ("sasrec", ["item/embedding", "item_pos/embedding"],
   ["encoder/final_norm/bias", "encoder/final_norm/scale"]),
  ("kang", ["item/embedding", "item_pos/embedding"],
   ["encoder/final_norm/bias", "encoder/final_norm/scale"]),
])
def test_parameter_paths_are_an_interface(kind, embed, others):
  # Checkpoints and transfer rules name them: renaming one breaks what people have stored.
  attention = ("query", "key", "value") if kind == "kang" else ("out", "qkv")
  want = [f"embed/{name}" for name in embed] + others
  want += _block(index=0, attention=attention) + _block(index=1, attention=attention)
  assert sorted(trees.flatten(_params(kind))) == sorted(want)


@pytest.mark.parametrize("labels", [0, 2])
def test_gsasrec_starts_where_equal_scores_cost_least(labels):
  model = models.make(name="sasrec", variant="gsasrec", **SMALL, num_items=N, num_users=U,
                      labels=labels, field_rows={})
  biases = model.init(jax.random.key(0), **model.example_inputs(), tables={})["params"]["head"][
    "scores"]["bias"]
  if labels:  # classes in place of items
    assert np.abs(biases).max() < 1
    return
  assert len(set(np.asarray(biases).tolist())) == 1
  # The gradient of beta softplus(-b) + K softplus(b), with MovieLens-1M's items.
  beta = losses.calibrated_beta(0.75, num_negatives=256, offered=3416)
  seen = jax.nn.sigmoid(biases[0])
  np.testing.assert_allclose(beta * (1 - seen), 256 * seen, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_row_tables_have_a_row_for_every_name(kind):
  model, flat = _model(kind), trees.flatten(_params(kind))
  rows = {"item": N + 2 + model.extra_tokens, "output": N + 1, "user": U, **FIELD_ROWS}
  for leaf, (vocabulary, axis) in model.row_tables().items():
    assert flat[leaf].shape[axis] == rows[vocabulary], leaf
  # And nobody who has as many rows is forgotten.
  unnamed = set(flat) - set(model.row_tables())
  assert not [leaf for leaf in unnamed if set(flat[leaf].shape) & {N + 1, N + 2, N + 4, U}]


def test_parameters_are_float32_whatever_the_model_computes_in():
  assert {x.dtype for x in jax.tree.leaves(_params("survey_code", dtype="bfloat16"))} == {
    jnp.dtype("float32")}


# What may be seen.


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_padding_change_nothing(kind):
  items = _items()
  items[:, :3] = 0
  whole, _ = _run(kind, items)
  cut, _ = _run(kind, items[:, 3:])
  real = items[:, 3:] > 0
  np.testing.assert_allclose(whole[:, 3:][real], cut[real], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_padding_does_not_matter(kind):
  # The PAD row itself is a parameter in some models; nobody may read it.
  items = _items()
  params = _params(kind)
  embedding = params["embed"]["item"]["embedding"].copy()
  embedding[0] += 100
  other = {**params, "embed": {**params["embed"], "item": {"embedding": embedding}}}
  (one, _), (two, _) = _run(kind, items, params=params), _run(kind, items, params=other)
  real = items > 0
  np.testing.assert_allclose(one[real][:, 1:], two[real][:, 1:], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_bidirectional_model_sees_later_items(kind):
  items = _items()
  later = items.copy()
  later[:, -1] = items[:, -1] % N + 1
  moved = np.abs(_run(kind, items)[0] - _run(kind, later)[0]).max(-1)  # [B, T]
  assert (moved[:, -1] > 1e-3).all()
  before = moved[:, :-1][items[:, :-1] > 0]
  if _model(kind).causal:
    assert (before == 0).all()
  else:
    assert (before > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_items_are_seen(kind):
  items = _items()
  other = items.copy()
  other[:, -2] = items[:, -2] % N + 1
  assert (np.abs(_run(kind, items)[0] - _run(kind, other)[0])[:, -1].max(-1) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other(kind):
  items = _items()
  other = items.copy()
  other[0] = items[0][::-1]
  np.testing.assert_array_equal(_run(kind, items)[0][1:], _run(kind, other)[0][1:])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_padding_alone_are_finite(kind):
  items, users = np.zeros((B, T), int), np.zeros(B, int)
  assert np.isfinite(_run(kind, items, users)[0]).all()
  model = _model(kind)
  def total(params):
    scores, _ = model.apply({"params": params}, jnp.asarray(items), jnp.asarray(users), _tables())
    return jnp.sum(scores**2)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.grad(total))(_params(kind))))


def test_a_masked_item_does_not_leak_through_its_attributes():
  items = _items()
  items[:, -2] = 7
  hidden = items.copy()
  hidden[:, -2] = MASK
  hidden[hidden == 7], items[items == 7] = MASK, 7
  other = {"genre": _tables()["genre"].copy()}
  other["genre"][7] = [5, 4] - other["genre"][7]
  assert not np.array_equal(_run("survey_code", items)[0],
                            _run("survey_code", items, tables=other)[0])
  np.testing.assert_array_equal(_run("survey_code", hidden)[0],
                                _run("survey_code", hidden, tables=other)[0])


def test_an_unknown_user_has_a_zero_vector_and_no_gradient():
  model, params, items = _model("survey_code"), _params("survey_code"), jnp.asarray(_items())
  table = np.asarray(params["embed"]["user"]["embedding"])
  module = layers.RowTable(U, 8, "torch", jnp.dtype("float32"))
  found = module.apply({"params": {"embedding": table}}, jnp.array([0, 1, U]))
  np.testing.assert_array_equal(found, np.stack([np.zeros(8), table[0], table[U - 1]]))
  def total(params, users):
    return jnp.sum(model.apply({"params": params}, items, users, _tables())[0]**2)
  grad = jax.jit(jax.grad(total))
  def moved(users):
    rows = grad(params, jnp.array(users))["embed"]["user"]["embedding"]
    return np.abs(rows).sum(1) > 0
  assert not moved([0, 0, 0]).any()
  assert np.flatnonzero(moved([0, 2, 4])).tolist() == [1, 3]
  assert not np.array_equal(_run("survey_code", items, [1, 1, 1])[0],
                            _run("survey_code", items, [2, 2, 2])[0])


# What is computed.


def _norm(p, x):
  centered = x - x.mean(-1, keepdims=True)
  return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _dense(p, x):
  return x @ p["kernel"] + p["bias"]


def _attention(p, x, keep, heads, causal, source=None):
  batch, length, width = x.shape
  if source is None:
    query, key, value = np.split(_dense(p["qkv"], x), 3, axis=-1)
  else:
    query, key, value = _dense(p["query"], x), _dense(p["key"], source), _dense(p["value"], source)
  out = np.zeros_like(x)
  for row in range(batch):
    for head in range(heads):
      part = slice(head * width // heads, (head + 1) * width // heads)
      scores = query[row, :, part] @ key[row, :, part].T / np.sqrt(width / heads)
      allowed = keep[row][None] & (np.tri(length, dtype=bool) if causal else True)
      scores = np.where(allowed, scores, -1e9)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out[row, :, part] = weights / weights.sum(-1, keepdims=True) @ value[row, :, part]
  return _dense(p["out"], out) if source is None else out


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_what_the_paper_says(kind):
  model, items = _model(kind), _items()
  _, out = _run(kind, items)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), _params(kind)["encoder"]["block_0"])
  act = {"relu": lambda x: np.maximum(x, 0),
         "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
         "gelu_erf": lambda x: np.asarray(x / 2 * jax.lax.erfc(-x / np.sqrt(2)))}[model.act]
  attend = lambda x, source=None: _attention(p["attention"], x, items > 0, model.heads,
                                             model.causal, source)
  feed = lambda x: _dense(p["mlp"]["down"], act(_dense(p["mlp"]["up"], x)))
  x = out["embedded"].astype(np.float64)
  for norm, part in (("attention_norm", attend), ("mlp_norm", feed)):
    if model.norm == "pre":
      x = x + part(_norm(p[norm], x))
    elif model.norm == "query":  # what is added is the normed input; keys and values see the other
      normed = _norm(p[norm], x)
      x = normed + (part(normed, x) if part is attend else part(normed))
    else:
      x = _norm(p[norm], x + part(x))
  real = items > 0
  np.testing.assert_allclose(out["encoder"]["block_0"][real], x[real], atol=1e-4, rtol=1e-4)


def test_an_encoder_that_puts_out_zero_is_the_identity():
  params = trees.map_names(
    lambda name, x: jnp.zeros_like(x) if "attention/out/" in name or "mlp/down/" in name else x,
    _params("survey_code"))
  _, out = _run("survey_code", _items(), params=params)
  np.testing.assert_array_equal(out["encoded"], out["embedded"])
  _, moved = _run("survey_code", _items())
  assert np.abs(moved["encoded"] - moved["embedded"]).max() > 0.1


def test_the_input_is_item_attributes_and_user_with_positions_of_their_own():
  items, users = _items(), [0, 4, 9]
  _, out = _run("survey_code", items, users)
  p = {name: np.asarray(x["embedding"]) for name, x in _params("survey_code")["embed"].items()}
  with_zero = lambda table: np.concatenate([np.zeros_like(table[:1]), table])
  genres = with_zero(p["genre"])[np.asarray(_tables()["genre"])[items]] + p["genre_pos"][:, None]
  want = np.concatenate([
    p["item"][items] + p["item_pos"], genres.reshape(B, T, -1),
    with_zero(p["user"])[users][:, None] + p["user_pos"]], -1)
  np.testing.assert_allclose(out["embedded"], want, atol=1e-6)


def test_a_tied_head_scores_against_the_item_table():
  scores, out = _run("sasrec", _items())
  table = np.asarray(_params("sasrec")["embed"]["item"]["embedding"])
  np.testing.assert_allclose(scores, out["encoded"] @ table[:N + 1].T, atol=1e-4)


def test_kang_scales_items_where_they_are_read_alone():
  items = _items()
  scores, out = _run("kang", items)
  p = {name: np.asarray(x["embedding"]) for name, x in _params("kang")["embed"].items()}
  np.testing.assert_allclose(out["embedded"], p["item"][items] * np.sqrt(8) + p["item_pos"],
                             atol=1e-5)
  np.testing.assert_allclose(scores, out["encoded"] @ p["item"][:N + 1].T, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_pad_and_items_only(kind):
  assert _run(kind, _items())[0].shape == (B, T, N + 1)


@pytest.mark.parametrize("name,variant", [("bert4rec", "bert4rec"), ("sasrec", "sasrec")])
def test_a_model_of_small_numbers_starts_at_chance(name, variant):
  model = models.make(**{**SMALL, "item_width": 64, "max_len": 20}, name=name, variant=variant,
                      num_items=300, num_users=U, field_rows={})
  items = jnp.asarray(np.random.default_rng(0).integers(1, 301, (4, 20)))
  start = jax.jit(lambda key: model.init_with_output(key, items, jnp.zeros(4, jnp.int32), {})[0][0])
  # The cross-entropy of an item that has nothing to do with the input; scores of a small width
  # sigma raise it by sigma^2 / 2.
  loss = -jnp.mean(jax.nn.log_softmax(start(jax.random.key(0))))
  assert 0 < float(loss) - np.log(301) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_some_positions_is_part_of_scoring_all(kind):
  items = np.concatenate([_items(), _items(1)[:1]])  # 4 rows: two shards of two
  users = [1, 2, 3, 4]
  positions = np.array([[1, 5, 14, 15], [0, 3, 8, 12]], np.int32)
  some, _ = _run(kind, items, users, positions=positions)
  everything, _ = _run(kind, items, users)
  everything = everything.reshape(2, 2 * T, N + 1)
  want = np.stack([everything[shard][positions[shard]] for shard in range(2)])
  np.testing.assert_allclose(some, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["survey_code", "bert4rec", "kang"])  # one of each head
def test_candidates_have_the_scores_that_they_have_among_all(kind):
  items = np.concatenate([_items(), _items(1)[:1]])
  users, rng = jnp.array([1, 2, 3, 4]), np.random.default_rng(0)
  positions = jnp.array([[0, 5, 15], [8, 3, 12]], jnp.int32)
  own, shared = rng.integers(0, N + 1, (2, 3, 4)), rng.integers(0, N + 1, (2, 1, 7))
  run = jax.jit(lambda **where: _model(kind).apply(
    {"params": _params(kind)}, jnp.asarray(items), users, _tables(), positions=positions,
    **where)[0])
  everything = np.asarray(run())
  for found, ids in zip(run(candidates=(own, shared)), (own, shared), strict=True):
    want = np.take_along_axis(everything, np.broadcast_to(ids, (2, 3, ids.shape[2])), -1)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["survey_code", "bert4rec"])
def test_bfloat16_stays_close(kind):
  scores, _ = _run(kind, _items())
  rough, out = _run(kind, _items(), params=_params(kind), dtype="bfloat16")
  assert out["embedded"].dtype == jnp.bfloat16 and out["encoded"].dtype == jnp.float32
  error = rough.astype(np.float32) - scores
  assert 0 < np.sqrt((error**2).mean()) < 0.05 * scores.std()


def test_too_many_columns_are_refused():
  with pytest.raises(AssertionError, match="9 columns.*8 rows"):
    _run("sasrec", np.ones((B, T + 1)))


def test_a_models_dropout_follows_the_key():
  model, params = _model("survey_code", dropout=0.5), _params("survey_code")
  run = jax.jit(lambda key: model.apply(
    {"params": params}, jnp.asarray(_items()), jnp.ones(B, jnp.int32), _tables(), train=True,
    rngs={"dropout": key})[0])
  one, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).mean() > 0.01
  off = _run("survey_code", _items(), [1, 1, 1], params=params, dropout=0.5)[0]
  np.testing.assert_allclose(off, _run("survey_code", _items(), [1, 1, 1])[0], atol=1e-5)


# What people write.


@pytest.mark.parametrize("change,says", [
  (dict(name="markov"), "model.name.*bert4rec.*sasrec"),
  (dict(variant="huge"), "model.variant.*survey_code"),
  (dict(fields=(("actor", 4, 1),)), "model.fields.*genre"),
  (dict(heads=5), "does not split into 5 heads"),
  (dict(dtype="float8"), "model.dtype"),
  (dict(act="tanh"), "model.act.*relu"),
  (dict(norm="Pre"), "model.norm.*pre, post, query"),
  (dict(output="none"), "model.output.*tied"),
  (dict(initializer="zero"), "model.initializer"),
  (dict(no_such=1), "no_such"),
])
def test_mistakes_are_named(change, says):
  with pytest.raises(errors.UserError, match=says):
    models.make(**{**KINDS["survey_code"], **change}, num_items=N, num_users=U,
                field_rows=FIELD_ROWS)


def test_none_leaves_the_variants_value():
  model = models.make("bert4rec", variant="bert4rec", num_items=N, num_users=U, field_rows={},
                      item_width=None, heads=4)
  assert (model.item_width, model.heads) == (64, 4)


def test_an_unknown_transfer_mode_has_no_rules():
  assert _model("survey_code").transfer_rules("all") is None
  assert _model("survey_code").transfer_rules("none") == ()
  assert _model("sasrec").transfer_rules("embedding") == ()
