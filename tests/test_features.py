"""Items' vectors out of features: encoders, aggregators, what is trained, what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import catalog, errors, models, trees
from recjax.models import features, text_encoders

N, U, T, WORDS = 9, 4, 5, 6
ROWS = N + 2
TEXT = {"kind": "text", "width": 4, "encoder": "word_avg", "length": 5, "remove_principal": False}
GIVEN = {"kind": "given", "width": 0, "trained": False}
SIZES = {"plot": WORDS, "image": 3, "genre": 3, "gate": 3}
SMALL = {"sasrec": dict(variant="sasrec", num_layers=1, item_width=8, heads=1, hidden=8,
                        max_len=T, dropout=0.0),
         "bert4rec": dict(variant="bert4rec", num_layers=1, item_width=8, heads=1, hidden=8,
                          max_len=T, dropout=0.0),
         "gru4rec": dict(variant="gru4rec", item_width=8, hidden=8, max_len=T, dropout=0.0),
         "caser": dict(variant="survey", item_width=8, user_width=0, max_len=T, dropout=0.0,
                       vertical=1, horizontal=1),
         "nextitnet": dict(variant="nextitnet", num_layers=1, item_width=8, max_len=T)}
# Models of pairs: their fields, and where what is known of the rows of their tables is.
PAIRS = {"dot": (dict(variant="dot", factors=4), {"embed": ""}),
         "fm": (dict(variant="fm", factors=4), {"embed": ""}),
         "neumf": (dict(variant="neumf", factors=2, num_layers=1), {"gmf": "gmf/", "mlp": "mlp/"}),
         "conet": (dict(variant="conet", other="there", factors=2, num_layers=1), {"embed": ""})}


@functools.cache
def _tables(extra_tokens=0):
  rng = np.random.default_rng(0)
  words = np.array([[0] * 4, [1, 2, 3, 0], [2, 0, 0, 0], [0] * 4, *rng.integers(1, 7, (6, 4))])
  values = np.array([[0, 0], *rng.integers(0, 4, (N, 2))])
  known = np.array([0, 1, 1, 0, 1, 1, 1, 1, 1, 1], bool)
  tables = {"feature/plot": words.astype(np.int32), "feature/genre": values.astype(np.int32),
            "feature/image": rng.normal(size=(N + 1, 3)).astype(np.float32) * known[:, None],
            "feature/image/known": known}
  pad = lambda x: np.concatenate([x, np.zeros((1 + extra_tokens, *x.shape[1:]), x.dtype)])
  return {name: jnp.asarray(pad(table)) for name, table in tables.items()}


@functools.cache
def _schema(*, text=(), given=(), names=("plot", "image", "genre")):
  every = {"plot": {**TEXT, **dict(text)}, "image": {**GIVEN, **dict(given)},
           "genre": {"kind": "attribute", "width": 2}}
  return {name: every[name] for name in names}


def _model(name="sasrec", *, schema=None, **values):
  schema = _schema() if schema is None else schema
  return models.make(name, **{**SMALL[name], **values}, num_items=N, num_users=U, field_rows={},
                     features=schema, feature_sizes=SIZES)


def _params(model, tables):
  return _filled(lambda key: model.init(key, **model.example_inputs(), tables=tables)["params"])


def _filled(init, *args):
  """Returns parameters like those that `init` starts, without compiling it."""
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args))
  rng = np.random.default_rng(1)
  return trees.map_names(lambda _, x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)


# What every encoder promises.

@pytest.mark.parametrize("encoder", features.ENCODERS)
def test_padding_changes_nothing_and_order_does_unless_averaged(encoder):
  rng = np.random.default_rng(0)
  lengths = np.array([1, 2, 4, 7])
  keep = np.arange(7) < lengths[:, None]
  x = (rng.normal(size=(4, 7, 4)) * keep[..., None]).astype(np.float32)
  wide = np.pad(x, ((0, 0), (0, 2), (0, 0)))
  more = {"max_len": 9} if encoder == "transformer_cls" else {}
  module = features.ENCODERS[encoder](dtype=jnp.float32, **more)
  params = _filled(module.init, x, keep, None)
  encode = jax.jit(lambda x, keep: module.apply(params, x, keep, None))
  got, more = encode(x, keep), encode(wide, np.pad(keep, ((0, 0), (0, 2))))
  assert got.shape == (4, 4)
  np.testing.assert_allclose(got, more, atol=1e-5)
  swapped = x.copy()
  swapped[2, :4], swapped[3] = x[2, 3::-1], x[3, ::-1]
  other = encode(swapped, keep)
  if encoder == "word_avg":
    np.testing.assert_allclose(got, other, atol=1e-6)
    np.testing.assert_allclose(got[0], x[0, 0], rtol=1e-6)  # one word returns its row
    np.testing.assert_allclose(got[2], x[2, :4].mean(0), rtol=1e-5)
  else:
    assert np.abs(got - other)[2:].max(1).min() > 1e-3


def test_weights_weigh():
  x, weights = np.arange(12.0).reshape(1, 3, 4), np.array([[1.0, 3.0, 0.0]])
  got = text_encoders.WordAverage(jnp.float32).apply({}, x, weights > 0, weights)
  np.testing.assert_allclose(got[0], x[0, 0] / 4 + 3 * x[0, 1] / 4)


def test_the_principal_component_is_gone_and_nothing_else():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20, 4)) + 5 * rng.normal(size=(20, 1)) * np.array([1.0, 2.0, 0.0, 1.0])
  known = np.arange(20) < 17
  got = text_encoders.without_principal(jnp.asarray(x, jnp.float32), jnp.asarray(known))
  values, axes = np.linalg.eigh(x[known].T @ x[known])
  axis = axes[:, np.argmax(values)]
  np.testing.assert_allclose(got, x - np.outer(x @ axis, axis), atol=1e-4)
  np.testing.assert_allclose(got @ axis, 0, atol=1e-4)


# Aggregators (Zeng et al. 2021, Eq. 1), each alone.

def _aggregate(aggregate, *, schema=None, change=lambda params: params, own=None, tables=None,
               **kwargs):
  """Returns (vectors of all rows, the items' own vectors, the parameters) of g."""
  specs = features.specs(schema or _schema(), SIZES)
  module = features.Features(specs, aggregate, N, "bert", jnp.float32, **kwargs)
  tables = _tables() if tables is None else tables
  rng = np.random.default_rng(2)
  own = jnp.asarray(rng.normal(size=(ROWS, 8)), jnp.float32) if own is None else own
  items = jnp.arange(ROWS)
  params = change(_filled(lambda key: module.init(key, items, own, tables)["params"]))
  run = jax.jit(lambda params: module.apply({"params": params}, items, own, tables, whole=True)[1])
  return run(params), own, params


def _set(value, pattern):
  return lambda params: trees.map_names(
    lambda name, x: jnp.full_like(x, value) if name.endswith(pattern) else x, params)


def test_the_sum_with_features_of_zero_is_the_items_own_vector():
  got, own, _ = _aggregate("sum", change=_set(0.0, "project/kernel"))
  assert np.array_equal(got, own)
  tables = {name: jnp.zeros_like(table) for name, table in _tables().items()}
  got, own, _ = _aggregate("sum", tables=tables, change=_set(0.0, "missing"))
  assert np.array_equal(got, own)


def test_a_gate_lets_one_side_through():
  own_side, own, _ = _aggregate("gate", change=_set(1e4, "gate/bias"))
  other_side, _, _ = _aggregate("gate", change=_set(-1e4, "gate/bias"))
  np.testing.assert_allclose(own_side, own, atol=1e-6)
  assert np.abs(other_side - own).min(1).max() > 1e-3
  again, _, _ = _aggregate("gate", own=own + 1, change=_set(-1e4, "gate/bias"))
  np.testing.assert_allclose(again, other_side, atol=1e-6)  # nothing of the own vectors is left


def test_replace_ignores_ids_but_of_tokens():
  rng = np.random.default_rng(5)
  first, own, _ = _aggregate("replace")
  other = jnp.asarray(rng.normal(size=own.shape), jnp.float32)
  second, _, _ = _aggregate("replace", own=other)
  assert np.array_equal(first[1:N + 1], second[1:N + 1])
  for token in (0, N + 1):
    assert np.array_equal(first[token], own[token]) and np.array_equal(second[token], other[token])


def test_joined_features_stand_after_the_items_own_vector():
  got, own, params = _aggregate("concat")
  assert got.shape == (ROWS, 8 + 4 + 3 + 2)
  assert np.array_equal(got[:, :8], own)
  words = params["plot"]["words"]["embedding"]
  np.testing.assert_allclose(got[2, 8:12], words[1], rtol=1e-6)  # one word returns its row
  assert np.array_equal(got[3, 8:12], params["plot"]["missing"])  # no word
  assert np.array_equal(got[4, 12:15], _tables()["feature/image"][4])  # a constant, as it is
  assert np.array_equal(got[3, 12:15], params["image"]["missing"])
  values, chosen = params["genre"]["values"]["embedding"], np.asarray(_tables()["feature/genre"])
  for row in range(ROWS):
    mean = [values[value - 1] for value in chosen[row] if value]
    np.testing.assert_allclose(
      got[row, 15:], np.mean(mean, 0) if mean else params["genre"]["missing"], rtol=1e-5)


def test_an_mlp_has_the_width_of_items():
  got, own, params = _aggregate("mlp")
  assert got.shape == own.shape
  assert params["hidden"]["kernel"].shape == (17, 16) and params["out"]["kernel"].shape == (16, 8)


def test_items_that_were_never_trained_have_no_vector_of_their_own():
  unowned = jnp.zeros(ROWS, bool).at[jnp.array([2, 5])].set(True)
  tables = {**_tables(), "item/unowned": unowned}
  got, own, _ = _aggregate("concat", tables=tables)
  assert (got[jnp.array([2, 5]), :8] == 0).all()
  assert np.array_equal(got[~unowned, :8], own[~unowned])


def test_item_dropout_takes_an_item_its_vector_wherever_it_is_read():
  specs = features.specs(_schema(names=("genre",)), SIZES)
  module = features.Features(specs, "concat", 999, "bert", jnp.float32, 0.3)
  tables = {"feature/genre": jnp.ones((1001, 2), jnp.int32)}
  params = {"params": {"genre": {"values": {"embedding": jnp.ones((3, 2))},
                                 "missing": jnp.zeros(2)}}}
  items = jnp.concatenate([jnp.arange(1001), jnp.array([7, 7, 8])])
  def run(seed, train):
    rngs = {"dropout": jax.random.key(seed)}
    few, _ = module.apply(params, items[-4:], jnp.ones((1001, 4)), tables, train=train, rngs=rngs)
    found, table = module.apply(params, items, jnp.ones((1001, 4)), tables, whole=True,
                                train=train, rngs=rngs)
    return few, found, table
  run = jax.jit(run, static_argnums=1)
  few, found, table = run(0, True)
  assert np.array_equal(found, table[items]) and np.array_equal(few, found[-4:])
  gone = np.asarray((table[:, :4] == 0).all(1))
  assert not gone[0] and not gone[1000] and 0.25 < gone.mean() < 0.35
  assert (table[:, 4:] == 1).all()
  assert not np.array_equal(run(1, True)[2], table)
  assert (run(0, False)[2] == 1).all()


# In the models.

@pytest.mark.parametrize("name", SMALL)
def test_every_sequence_model_takes_them(name):
  for aggregate in ("sum", "concat"):
    model = _model(name, aggregate=aggregate, **({"hidden": 17} if name == "gru4rec" and
                                                 aggregate == "concat" else {}))
    tables = _tables(model.extra_tokens)
    items = jnp.zeros((2, T), jnp.int32)
    params = _params(model, tables)
    assert {leaf for leaf in trees.flatten(params) if "features" in leaf} >= {
      "embed/features/plot/words/embedding", "embed/features/plot/missing",
      "embed/features/genre/values/embedding", "embed/features/image/missing"}
    assert "embed/item/embedding" in trees.flatten(params)
    scores, _ = jax.eval_shape(lambda params, model=model, tables=tables: model.apply(
      {"params": params}, items, jnp.zeros(2, jnp.int32), tables), params)
    assert scores.shape[-1] == N + 1


def test_all_but_frozen_vectors_are_trained():
  model = _model("sasrec", schema=_schema(given=(("trained", True),)), aggregate="gate")
  tables = _tables(model.extra_tokens)
  items = jnp.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], jnp.int32)
  params = _params(model, tables)
  def loss(params):
    scores, _ = model.apply({"params": params}, items, jnp.zeros(2, jnp.int32), tables)
    return jnp.sum(jnp.sin(scores.astype(jnp.float32)))
  grads = trees.flatten(jax.jit(jax.grad(loss))(params))
  for leaf, grad in grads.items():
    assert np.isfinite(grad).all()
    if "features" in leaf:
      assert np.abs(grad).max() > 0, leaf
  moved = np.abs(grads["embed/features/image/vectors"]).max(1) > 0
  assert not moved[~np.asarray(tables["feature/image/known"])].any() and moved[1:3].all()


def test_given_vectors_are_constants_unless_they_are_trained():
  leaves = lambda trained: trees.flatten(_params(
    _model(schema=_schema(given=(("trained", trained),)), aggregate="sum"), _tables()))
  frozen, trained = leaves(False), leaves(True)
  assert set(trained) - set(frozen) == {"embed/features/image/vectors"}
  start = _model(schema=_schema(given=(("trained", True),), names=("image",)), aggregate="sum")
  params = jax.jit(lambda: start.init(jax.random.key(0), **start.example_inputs(),
                                      tables=_tables())["params"])()
  assert np.array_equal(params["embed"]["features"]["image"]["vectors"],
                        _tables()["feature/image"])


def test_vectors_of_some_items_are_those_of_all_items():
  specs = features.specs(_schema(), SIZES)
  module = features.Features(specs, "gate", N, "bert", jnp.float32)
  _, own, params = _aggregate("gate")
  items = jnp.array([[1, 3], [0, N + 1]])
  run = jax.jit(lambda whole: module.apply({"params": params}, items, own, _tables(), whole=whole),
                static_argnums=0)
  some, table = run(False)
  every, whole = run(True)
  assert table is None and whole.shape == (ROWS, 8)
  np.testing.assert_allclose(some, every, atol=1e-6)


def test_a_tied_head_scores_against_the_vectors_with_features():
  model = _model(aggregate="replace")
  params, tables = _params(model, _tables()), _tables()
  items, users = jnp.array([[0, 0, 1, 2, 4]], jnp.int32), jnp.zeros(1, jnp.int32)
  run = jax.jit(lambda params: model.apply({"params": params}, items, users, tables)[0])
  before = run(params)
  rows = params["embed"]["item"]["embedding"]
  params["embed"]["item"]["embedding"] = rows.at[1:N + 1].set(7.0)
  np.testing.assert_allclose(run(params)[..., 1:], before[..., 1:], atol=1e-5)


def test_parameters_without_features_are_those_of_old():
  old = models.make("sasrec", **SMALL["sasrec"], num_items=N, num_users=U, field_rows={})
  assert not any("feature" in leaf for leaf in trees.flatten(_params(old, {})))
  assert old.transfer_rules("embedding") == ()
  assert old == _model(schema={})


def test_who_is_barred_competes_with_nobody():
  rng = np.random.default_rng(0)
  x, table = rng.normal(size=(2, 3, 4)), jnp.asarray(rng.normal(size=(12, 4)))
  barred = np.zeros(13, bool)
  barred[[3, 7]] = True
  scores = catalog.Scores(jnp.asarray(x), table, count=11)
  labels = jnp.asarray(rng.choice([1, 2, 4, 5], (2, 3)))
  def loss(table):
    one = catalog.Scores(jnp.asarray(x), table, count=11)
    _, readout = catalog.barring(jnp.asarray(barred), None, lambda s: s.against_all(labels))
    picked, partition = catalog.read(one, None, readout)
    return jnp.sum(partition - picked), partition
  (_, partition), grad = jax.value_and_grad(loss, has_aux=True)(table)
  keep = [i for i in range(11) if not barred[i]]
  expected = jax.nn.logsumexp(scores.all()[..., jnp.array(keep)], axis=-1)
  np.testing.assert_allclose(partition, expected, rtol=1e-5)
  assert (grad[jnp.array([3, 7])] == 0).all() and (grad[jnp.array(keep)] != 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_transfer_carries_providers_by_name(name):
  model = _model(name, schema=_schema(given=(("trained", True),)), aggregate="sum")
  rows = model.row_tables()
  assert rows["embed/features/plot/words/embedding"] == ("feature/plot", 0)
  assert rows["embed/features/genre/values/embedding"] == ("feature/genre", 0)
  assert rows["embed/features/image/vectors"] == ("item", 0)
  leaves = _params(model, _tables(model.extra_tokens))
  matched, _ = trees.match(leaves, model.transfer_rules("embedding"))
  carried = {leaf for leaf in trees.flatten(leaves) if "embed/features/" in leaf}
  assert {leaf for leaf in matched if "features" in leaf} == carried
  matched, _ = trees.match(leaves, model.transfer_rules("model"))
  assert carried <= set(matched)


@pytest.mark.parametrize("name, values, schema, says", [
  ("sasrec", dict(aggregate="max"), None, "model.aggregate is 'max'; there are concat, sum"),
  ("sasrec", dict(item_dropout=0.5), {}, "item_dropout takes items their own vectors"),
  ("sasrec", dict(item_dropout=0.5, aggregate="replace"), None, "replace has none to take"),
  ("sasrec", dict(item_dropout=1.0, aggregate="sum"), None, "a share below 1"),
  ("sasrec", {}, {"gate": TEXT}, "choose another name"),
  ("sasrec", {}, {"plot": {**TEXT, "encoder": "lstm"}}, "encoder is 'lstm'; there are word_avg"),
  ("sasrec", {}, {"plot": {**TEXT, "width": 0}}, "width must be at least 1"),
  ("sasrec", {}, {"plot": {**TEXT, "encoder": "cnn", "tfidf": True}}, "are for word_avg"),
  ("sasrec", {}, {"plot": {**TEXT, "encoder": "transformer_cls", "width": 3}}, "must be even"),
  ("gru4rec", {}, None, "item_width=8 with features, 17 in all"),
])
def test_mistakes_are_told(name, values, schema, says):
  with pytest.raises(errors.UserError, match=says):
    _model(name, schema=schema, **values)


@functools.cache
def _pair(name, known):
  fields, _ = PAIRS[name]
  facts = dict(features=_schema(), feature_sizes=SIZES, aggregate="gate", user_aggregate="sum",
               user_features={"group": {"kind": "attribute", "width": 2}},
               user_feature_sizes={"group": 2}) if known else {}
  return models.make(name, **fields, **facts, num_items=N, num_users=U, field_rows={})


def _pair_tables():
  rng = np.random.default_rng(2)
  return {**_tables(), "companion": jnp.asarray([0, 1, 2, 0, 3]),
          "user/feature/group": jnp.asarray(rng.integers(0, 3, (U + 2, 1)), jnp.int32)}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_models_score_as_if_vectors_were_what_they_are_aggregated_to(name):
  model, tables, users = _pair(name, True), _pair_tables(), jnp.arange(1, U + 1)
  params = _params(model, tables)
  leaves = trees.flatten(params)
  plain = {leaf: x for leaf, x in leaves.items() if "features/" not in leaf}
  below = lambda under: trees.unflatten({
    leaf.removeprefix(under): x for leaf, x in leaves.items() if leaf.startswith(under)})
  for table, under in PAIRS[name][1].items():
    own = {side: leaves[f"{table}/{side}/embedding"] for side in ("item", "user")}
    items = features.Features(model.features, "gate", N, "bert", jnp.float32)
    plain[f"{table}/item/embedding"] = items.apply(
      {"params": below(f"{under}features/")}, jnp.zeros(0, int), own["item"], tables, whole=True)[1]
    people = features.UserFeatures(model.user_features, "sum", U, "bert", jnp.float32)
    plain[f"{table}/user/embedding"] = people.apply(
      {"params": below(f"{under}user_features/")}, users, own["user"], tables)
  def score(model, params):
    return model.apply({"params": params}, jnp.zeros((U, 1), jnp.int32), users, tables)[0]
  found = score(model, params)
  expected = score(_pair(name, False), trees.unflatten(plain))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert np.ptp(found) > 0.1


@pytest.mark.parametrize("name", PAIRS)
def test_pair_models_carry_what_is_known_by_name(name):
  model = _pair(name, True)
  leaves = trees.flatten(_params(model, _pair_tables()))
  known = {leaf for leaf in leaves if "features/" in leaf and "/gate/" not in leaf}
  for under in PAIRS[name][1].values():
    assert model.row_tables()[f"{under}features/plot/words/embedding"] == ("feature/plot", 0)
    assert model.row_tables()[f"{under}user_features/group/values/embedding"] == (
      "user/feature/group", 0)
  assert model.row_tables().keys() <= leaves.keys()
  matched, _ = trees.match(leaves, model.transfer_rules("embedding"))
  assert known < set(matched)


def test_a_model_without_features_says_so():
  with pytest.raises(errors.UserError, match="item_knn has no field 'features'"):
    models.make("item_knn", variant="item_knn", num_items=N, num_users=U, field_rows={},
                features=_schema(), feature_sizes=SIZES)
