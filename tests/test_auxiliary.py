"""What is learned beside sequences: shared rows of a knowledge graph, attributes, friends."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_auxiliary

from recjax import errors, experiment, models, objectives, setting, train, trees
from recjax.data import auxiliary, graphs, sequences
from recjax.models import auxiliary as modules
from recjax.objectives import friends, margin_ranking

ITEM = "embed/item/embedding"


@pytest.fixture(scope="module")
def data():
  return sequences.load(tiny_auxiliary.root(), "src")


def _batch(rows=6, length=8, items=tiny.SRC_ITEMS):
  rng = np.random.default_rng(0)
  lengths = np.array([length, 5, 3, 1, 4, 0])[:rows]
  drawn = rng.integers(1, items + 1, (rows, length))
  return {"items": np.where(np.arange(length) >= length - lengths[:, None], drawn, 0).astype("i4"),
          "users": np.arange(1, rows + 1, dtype="i4") * (lengths > 0)}


@pytest.fixture(scope="module")
def joint():
  """Returns (experiment, parameters, graph) of masked items and, with weight 1/2, knowledge."""
  config = tiny_auxiliary.config(("masked_item", 1.0), ("knowledge", 0.5))
  config.objective.knowledge.normalize = False
  exp = experiment.build(config)
  return exp, exp.init_params(0), graphs.load(tiny_auxiliary.root(), "kg")


@pytest.fixture(scope="module")
def gradients(joint):
  """Returns (losses and gradients of the mix, of each part alone, and of TransE by itself; inputs).
  """
  exp, params, graph = joint
  masked, knowledge = (part.objective for part in exp.objective.parts)
  resident = jax.tree.map(jnp.asarray, {"pool": np.arange(1, 41), **exp.auxiliary.resident()})
  transe = models.make("transe", variant="free", field_rows={}, width=8, norm=1,
                       num_entities=graph.num_entities, num_relations=graph.num_relations)
  alone = margin_ranking.MarginRanking(num_entities=graph.num_entities)
  mean = lambda objective, apply_fn=exp.apply_fn: lambda params, inputs: _mean(
    objective, apply_fn, params, inputs)

  @jax.jit
  def run(key, batch, params, tables):
    inputs = exp.objective.prepare(key, batch, resident)
    own = {name.removeprefix("knowledge/"): x for name, x in inputs.items()
           if name.startswith("knowledge/") and not name.endswith("share")}
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in own.items()}
    by_itself = lambda params, inputs, rng, **where: transe.apply(
      {"params": params}, **inputs, **where, tables={})[0]
    out = {name: jax.value_and_grad(mean(objective), has_aux=True)(params, seen)
           for name, objective, seen in (("mix", exp.objective, inputs),
                                         ("masked", masked, masked.prepare(key, batch, resident)),
                                         ("knowledge", knowledge, own))}
    out["transe"] = jax.value_and_grad(mean(alone, by_itself), has_aux=True)(tables, flat)
    return out, own

  rows, place = params["embed"]["item"]["embedding"], exp.tables["knowledge/rows"]
  own = np.asarray(params["knowledge"]["entity"]["embedding"])[np.maximum(-1 - place, 0)]
  table = np.where((place > 0)[:, None], np.asarray(rows)[np.maximum(place, 0)], own)
  tables = {"entity": {"embedding": table}, "relation": params["knowledge"]["relation"]}
  return jax.device_get(run(jax.random.key(1), _batch(), params, tables))


def _mean(objective, apply_fn, params, inputs):
  capacity = (48, 48) if hasattr(objective, "parts") else 48
  total, weight, metrics = objective.loss(apply_fn, params, inputs, shards=1, capacity=capacity,
                                          rng=None)
  return total / weight, (total, metrics)


def test_shared_rows_have_the_gradient_of_the_graph_alone(joint, gradients):
  exp, params, graph = joint
  (value, _), grads = gradients[0]["knowledge"]
  (alone, _), of_tables = gradients[0]["transe"]
  assert value == pytest.approx(alone, rel=1e-6) and value > 0
  place, grad = np.asarray(exp.tables["knowledge/rows"]), of_tables["entity"]["embedding"]
  linked = place > 0
  assert 15 < linked.sum() < graph.num_entities
  items = grads["embed"]["item"]["embedding"]
  np.testing.assert_allclose(items[place[linked]], grad[linked], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(grads["knowledge"]["entity"]["embedding"], grad[~linked], rtol=1e-5,
                             atol=1e-7)
  np.testing.assert_allclose(grads["knowledge"]["relation"]["embedding"],
                             of_tables["relation"]["embedding"], rtol=1e-5, atol=1e-7)
  assert np.abs(grad[linked]).max() > 0
  # Padding, MASK and items that are no entities have no part in it; nor has the rest of the model.
  rest = np.setdiff1d(np.arange(len(items)), place[linked])
  assert {0, tiny.ITEMS + 1} <= set(rest.tolist()) and (items[rest] == 0).all()
  others = {leaf: x for leaf, x in trees.flatten(grads).items()
            if leaf != ITEM and not leaf.startswith("knowledge/")}
  assert len(others) > 10 and all((x == 0).all() for x in others.values())


def test_the_joint_gradient_is_that_of_the_weighted_sum(gradients):
  found, _ = gradients
  _, mix = found["mix"]
  _, masked = found["masked"]
  _, knowledge = found["knowledge"]
  want = jax.tree.map(lambda a, b: a + 0.5 * b, masked, knowledge)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mix, want)


def test_the_part_that_masks_is_plain_masking_bit_for_bit(gradients):
  found, _ = gradients
  (_, (_, metrics)), _ = found["mix"]
  (_, (alone, _)), _ = found["masked"]
  assert metrics["masked_item/loss"] == alone > 0


def test_weight_0_leaves_a_part_out(joint):
  exp, params, _ = joint
  config = tiny_auxiliary.config(("masked_item", 1.0), ("knowledge", 0.0))
  plain = experiment.build(config)
  assert [part.name for part in plain.objective.parts] == ["masked_item"]
  assert plain.objective.parts[0].objective == exp.objective.parts[0].objective
  assert not plain.auxiliary.modules
  shapes = trees.flatten(plain.params_shapes())
  assert {*trees.flatten(params)} - {*shapes} == {"knowledge/entity/embedding",
                                                  "knowledge/relation/embedding"}


def test_rows_that_fill_up_a_batch_bring_no_triples(joint, gradients):
  _, inputs = gradients
  assert inputs["mask"][:5].any(1).all() and not inputs["mask"][5].any()
  known = set(map(tuple, joint[2].split("train").tolist()))
  head = np.where(inputs["asks_head"], inputs["candidates"][..., 0], inputs["given"])
  tail = np.where(inputs["asks_head"], inputs["given"], inputs["candidates"][..., 0])
  triples = np.stack([head, inputs["relations"], tail], -1)[:5].reshape(-1, 3)
  assert set(map(tuple, triples.tolist())) <= known


def test_rows_are_known_by_name_and_linked_items_count_as_trained(joint):
  exp, _, graph = joint
  rows, items = exp.rows(), exp.data
  entities = rows["knowledge/entity"].names
  linked = np.asarray(graph.item_entities)
  assert set(entities.tolist()) == set(np.delete(graph.entity_ids, linked).tolist())
  taught = np.isin(items.item_ids, tiny_auxiliary.LINKED) & ~np.asarray(items.in_domain)
  assert taught.sum() > 10 and rows["item"].trained[:len(taught)][taught].all()
  assert not rows["output"].trained[:len(taught)][taught].any()
  assert exp.data.identity()["graphs"]["knowledge"] == graph.identity()


def test_complex_shares_rows_as_well():
  link = models.make_auxiliary("knowledge", initializer="torch", item_width=8, width_of_x=8,
                               scorer="complex", norm=1, normalize=False, num_own=2,
                               num_entities=3, num_relations=1)
  rows, tables = jnp.ones((5, 8)), {"knowledge/rows": np.array([-1, 4, -2])}
  query = {**link.example_inputs(), "candidates": jnp.array([[1]])}
  def score(rows):
    params = link.init(jax.random.key(0), rows, tables, **query)["params"]
    return link.apply({"params": params}, rows, tables, **query)[0, 0]
  grad = np.asarray(jax.jit(jax.grad(score))(rows))
  assert np.abs(grad[4]).max() > 0 and (grad[:4] == 0).all()


# Attributes.


@pytest.fixture(scope="module")
def genres(data):
  found = auxiliary.read(tiny_auxiliary.root(), data, {"attributes": dict(
    attributes=("genre",), min_count=2, width=3, sides={"masked": None, "item": None})})
  return found["attributes"]


def test_values_that_few_items_have_are_left_out(data, genres):
  feature, domain = data.features["genre"], np.asarray(data.in_domain)
  count = [(np.asarray(feature.values)[domain] == v).any(1).sum() for v in range(6)]
  names = [f"genre:g{v}".encode() for v in range(1, 6) if count[v] >= 2]
  assert genres.rows["attributes"][0].tolist() == names
  for item, held in enumerate(genres.tables["attributes"]):
    want = {f"genre:g{v}".encode() for v in np.asarray(feature.values)[item] if v}
    assert {names[v - 1] for v in held if v} == want & set(names)
    assert len(set(held[held > 0])) == (held > 0).sum()  # a value that is listed twice is one
  none = auxiliary.read(tiny_auxiliary.root(), data, {"attributes": dict(
    attributes=("genre",), min_count=10, width=3, sides={})})["attributes"].sizes
  assert none["num_attributes"] < len(names)


@pytest.mark.parametrize("name", [
  "masked_attribute", pytest.param("item_attribute", marks=pytest.mark.slow)])
def test_losses_of_attributes_against_loops(genres, name):
  objective = objectives.make("mix", num_items=tiny.ITEMS, mix=dict(
    parts=((name, 1.0), ("masked_item", 1.0)), evaluate="masked_item"),
    **{name: dict(min_count=2, value_width=3, rate=0.6)}).parts[0].objective
  tokens = tiny.ITEMS + 2
  tables = {**genres.tables, "attributes": auxiliary.expand(genres.tables["attributes"], tokens)}
  module = models.make_auxiliary("attributes", initializer="bert", item_width=4, width_of_x=5,
                                 **genres.sizes)
  rng = np.random.default_rng(1)
  rows, x = (rng.normal(size=(n, w)).astype("f4") for n, w in ((tokens, 4), (48, 5)))

  @jax.jit
  def run(rows, x):
    params = module.init(jax.random.key(0), rows, tables, **module.example_inputs())["params"]
    def apply_fn(params, inputs, rng, *, positions=None, readout=None, auxiliary=None, **where):
      if auxiliary:
        return module.apply({"params": params}, rows, tables, **inputs, **where)
      return readout(types.SimpleNamespace(x=x[positions]))
    inputs = objective.prepare(jax.random.key(2), _batch(), {
      "attributes": jax.tree.map(jnp.asarray, genres.resident)})
    return params, inputs, objective.loss(apply_fn, params, inputs, shards=1, capacity=48, rng=None)

  params, inputs, (total, weight, _) = jax.device_get(run(rows, x))
  want, asked = 0.0, 0
  kernel = params["masked_kernel" if name == "masked_attribute" else "item_kernel"]
  for place, item in enumerate(inputs["labels"].ravel()):
    if item:
      vector = x[place] if name == "masked_attribute" else rows[item]
      scores = vector @ kernel @ params["values"]["embedding"].T + tables["attributes/log_odds"]
      held = {v - 1 for v in tables["attributes"][item] if v}
      assert held
      want += sum(np.log1p(np.exp(-s if a in held else s)) for a, s in enumerate(scores))
      asked += 1
  assert weight == asked > 3
  np.testing.assert_allclose(total, want, rtol=1e-5)
  items, chosen = _batch()["items"], inputs["labels"] > 0
  assert (inputs["labels"][chosen] == items[chosen]).all() and not chosen[items == 0].any()
  np.testing.assert_array_equal(inputs["items"], np.where(
    chosen & (name == "masked_attribute"), tiny.ITEMS + 1, items))


# Friends.


@pytest.fixture(scope="module")
def social(data):
  """Returns (resident arrays of friends with the rows of `src`, {(u, v)} that are connected)."""
  def read(graph):
    found = auxiliary.read(tiny_auxiliary.root(), data, {"social": dict(graph=graph, sides={})})
    return {"items": jnp.asarray(data.items),
            "social": jax.tree.map(jnp.asarray, found["social"].resident)}
  town = graphs.load(tiny_auxiliary.root(), "town")
  number = {name: n for n, name in enumerate(data.user_ids.tolist())}
  known = {(number[town.entity_ids[a]], number[town.entity_ids[b]])
           for a, _, b in town.triples.tolist() if a and b}
  return read, known


def _friends(name="friends", **fields):
  mixed = objectives.make("mix", num_items=tiny.ITEMS, mix=dict(
    parts=((name, 1.0), ("masked_item", 1.0)), evaluate="masked_item"), **{name: fields})
  return mixed.parts[0].objective


def _encoder(module):
  """Returns an apply_fn whose vectors are those of a table of items, {"item", "social"}."""
  def apply_fn(params, inputs, rng, *, positions=None, readout=None, auxiliary=None, **where):
    if auxiliary:
      return module.apply({"params": params["social"]}, None, None, **inputs, **where)
    x = params["item"][inputs["items"]].reshape(-1, 8)[positions]
    return readout(types.SimpleNamespace(x=x))
  return apply_fn


def test_edges_are_drawn_and_neighbors_are_no_negatives(data, social):
  read, known = social
  objective, tables = _friends(graph="town", group=4), read("town")
  batch = {"users": np.array([1] * 7 + [0], "i4"), "items": np.zeros((8, 5), "i4")}
  inputs = jax.device_get(jax.jit(lambda key, tables: objective.prepare(key, batch, tables))(
    jax.random.key(0), tables))
  pairs = list(zip(inputs["users"].tolist(), inputs["friends"].tolist(), strict=True))
  assert pairs[-1] == (0, 0) and set(pairs[:-1]) <= known and len(set(pairs)) > 5
  histories = [data.items[begin:end][-5:].tolist() for begin, end in zip(*data.span("train"),
                                                                         strict=True)]
  for name, users in (("items", inputs["users"]), ("others", inputs["friends"])):
    assert [row[row > 0].tolist() for row in inputs[name]] == [histories[u] for u in users]
  for row, end, other in np.ndindex(8, 2, 8):
    group = pairs[row // 4 * 4:][:4]
    assert inputs["near"][row, end, other] == (
      (pairs[row][end], group[other % 4][other // 4]) in known)


def test_friends_come_closer_and_strangers_do_not(data, social):
  read, known = social
  objective, tables = _friends(graph="town", projection=4, temperature=0.2), read("town")
  # Friends are of the same third of the users, each of which has items of its own.
  owner = np.repeat(np.arange(data.num_users + 1), np.diff(data.offsets))
  third = np.array([int(name[1:]) % 3 for name in data.user_ids[owner].tolist()])
  drawn = 1 + 13 * third + np.random.default_rng(0).integers(13, size=len(third))
  tables["items"] = jnp.asarray(drawn, jnp.int32)
  module = modules.UserVectors(sides=(("projection", 8, 4),), initializer="torch")
  apply_fn = _encoder(module)
  batch = {"users": jnp.ones(24, jnp.int32), "items": jnp.zeros((24, 8), jnp.int32)}
  users = jnp.arange(1, tiny.USERS + 1)

  def step(params, key):
    inputs = objective.prepare(key, batch, tables)
    def mean_loss(params):
      total, weight, _ = objective.loss(apply_fn, params, inputs, shards=1, capacity=0, rng=None)
      return total / weight
    return jax.tree.map(lambda x, g: x - 0.2 * g, params, jax.grad(mean_loss)(params)), None

  @jax.jit
  def run(key):
    params = {"item": jax.random.normal(key, (tiny.ITEMS + 2, 8)),
              "social": module.init(key, None, None, **module.example_inputs())["params"]}
    seen = friends.latest(tables, users, 8)
    z = lambda params: objective.embed(apply_fn, params, seen, users, None)
    trained, _ = jax.lax.scan(step, params, jax.random.split(key, 150))
    return z(params), z(trained)

  before, after = (z @ z.T for z in jax.device_get(run(jax.random.key(3))))
  near = np.zeros((tiny.USERS,) * 2, bool)
  near[tuple(np.array(list(known)).T - 1)] = True
  apart = ~near & ~np.eye(tiny.USERS, dtype=bool)
  assert after[near].mean() > before[near].mean() + 0.05
  assert after[apart].mean() < before[apart].mean() + 0.01


@pytest.mark.parametrize("name", [
  "friends", pytest.param("connected", marks=pytest.mark.slow)])
def test_without_edges_there_is_no_loss(social, name):
  read, _ = social
  objective, tables = _friends(name, graph="desert"), read("desert")
  module = modules.UserVectors(sides=(("projection", 8, 32), ("connected", 8, 1)),
                               initializer="bert")
  @jax.jit
  def run(key):
    params = {"item": jnp.ones((tiny.ITEMS + 2, 8)),
              "social": module.init(key, None, None, **module.example_inputs())["params"]}
    inputs = objective.prepare(key, _batch(), tables)
    def loss(params):
      total, weight, _ = objective.loss(_encoder(module), params, inputs, shards=1, capacity=0,
                                        rng=None)
      return total, weight
    return jax.value_and_grad(loss, has_aux=True)(params)
  (total, weight), grads = jax.device_get(run(jax.random.key(0)))
  assert total == weight == 0 and all((x == 0).all() for x in jax.tree.leaves(grads))


def test_half_of_the_pairs_are_connected(data, social):
  read, known = social
  objective, tables = _friends("connected", graph="town"), read("town")
  batch = {"users": np.ones(400, "i4"), "items": np.zeros((400, 9), "i4")}
  inputs = jax.device_get(jax.jit(lambda key: objective.prepare(key, batch, tables))(
    jax.random.key(1)))
  label = inputs["connected"]
  assert abs((label == 1).mean() - 0.5) < 0.1 and abs((label == 0).mean() - 0.4) < 0.2
  token, begin, end = tiny.ITEMS + 1, *data.span("train")
  owner = {}
  for user in range(1, tiny.USERS + 1):
    owner.setdefault(tuple(data.items[begin[user]:end[user]][-3:].tolist()), set()).add(user)
  for row, connected in zip(inputs["items"], label, strict=True):
    kept = row[row > 0].tolist()
    assert (np.diff((row > 0).astype(int)) >= 0).all() and (connected >= 0) == bool(kept)
    if kept:
      middle = kept.index(token)
      assert kept[-1] == token and kept.count(token) == 2
      first, second = tuple(kept[:middle]), tuple(kept[middle + 1:-1])
      pairs = {(a, b) for a in owner[first] for b in owner[second]}
      assert bool(pairs & known) if connected else bool(pairs - known)


# Whole runs.

ALL = (("masked_item", 1.0), ("knowledge", 0.1), ("masked_attribute", 0.1), ("item_attribute", 0.1),
       ("friends", 0.1), ("connected", 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(("masked_item", 1.0), ("knowledge", 0.1)), ALL])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch, parts):
  fields = dict(total_steps=8)
  config = functools.partial(tiny_auxiliary.config, *parts, **fields)
  report = train.train_and_evaluate(config(), tmp_path / "whole")
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  tiny.stop_at(monkeypatch, 4, kill)
  with pytest.raises(Killed):
    train.train_and_evaluate(config(), tmp_path / "run")
  train.train_and_evaluate(config(), tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tmp_path / "whole")
  rows = [row for (_, split, _), row in tiny.metric_rows(tmp_path / "run").items()
          if split == "train"]
  assert all(row[f"{name}/labels"] > 0 for row in rows for name, _ in parts)
  assert report["test"]["full"]["mrr"] > 0


@pytest.mark.parametrize("change, message", [
  (dict(name="knowledge"), "scores no items; learn it beside a task"),
  (dict(mix=dict(parts=(("knowledge", 1.0), ("masked_item", 1.0)), evaluate="knowledge")),
   "objective.mix.evaluate"),
  (dict(knowledge=dict(graph="")), "graph is required"),
  (dict(knowledge=dict(graph="src")), "not a graph"),
  (dict(knowledge=dict(graph="town")), "no item of 'src' is an entity"),
  (dict(knowledge=dict(graph="kg", scorer="tucker")), "scorer.*'tucker'"),
  (dict(knowledge=dict(graph="kg", triples=0)), "triples must be at least 1"),
  (dict(masked_attribute=dict(attributes=("color",))), "attributes.*'color'"),
  (dict(mix=dict(parts=(("masked_item", 1.0), ("item_attribute", 0.1))),
        item_attribute=dict(min_count=999)), "lower min_count"),
  (dict(masked_attribute=dict(value_width=5)), "share attributes, but item_attribute wants"),
  (dict(friends=dict(graph="kg"), connected=dict(graph="kg")), "no user of 'src'"),
  (dict(friends=dict(graph="town", group=1)), "group at least 2"),
  (dict(friends=dict(graph="town", pool="sum")), "pool.*'sum'")])
def test_mistakes_are_one_line(change, message):
  config = tiny_auxiliary.config(*ALL)
  with config.unlocked():
    config.objective.update(change)
  with pytest.raises(errors.UserError, match=message):
    experiment.build(config)


def test_friends_are_not_cut_apart():
  config = tiny_auxiliary.config(("masked_item", 1.0), ("friends", 0.1))
  config.objective.friends.group = None
  made = setting.set_up(experiment.build(config))
  with pytest.raises(errors.UserError, match="compares 12 users.*cut them apart"):
    made.make_steps(None, {})
