"""Models of knowledge graphs: exact equivalences between them, sizes, constraints."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from recjax import errors, models, optim, trees
from recjax.models import graph_layers, layers, translation, tucker

E, R, D = 9, 3, 4
TRIPLES = np.array(list(itertools.product(range(E), range(R), range(E))), np.int32)


def build(name, *, entities=E, relations=R, **fields):
  return models.make(name, variant=next(iter(models.VARIANTS[name])), field_rows={},
                     num_entities=entities, num_relations=relations, **fields)


@functools.partial(jax.jit, static_argnums=0)
def init(model, seed):
  return model.init(jax.random.key(seed), **model.example_inputs(), tables={})["params"]


def random(shape, seed=0, bound=0.3):
  return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)


def some_params(model, seed=0):
  """Returns random parameters of the model, variances at least 1; nothing is compiled."""
  shapes = jax.eval_shape(functools.partial(init, model), 0)
  return trees.map_names(
    lambda leaf, x: random(x.shape, zlib.crc32(leaf.encode()) + seed) + leaf.endswith("var"),
    shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, given, relations, asks_head, candidates):
  mask = jnp.ones(given.shape, bool)
  return model.apply({"params": params}, given, relations, asks_head, mask, {},
                     candidates=candidates)[0]


def scores(model, params, *, asks_head=False, triples=TRIPLES):
  """Returns the scores of triples, asked from one side."""
  head, relation, tail = np.asarray(triples).T
  given, asked = (tail, head) if asks_head else (head, tail)
  found = apply(model, params, given, relation, np.full(len(given), asks_head), asked[:, None])
  return np.asarray(found[:, 0])


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def bilinear(entity, relation):
  """Returns sum_i h_i r_i t_i of all triples: DistMult."""
  head, r, tail = TRIPLES.T
  return np.sum(entity[head] * relation[r] * entity[tail], axis=1)


@pytest.mark.parametrize("name", ["transd", "complex", "tucker"])
def test_a_triple_scores_the_same_from_either_side(name):
  wide = {"relation_width": 3} if name in ("transr", "transd", "tucker") else {}
  model = build(name, width=D, **wide)
  params = some_params(model)
  if name == "tucker":  # Reciprocal relations are of their own: the same here where they transpose.
    core = random((3, D, D))
    params["core"]["kernel"] = core + core.swapaxes(1, 2)
    params["relation"]["embedding"] = np.stack([random((R, 3))] * 2)
    model = model.clone(batch_norm=False)
    params = {k: v for k, v in params.items() if not k.endswith("norm")}
  close(scores(model, params), scores(model, params, asks_head=True))


@pytest.mark.parametrize("name", ["transr", "transd", "complex", "proje", "tucker"])
def test_all_entities_score_as_they_do_alone(name, monkeypatch):
  monkeypatch.setattr(translation, "BLOCK", 4)  # several blocks, the last one short
  wide = {"relation_width": 5} if name in ("transr", "transd", "tucker") else {}
  model = build(name, width=D, **wide)
  params = some_params(model)
  for asks_head in (False, True):
    alone = scores(model, params, asks_head=asks_head).reshape(E, R, E)
    given, relation = (x.ravel() for x in np.indices((E, R), np.int32))
    together = apply(model, params, given, relation, np.full(E * R, asks_head), None)
    close(np.asarray(together).reshape(E, R, E), alone.T if asks_head else alone)


def transe_params(seed=0):
  return {"entity": {"embedding": random((E, D), seed)},
          "relation": {"embedding": random((R, D), seed + 1)}}


@pytest.mark.parametrize("norm", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_translations_that_are_transe(norm):
  transe, params = build("transe", width=D, norm=norm), transe_params()
  want = scores(transe, params)
  head, relation, tail = TRIPLES.T
  e, r = params["entity"]["embedding"], params["relation"]["embedding"]
  plain = -np.linalg.norm(e[head] + r[relation] - e[tail], ord=norm, axis=1)
  close(want, plain)
  # TransR with M = I, as it starts.
  transr = build("transr", width=D, relation_width=D, norm=norm)
  close(scores(transr, {**params, "projection": {"kernel": np.stack([np.eye(D)] * R)}}), want)
  # TransD with r_p = 0, and with h_p = t_p = 0.
  transd = build("transd", width=D, relation_width=D, norm=norm)
  for entities, relations in ((random((E, D), 7), np.zeros((R, D))),
                              (np.zeros((E, D)), random((R, D), 8))):
    close(scores(transd, {**params, "entity_projection": {"embedding": entities},
                          "relation_projection": {"embedding": relations}}), want)
  # TransH with w . h = w . t: entities that agree in the direction of w.
  flat = e.copy()
  flat[:, 0] = 0.25
  normal = np.zeros((R, D), np.float32)
  normal[:, 0] = 1
  flat_params = {**params, "entity": {"embedding": flat}}
  transh = build("transh", width=D, norm=norm)
  close(scores(transh, {**flat_params, "normal": {"embedding": normal}}),
        scores(transe, flat_params))


def test_transh_is_its_formula():
  model, params = build("transh", width=D, norm=2), transe_params()
  w = np.asarray(graph_layers.unit(jnp.asarray(random((R, D), 3))))
  e, r = params["entity"]["embedding"], params["relation"]["embedding"]
  head, relation, tail = TRIPLES.T
  fall = lambda x: x - np.sum(w[relation] * x, 1, keepdims=True) * w[relation]
  want = -np.linalg.norm(fall(e[head]) + r[relation] - fall(e[tail]), axis=1)
  close(scores(model, {**params, "normal": {"embedding": w}}), want)


@pytest.mark.parametrize("width, relation_width", [
  (4, 6), pytest.param(6, 4, marks=pytest.mark.slow)])
def test_transd_is_its_matrix(width, relation_width):
  """M_rh = r_p h_p^T + I (Ji et al. 2015, Eq. 6-7), for widths that differ."""
  model = build("transd", width=width, relation_width=relation_width, norm=2)
  shapes = {"entity": (E, width), "relation": (R, relation_width),
            "entity_projection": (E, width), "relation_projection": (R, relation_width)}
  params = {name: {"embedding": random(shape, seed)}
            for seed, (name, shape) in enumerate(shapes.items())}
  e, r, ep, rp = (params[name]["embedding"] for name in shapes)
  def put(i, k):
    moved = (np.outer(rp[k], ep[i]) + np.eye(relation_width, width)) @ e[i]
    return moved / max(1, np.linalg.norm(moved))
  want = [-np.linalg.norm(put(h, k) + r[k] - put(t, k)) for h, k, t in TRIPLES]
  close(scores(model, params), want)


def test_complex_without_imaginary_parts_is_distmult():
  model = build("complex", width=D)
  entity, relation = random((E, D)), random((R, D), 1)
  pad = lambda x: {"embedding": np.concatenate([x, np.zeros_like(x)], axis=1)}
  close(scores(model, {"entity": pad(entity), "relation": pad(relation)}),
        bilinear(entity, relation))


def test_complex_relations_that_are_real_and_imaginary():
  model, entity = build("complex", width=D), {"embedding": random((E, 2 * D))}
  values, nothing = random((R, D), 1), np.zeros((R, D), np.float32)
  for parts, sign in (((values, nothing), 1), ((nothing, values), -1)):
    params = {"entity": entity, "relation": {"embedding": np.concatenate(parts, axis=1)}}
    forward = scores(model, params)
    close(forward, sign * scores(model, params, triples=TRIPLES[:, ::-1]))
    assert np.abs(forward).max() > 0.01


@pytest.mark.parametrize("power", [2, 3])
def test_complex_penalty(power):
  """Means of squares of coordinates, or of cubes of moduli: what a phase does not change (N3)."""
  model = build("complex", width=D, penalty_power=power)
  params = {"entity": {"embedding": random((E, 2 * D))},
            "relation": {"embedding": random((R, 2 * D), 1)}}
  given, relations = jnp.array([0, 4]), jnp.array([2, 1])
  (_, penalty), _ = model.apply(
    {"params": params}, given, relations, jnp.zeros(2, bool), jnp.ones(2, bool), {}, penalize=True)
  def size(rows):
    return np.mean(np.abs(rows[:, :D] + 1j * rows[:, D:]) ** power, axis=1) / (4 - power)
  close(penalty, (size(params["entity"]["embedding"][given])
                  + size(params["relation"]["embedding"][relations])) / 2)


def tucker_params(entity, relation, core):
  return {"entity": {"embedding": entity}, "core": {"kernel": core.astype(np.float32)},
          "relation": {"embedding": np.stack([relation, relation])}}


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_tucker_multiplies_as_dropped_matrices_do(rate):
  """Products one row of the matrices at a time are those of `layers.Dropout`, gradients too."""
  x, r, core = random((6, D)), random((6, 5), 1), random((5, D, 7), 2)
  seeds, weight = jnp.array([3, 2**31 + 5], jnp.uint32), random((6, 7), 3)
  def by_rows(x, r, core):
    return tucker.multiply(x, r, core, seeds, rate)
  def by_matrices(x, r, core):
    matrix = jnp.einsum("bw,wde->bde", r, core)
    drawn = layers.draws(seeds, matrix.shape)
    matrix = jnp.where(layers.kept(matrix.shape, drawn, rate), matrix / (1 - rate), 0)
    return jnp.einsum("bd,bde->be", x, matrix)
  want, want_back = jax.vjp(by_matrices, x, r, core)
  have, have_back = jax.vjp(by_rows, x, r, core)
  jax.tree.map(close, (have, have_back(weight)), (want, want_back(weight)))


def test_tucker_with_a_superdiagonal_core_is_distmult():
  model = build("tucker", width=D, relation_width=D, batch_norm=False)
  core = np.zeros((D, D, D))
  core[np.arange(D), np.arange(D), np.arange(D)] = 1
  entity, relation = random((E, D)), random((R, D), 1)
  close(scores(model, tucker_params(entity, relation, core)), bilinear(entity, relation))


def test_tucker_with_a_signed_core_is_complex():
  entity, relation = random((E, 2 * D)), random((R, 2 * D), 1)
  core, i = np.zeros((2 * D,) * 3), np.arange(D)  # (relation, subject, object)
  core[i, i, i] = core[i, i + D, i + D] = core[i + D, i, i + D] = 1
  core[i + D, i + D, i] = -1
  model = build("tucker", width=2 * D, relation_width=2 * D, batch_norm=False)
  want = scores(build("complex", width=D), {"entity": {"embedding": entity},
                                            "relation": {"embedding": relation}})
  close(scores(model, tucker_params(entity, relation, core)), want)


def test_proje_is_its_formula_on_either_side():
  model = build("proje", width=D, output_bias=True)
  params = some_params(model)
  e, r, c = params["entity"]["embedding"], params["relation"]["embedding"], params["combine"]
  head, relation, tail = TRIPLES.T
  for side, (given, asked) in enumerate(((head, tail), (tail, head))):
    query = np.tanh(c["entity"][side] * e[given] + c["relation"][side] * r[relation]
                    + c["bias"][side])
    close(scores(model, params, asks_head=bool(side)),
          np.sum(query * e[asked], axis=1) + params["bias"][side])


def test_parameter_counts():
  """SPEC.md 2.4, with running statistics of batch norm (4 D, not trained) beside TuckER's."""
  e, r, d, k = 11, 5, 6, 4
  counts = {
    "transe": ({}, (e + r) * d), "transh": ({}, (e + 2 * r) * d),
    "transr": ({"relation_width": k}, e * d + r * k + r * d * k),
    "transd": ({"relation_width": k}, 2 * (e * d + r * k)),
    "complex": ({}, 2 * (e + r) * d), "proje": ({}, (e + r) * d + 2 * 3 * d),
    "tucker": ({"relation_width": k}, e * d + 2 * r * k + k * d * d + 4 * d + 4 * d)}
  for name, (fields, count) in counts.items():
    model = build(name, entities=e, relations=r, width=d, **fields)
    shapes = jax.eval_shape(functools.partial(init, model), 0)
    assert trees.count(shapes) == count, name
    leaves = trees.flatten(shapes)
    for leaf, (vocabulary, axis) in model.row_tables().items():
      assert leaves[leaf].shape[axis] == {"entity": e, "relation": r}[vocabulary]


def test_batch_norm_of_a_trained_model_does_not_see_the_batch():
  model = build("tucker", width=D, relation_width=3)
  params = some_params(model)
  together = scores(model, params)
  alone = np.concatenate([scores(model, params, triples=TRIPLES[i:i + 1]) for i in (0, 100, 200)])
  close(together[[0, 100, 200]], alone)
  # Running statistics they are: where they move, so do scores.
  norm = {**params["input_norm"], "mean": params["input_norm"]["mean"] + 5}
  query = {**params, "input_norm": norm}
  assert np.abs(scores(model, query) - together).max() > 1e-3


def batch_norm_step(x, mask, params):
  """Returns (output, the gradient of running statistics) of a loss that sums over rows."""
  layer = tucker.BatchNorm()
  def loss(params):
    y = layer.apply({"params": params}, x, mask, train=True)
    return jnp.sum(jnp.where(mask[:, None], y, 0)**3), y
  grads, y = jax.grad(loss, has_aux=True)(params)
  return y, grads


batch_norm_step = jax.jit(batch_norm_step)


def test_batch_norm_follows_the_batch_and_padding_changes_nothing():
  x, mask = jnp.asarray(random((6, D), bound=2.0)), jnp.ones(6, bool)
  params = {"scale": jnp.ones(D), "bias": jnp.zeros(D), "mean": jnp.full(D, 0.5),
            "var": jnp.full(D, 2.0)}
  y, grads = batch_norm_step(x, mask, params)
  close(np.mean(y, 0), 0)
  close(np.var(y, 0), np.var(x, 0) / (np.var(x, 0) + tucker.EPSILON))
  # The usual moving average: mean <- 0.9 mean + 0.1 batch mean, var with Bessel's correction.
  moved = {n: params[n] - tucker.MOMENTUM * grads[n] / 6 for n in ("mean", "var")}
  close(moved["mean"], 0.9 * 0.5 + 0.1 * np.mean(x, 0))
  close(moved["var"], 0.9 * 2.0 + 0.1 * np.var(x, 0, ddof=1))
  padded = jnp.concatenate([x, jnp.full((2, D), 99.0)])
  y2, grads2 = batch_norm_step(padded, jnp.arange(8) < 6, params)
  close(y2[:6], y)
  close(grads2["mean"], grads["mean"])


@pytest.mark.parametrize("name", ["transh", "transr"])
def test_vectors_start_within_their_constraints(name):
  model = build(name, width=D, entities=50)
  flat = trees.flatten(init(model, 0))
  if name == "transr":
    assert np.array_equal(flat["projection/kernel"], np.stack([np.eye(100, D)] * R))
  rules = [(leaf, options["project"]) for leaf, options in model.leaf_options()]
  assert rules
  for leaf, kind in rules:
    norms = np.linalg.norm(flat[leaf], axis=-1)
    assert norms.max() <= 1 + 1e-6
    assert kind == "ball" or np.allclose(norms, 1, atol=1e-6)


def test_models_of_other_data_are_refused():
  with pytest.raises(errors.UserError, match="sasrec does not learn from data with entities"):
    models.make("sasrec", variant="kang", field_rows={}, num_entities=E, num_relations=R)
  with pytest.raises(errors.UserError, match="transe does not learn from data with items"):
    models.make("transe", variant="kb2e", field_rows={}, num_items=E, num_users=R)
  with pytest.raises(errors.UserError, match="dropouts"):
    build("tucker", dropouts=(0.1, 0.2))
  with pytest.raises(errors.UserError, match="penalty_power must be 2 or 3, not 4"):
    build("complex", penalty_power=4)


def test_projections_and_averages_of_the_optimizer():
  params = {"ball": random((5, D), 1, 3.0), "sphere": random((5, D), 2, 3.0),
            "free": random((5, D), 3, 3.0), "running": random(D, 4)}
  config = common.get_config().optim
  config.lr, config.clip_norm, config.rules = 0.1, 0.5, (("ball", dict(weight_decay=0.0)),)
  plan = optim.plan(config, params, defaults=(
    ("ball", {"project": "ball"}), ("sphere", {"project": "sphere"}),
    ("running", {"average": 0.25})))
  assert plan["ball"] == {**optim.OPTIONS, "weight_decay": 0.0, "project": "ball"}
  tx = optim.make(config, params, schedule=lambda step: 0.1, plan=plan)
  state = tx.init(params)
  grads = jax.tree.map(lambda x: jnp.asarray(random(x.shape, 9, 50.0)), params)
  before = params
  @jax.jit
  def step(params, state):
    updates, state = tx.update(grads, state, params)
    return optim.apply_updates(params, updates), state
  for _ in range(3):
    params, state = step(params, state)
  assert np.linalg.norm(params["ball"], axis=1).max() <= 1 + 1e-6
  close(np.linalg.norm(params["sphere"], axis=1), 1)
  assert np.linalg.norm(params["free"], axis=1).max() > 1.5
  # The average moves by its share of the gradient: no learning rate, no clipping.
  close(params["running"], before["running"] - 3 * 0.25 * grads["running"])
