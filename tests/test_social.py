"""Social graphs: laws of walks and negatives, losses against loops, what comes to be close."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_graph
from scipy import stats

from recjax import models, objectives, trees
from recjax.data import graphs
from recjax.evaluators import edges
from recjax.objectives import negatives, walks

# A triangle 0-1-2, a tail 2-3-4, and 5, which nobody knows.
PAIRS, SIZE = ((0, 1), (1, 2), (0, 2), (2, 3), (3, 4)), 6
WALKS = 6000


@pytest.fixture(scope="module")
def town():
  return tiny_graph.edges(PAIRS, SIZE)


@pytest.fixture(scope="module")
def tables(town):
  return jax.tree.map(jnp.asarray, graphs.resident(town, columns=("adjacency",)))


def walk(tables, start, *, p, q, length=4, seed=0):
  starts = jnp.full(WALKS, start)
  return np.asarray(jax.jit(lambda key: walks.walk(key, starts, tables, length=length, p=p, q=q))(
    jax.random.key(seed)))


def third_step(before, here, *, p, q):
  """Returns {node: chance} of node2vec's next step."""
  near = {n: {b if a == n else a for a, b in PAIRS if n in (a, b)} for n in range(SIZE)}
  weight = {x: 1 / p if x == before else 1 if before in near[x] else 1 / q for x in near[here]}
  return {x: w / sum(weight.values()) for x, w in weight.items()}


@pytest.mark.parametrize("p, q", [
  (1.0, 1.0), (0.25, 4.0), pytest.param(3.0, 0.5, marks=pytest.mark.slow)])
def test_walks_have_their_exact_law(tables, p, q):
  """Second steps from 1 and 2 by a chi-square test; p = q = 1 is DeepWalk, uniform."""
  found = walk(tables, 1, p=p, q=q)
  first = np.bincount(found[:, 1], minlength=SIZE)
  assert first.sum() == first[0] + first[2]
  assert stats.binomtest(int(first[0]), WALKS).pvalue > 1e-3
  for middle in (0, 2):
    law = third_step(1, middle, p=p, q=q)
    if p == q == 1:
      assert len(set(law.values())) == 1
    counts = np.bincount(found[found[:, 1] == middle, 2], minlength=SIZE)
    assert set(np.flatnonzero(counts)) == set(law)
    expected = counts.sum() * np.array(list(law.values()))
    assert stats.chisquare(counts[list(law)], expected).pvalue > 1e-3


def test_walks_follow_edges_and_end_where_nobody_is(tables):
  known = {(a, b) for a, b in PAIRS} | {(b, a) for a, b in PAIRS}
  found = walk(tables, 4, p=1.0, q=1.0)
  assert all((a, b) in known for a, b in set(map(tuple, found[:, :2].tolist())))
  alone = walk(tables, 5, p=0.25, q=4.0)
  assert (alone[:, 0] == 5).all() and (alone[:, 1:] == -1).all()
  a, b = (x.ravel() for x in np.indices((SIZE, SIZE)))
  held = jax.jit(lambda a, b: walks.is_edge(a, b, tables))(a, b)
  assert {(x, y) for x, y, yes in zip(a.tolist(), b.tolist(), held, strict=True) if yes} == known


def test_negatives_are_drawn_by_degree(tables):
  drawn = np.asarray(jax.jit(lambda key: negatives.by_popularity(key, tables, (40_000,)))(
    jax.random.key(2)))
  degree = np.maximum([sum(n in pair for pair in PAIRS) for n in range(SIZE)], 1)
  share = degree**0.75 / np.sum(degree**0.75)
  counts = np.bincount(drawn, minlength=SIZE)
  sigma = np.sqrt(len(drawn) * share * (1 - share))
  assert (np.abs(counts - len(drawn) * share) < 3 * sigma).all()


def build(*, orders=("second",), size=SIZE, width=4):
  return models.make("node_vectors", variant="deepwalk", field_rows={}, num_entities=size,
                     num_relations=1, orders=orders, width=width)


def apply_of(model):
  return lambda params, inputs, rng, **where: model.apply({"params": params}, **inputs, **where,
                                                          tables={})[0]


def logistic(x):
  return np.log1p(np.exp(-x))


@pytest.mark.parametrize("orders", [
  pytest.param(("second",), marks=pytest.mark.slow), ("first", "second")])
def test_skip_gram_loss_against_loops(tables, orders):
  model = build(orders=orders)
  rng = np.random.default_rng(0)
  params = trees.map_names(lambda _, x: rng.normal(size=x.shape).astype(np.float32), jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs(), tables={})["params"]))
  assert trees.count(params) == SIZE * 4 * sum({"first": 1, "second": 2}[o] for o in orders)
  objective = objectives.make("skip_gram", num_entities=SIZE, known=("skip_gram",),
                              skip_gram=dict(length=5, window=2, num_negatives=3))
  batch = {"rows": jnp.array([0, 3, 5, 1]), "mask": jnp.array([True, True, True, False])}
  def run(key):
    inputs = objective.prepare(key, batch, tables)
    return objective.loss(apply_of(model), params, inputs, shards=1, capacity=1, rng=None), inputs
  (total, weight, _), inputs = jax.device_get(jax.jit(run)(jax.random.key(4)))
  assert (inputs["walks"][3] == -1).all()
  want = pairs = 0
  for row, negative in zip(inputs["walks"], inputs["negatives"], strict=True):
    for i, j in ((i, j) for i in range(5) for j in range(5) if 0 < abs(i - j) <= 2):
      if row[i] < 0 or row[j] < 0:
        continue
      pairs += 1
      for order in orders:
        nodes = params[order]["embedding"]
        other = params["context"]["embedding"] if order == "second" else nodes
        want += logistic(nodes[row[i]] @ other[row[j]])
        want += logistic(-other[negative[i]] @ nodes[row[i]]).sum()
  assert weight == pairs > 0
  np.testing.assert_allclose(total, want, rtol=1e-4)


@pytest.mark.parametrize("name, orders", [
  pytest.param("skip_gram", ("second",), marks=pytest.mark.slow),
  ("edge_sampling", ("first", "second"))])
def test_cliques_come_apart(name, orders):
  """Two disconnected cliques: nodes of one are closer to each other than to the other's."""
  groups = 5
  pairs = [(a + g, b + g) for g in (0, groups) for a in range(groups) for b in range(a)]
  size, model = 2 * groups, build(orders=orders, size=2 * groups, width=8)
  tables = jax.tree.map(jnp.asarray, graphs.resident(tiny_graph.edges(pairs, size),
                                                     columns=("adjacency",)))
  objective = objectives.make(name, num_entities=size, known=(name,), **{name: dict(
    num_negatives=4, **(dict(length=6, window=2) if name == "skip_gram" else {}))})
  rows = jnp.arange(len(tables[objective.examples]))
  batch, apply_fn = {"rows": rows, "mask": rows >= 0}, apply_of(model)

  def step(params, key):
    inputs = objective.prepare(key, batch, tables)
    def mean_loss(params):
      total, weight, _ = objective.loss(apply_fn, params, inputs, shards=1, capacity=1, rng=None)
      return total / weight
    return jax.tree.map(lambda x, g: x - 5.0 * g, params, jax.grad(mean_loss)(params)), None

  @jax.jit
  def train(key):
    start, rest = jax.random.split(key)
    params = model.init(start, **model.example_inputs(), tables={})["params"]
    params, _ = jax.lax.scan(step, params, jax.random.split(rest, 120))
    everyone = jnp.arange(size)
    return objective.predict(apply_fn, params, everyone, jnp.broadcast_to(everyone, (size, size)))

  cosine = np.asarray(train(jax.random.key(0)))
  np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-4)
  same = (np.arange(size)[:, None] < groups) == (np.arange(size) < groups)
  within = cosine[same & ~np.eye(size, dtype=bool)].mean()
  assert within > cosine[~same].mean() + 0.1


def test_edges_are_compared_with_pairs_that_have_none():
  graph = tiny_graph.communities()
  evaluator = edges.Edges(graph, batch_size=16, num_negatives=30)
  known = {(a, b) for a, _, b in graph.triples.tolist()}
  known |= {(b, a) for a, b in known}
  drawn = edges.without_edge(graph, graph.split("test")[:, 0], 30, np.random.default_rng(0))
  for node, others in zip(graph.split("test")[:, 0], drawn, strict=True):
    assert node not in others
    assert not any((node, other) in known for other in others.tolist())
  constant = evaluator.run(lambda params, given, candidates: jnp.zeros(candidates.shape), 0.0)
  values = constant.values["train"]["edges"]
  assert (values["auc"] == 0.5).all() and np.allclose(values["mrr"], 1 / 16)
  chance = evaluator.references()["chance"].means()["train"]["edges"]
  assert chance["auc"] == 0.5 and chance["hits@10"] == pytest.approx(10 / 31)
  joined = np.zeros((graph.num_entities,) * 2, np.float32)
  joined[tuple(np.array(list(known)).T)] = 1
  oracle = evaluator.run(lambda params, given, candidates: jnp.take_along_axis(
    jnp.asarray(joined)[given], candidates, axis=1), 0.0).means()["train"]["edges"]
  assert set(oracle.values()) == {1.0}
