"""Questions about the next behavior: labels, properties, batches, losses, how they are judged."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_responses

from recjax import errors
from recjax.data import batches, behaviors, held_out, responses, sequences
from recjax.evaluators import responses as evaluator_lib
from recjax.objectives import mix
from recjax.objectives import responses as objectives

CLICK = {"name": "click", "of": "liked", "threshold": 4.0}
CHOSEN = {**CLICK, "of": "clicks"}
SHOP = {"name": "shop_preference", "of": "genre", "threshold": None}
PRICE = {"name": "price_preference", "of": "decade", "threshold": None}


def test_labels_say_what_was_chosen_and_how_it_was_liked():
  data = tiny_responses.data()
  liked, _ = responses.labels(data, CLICK)
  np.testing.assert_array_equal(liked, np.where(data.ratings >= 4, 2, 1))
  price, names = responses.labels(data, PRICE)
  assert names.tolist() == [b"", b"1950s", b"1960s", b"1970s", b"1980s"]
  ids = [int(name[1:]) for name in data.item_ids[data.items].tolist()]
  np.testing.assert_array_equal(price, 1 + np.array(ids) % tiny_responses.DECADES)
  shop, names = responses.labels(data, SHOP)
  np.testing.assert_array_equal(shop, data.features["genre"].values[data.items, 0])
  level, names = responses.labels(data, {**SHOP, "of": "rating"})
  np.testing.assert_array_equal(level, data.ratings)
  assert names.tolist() == [b"", b"1", b"2", b"3", b"4", b"5"]
  assert responses.facts(data, (CLICK, PRICE))["responses"]() == (
    ("click", 0), ("price_preference", 4))
  with pytest.raises(errors.UserError, match="genre"):
    responses.labels(data, {**SHOP, "of": "director"})


def test_a_gap_is_the_time_since_the_behavior_before():
  data = types.SimpleNamespace(  # The first row of user 2 is held out: later than what follows.
    name="x", times=np.array([100, 100, 107, 3600 * 25, 50, 80]), offsets=np.array([0, 0, 3, 6]))
  found = behaviors.columns(data, ("gap", "hour"))
  np.testing.assert_array_equal(found["property/gap"], [1, 2, 5, 18, 1, 6])
  np.testing.assert_array_equal(found["property/hour"], [1, 1, 1, 2, 1, 1])
  data.times = np.array([0, 1 << 40, 0, 0, 0, 0])
  assert behaviors.columns(data, ("gap",))["property/gap"].max() == behaviors.GAPS
  with pytest.raises(errors.UserError, match="weather"):
    behaviors.columns(data, ("weather",))


@functools.cache
def _batch():
  """Returns (data, resident arrays, a batch of all questions)."""
  data = tiny_responses.data()
  further = responses.columns(data, (CLICK, SHOP, PRICE)) | behaviors.columns(
    data, behaviors.PROPERTIES)
  resident = batches.resident(data, min_length=2, columns=("seen",), further=further)
  sample = batches.make_sampler(num_users=len(resident["users"]), batch_size=64, length=9,
                                window="prefix")
  batch = jax.jit(sample)(resident, jax.random.key(0), 0)
  return data, resident, jax.tree.map(np.asarray, batch)


def test_the_last_interaction_is_asked_about_and_never_read():
  data, resident, batch = _batch()
  inputs = jax.tree.map(np.asarray, objectives.Click(num_items=70).prepare(None, batch, resident))
  assert inputs["items"].shape == (64, 8) and inputs["targets"].shape == (64, 1)
  np.testing.assert_array_equal(inputs["targets"][:, 0], batch["items"][:, -1])
  np.testing.assert_array_equal(inputs["properties"]["hour"], batch["property/hour"][:, :-1])
  real = inputs["users"] > 0
  assert real.sum() == 60
  for row in np.flatnonzero(real):
    user, history = inputs["users"][row], inputs["items"][row]
    begin, end = (edge[user] for edge in data.span("train"))
    mine, read = data.items[begin:end].tolist(), history[history > 0].tolist()
    ends = [i for i in range(1, len(mine)) if mine[max(i - 8, 0):i] == read
            and mine[i] == inputs["targets"][row, 0]]
    assert inputs["labels"][row, 0] in [1 + (data.ratings[begin + i] >= 4) for i in ends]
  assert not np.asarray(inputs["labels"])[~real].any()
  loves = objectives.ShopPreference(num_items=70, attribute="genre").prepare(None, batch, resident)
  values = data.features["genre"].values[batch["items"][:, -1], 0]
  np.testing.assert_array_equal(loves["labels"], values)


def test_clicks_are_told_from_what_the_user_has_not_chosen():
  data, resident, batch = _batch()
  objective = objectives.Click(num_items=70, of="clicks", num_negatives=5)
  inputs = jax.tree.map(np.asarray, jax.jit(objective.prepare)(jax.random.key(1), batch, resident))
  real = batch["users"] > 0
  assert (inputs["labels"][real] == [2, 1, 1, 1, 1, 1]).all() and not inputs["labels"][~real].any()
  for user, targets in zip(batch["users"][real], inputs["targets"][real], strict=True):
    rows = slice(*(edge[user] for edge in data.span("train")))
    assert not set(targets[1:]) & set(data.items[rows].tolist())
    assert data.in_domain[targets].all()
  assert objective.label_statistics(None) == (6.0, 0.0, 6)


def test_losses_are_cross_entropies_of_what_has_a_label():
  scores = jnp.array([[0.3, -1.0], [2.0, 0.5]])
  answer = lambda params, inputs, rng, head: scores
  where = dict(shards=1, capacity=4, rng=None)
  labels = jnp.array([[2, 1], [0, 2]])
  total, weight, _ = objectives.Click(num_items=9).loss(answer, None, {"labels": labels}, **where)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  assert weight == 3
  np.testing.assert_allclose(total, -np.log([sigmoid(0.3), 1 - sigmoid(-1.0), sigmoid(0.5)]).sum(),
                             rtol=1e-6)
  price = objectives.PricePreference(num_items=9)
  total, weight, _ = price.loss(answer, None, {"labels": jnp.array([2, 0])}, **where)
  np.testing.assert_allclose((total, weight), (np.log(np.exp(0.3) + np.exp(-1)) + 1, 1), rtol=1e-6)


def test_a_mix_answers_what_is_asked_of_any_part():
  parts = (mix.Part("click", 1.0, objectives.Click(num_items=9)),
           mix.Part("price_preference", 0.5, objectives.PricePreference(num_items=9)))
  both = mix.Mix(parts, evaluate="click", window="prefix")
  assert [q["name"] for q in both.questions] == ["click", "price_preference"]
  def apply_fn(params, inputs, rng, head):
    assert ("targets" in inputs) == (head == "click") and "properties" not in inputs
    return jnp.ones((2, 3))
  items = jnp.ones((2, 4), jnp.int32)
  found = both.predict(apply_fn, None, items[:, 0], items, {}, {
    "click": items[:, :3], "price_preference": items[:, :1]})
  assert set(found) == {"click", "price_preference"}
  assert set(both.predict(apply_fn, None, items[:, 0], items, {}, {"click": items})) == {"click"}


def test_placements_add_up_to_the_area_under_the_curve():
  rng = np.random.default_rng(0)
  scores, clicked = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
  mine, others = scores[clicked][:, None], scores[~clicked][None]
  area = ((mine > others) + (mine == others) / 2).mean()
  found = evaluator_lib.placements(scores, clicked)
  np.testing.assert_allclose([found.mean(), found[clicked].mean(), found[~clicked].mean()], area)


def _evaluator(*questions, data=None, **options):
  return evaluator_lib.Responses(data or tiny_responses.data(), questions=questions, batch_size=16,
                                 history_length=8, num_negatives=10, **options)


def _truth(data, question):
  """Returns {item of the test split of each user: its label} as an array [U + 1, N + 1]."""
  table = np.zeros((data.num_users + 1, data.num_items + 1), np.float32)
  begin, end = data.span("test")
  users = np.repeat(np.arange(len(begin)), end - begin)
  rows = sequences.take_ranges(np.arange(len(data.items)), begin, end)
  table[users, data.items[rows]] = responses.labels(data, question)[0][rows]
  return jnp.asarray(table)


def test_who_knows_the_answers_is_right_and_who_knows_nothing_is_chance():
  data = tiny_responses.data()
  liked, price = _truth(data, CLICK), _truth(data, PRICE)
  def oracle(params, users, histories, properties, targets):
    assert set(properties) == {"gap"}
    label = jnp.take_along_axis(price[users], targets["price_preference"], axis=1)[:, 0]
    return {"click": jnp.take_along_axis(liked[users], targets["click"], axis=1),
            "price_preference": jax.nn.one_hot(label - 1, tiny_responses.DECADES)}
  evaluator = _evaluator(CLICK, PRICE, properties=("gap",), contexts=("train",))
  found = evaluator.run(oracle, None)
  assert found.means()["train"] == {"click": {"auc": 1.0},
                                    "price_preference": {"accuracy": 1.0, "mrr": 1.0}}
  assert (found.values["train"]["click"]["count"] == 1).all()
  assert set(found.positives.values["train"]) == {"click"}
  zeros = lambda params, users, histories, properties, targets: {
    "click": jnp.zeros(targets["click"].shape), "price_preference": jnp.zeros((16, 4))}
  found = evaluator.run(zeros, None).means()["train"]
  assert found["click"]["auc"] == 0.5
  assert found["price_preference"] == {"accuracy": pytest.approx(1 / 4), "mrr": pytest.approx(
    (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)}
  with pytest.raises(FloatingPointError, match="click"):
    evaluator.run(lambda *args: {"click": jnp.full((16, 1), jnp.nan)}, None)


def test_shuffled_labels_are_chance():
  rng = np.random.default_rng(1)
  scores, clicked = rng.normal(size=20_000), rng.random(20_000) < 0.4
  assert abs(evaluator_lib.placements(scores, clicked).mean() - 0.5) < 0.02


def test_references_answer_their_own_questions():
  data = tiny_responses.data()
  found = {name: results.means()["train"]
           for name, results in _evaluator(CLICK, PRICE).references().items()}
  assert {name: set(tables) for name, tables in found.items()} == {
    "item_bias": {"click"}, "item_user_bias": {"click"}, "majority": {"price_preference"},
    "personal_frequency": {"price_preference"}}
  begin, end = data.span("train")
  labels = responses.labels(data, PRICE)[0]
  most = np.bincount(sequences.take_ranges(labels, begin, end)).argmax()
  last = labels[data.span("test")[0][1:]]
  assert found["majority"]["price_preference"]["accuracy"] == pytest.approx(np.mean(last == most))
  assert set(_evaluator(CHOSEN).references()) == {"popularity"}


def test_cold_items_are_compared_with_cold_ones():
  data = held_out.hold_out(tiny_responses.data(), (0.3, 0))
  evaluator = _evaluator(CHOSEN, data=data)
  drawn, items = evaluator._negatives["click"], evaluator._items
  cold = data.held_out[items] & (items > 0)
  assert cold.any() and (~cold & (items > 0)).any()
  for mark in (True, False):
    others = drawn[cold == mark]
    assert (data.held_out[others[others > 0]] == mark).all()
    assert data.in_domain[others[others > 0]].all()
  begin = np.asarray(data.offsets)
  for user, row in zip(evaluator.users, drawn, strict=True):
    assert not set(row.ravel()) & set(data.items[begin[user]:begin[user + 1]].tolist())
  held = jnp.asarray(data.held_out)
  new = lambda params, users, histories, properties, targets: {
    "click": held[targets["click"]].astype(jnp.float32)}
  assert evaluator.run(new, None).means()["train"]["click"]["auc"] == 0.5


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match="unknown protocol 'full'"):
    _evaluator(CLICK, protocols=("full",))
  with pytest.raises(errors.UserError, match="same label"):
    _evaluator({**CLICK, "threshold": 0.0})
  with pytest.raises(errors.UserError, match="num_negatives"):
    objectives.Click(num_items=9, num_negatives=0)
