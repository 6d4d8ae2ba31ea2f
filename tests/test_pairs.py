"""Recommendation functions f(u, v): their equations, sizes, names, and how they are trained."""

import functools
import itertools

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import (
  catalog,
  checkpoint,
  errors,
  experiment,
  models,
  objectives,
  optim,
  results,
  train,
  trees,
)
from recjax import state as state_lib
from recjax import step as step_lib
from recjax.data import batches
from recjax.models import pairwise
from recjax.objectives import losses

N, U = 20, 6
USERS = np.array([1, 2, 6, 3], np.int32)
FIELDS, FIELD_ROWS = (("genre", 4, 2),), {"genre": 5}
KINDS = {
  "gmf": dict(name="neumf", variant="gmf", factors=4),
  "mlp": dict(name="neumf", variant="mlp", factors=2, num_layers=3),
  "neumf": dict(name="neumf", variant="neumf", factors=2, num_layers=2),
  "dot": dict(name="dot", variant="dot", factors=4),
  "bilinear": dict(name="dot", variant="bilinear", factors=4),
  "fm": dict(name="fm", variant="fm", factors=4),
  "fields": dict(name="fm", variant="fm", factors=4, fields=FIELDS),
}


def _model(kind, *, num_items=N, num_users=U, **overrides):
  return models.make(**{**KINDS[kind], **overrides}, num_items=num_items, num_users=num_users,
                     field_rows=FIELD_ROWS)


def _tables():
  table = np.random.default_rng(0).integers(0, 5, (N + 2, 2)).astype(np.int32)
  table[0], table[7] = 0, [3, 0]
  return {"genre": table}


def _shapes(kind, **sizes):
  model = _model(kind, **sizes)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), **model.example_inputs(),
                                           tables=_tables())["params"])


@functools.cache
def _params(kind):
  """Returns parameters of which none is 0, so that leaving one out shows."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), _shapes(kind))


@functools.cache
def _compiled(kind):
  return jax.jit(lambda params, users, **where: _model(kind).apply(
    {"params": params}, jnp.zeros((len(users), 1), jnp.int32), users, _tables(), **where)[0])


def _scores(kind, params=None, users=USERS, **where):
  """Returns scores as numpy, [B, N + 1] without `where`."""
  found = jax.tree.map(np.asarray, _compiled(kind)(
    _params(kind) if params is None else params, users, **where))
  return found if where else found[:, 0]


def _relu(x):
  return np.maximum(x, 0)


def _gmf(p, user, item):
  product = p["user"]["embedding"][user - 1] * p["item"]["embedding"][item]
  return product @ p["output"]["kernel"][:, 0] + p["output"]["bias"][0]


def _mlp(p, user, item):
  z = np.concatenate([p["user"]["embedding"][user - 1], p["item"]["embedding"][item]])
  for index in range(sum(name.startswith("dense") for name in p)):
    z = _relu(z @ p[f"dense_{index}"]["kernel"] + p[f"dense_{index}"]["bias"])
  return z @ p["output"]["kernel"][:, 0] + p["output"]["bias"][0]


def _fm(p, user, item, genres=()):
  """Rendle 2010, Eq. 1, literally: a sum over all pairs of features that are on."""
  on = [("user", user - 1), ("item", item), *(("genre", g - 1) for g in genres if g)]
  vector = lambda f: p["embed"][f[0]]["embedding"][f[1]]
  linear = sum(p["linear"][name]["embedding"][row, 0] for name, row in on)
  return p["bias"] + linear + sum(vector(a) @ vector(b) for a, b in itertools.combinations(on, 2))


EQUATIONS = {
  "gmf": lambda p, u, i: _gmf(p["gmf"], u, i),
  "mlp": lambda p, u, i: _mlp(p["mlp"], u, i),
  "neumf": lambda p, u, i: _gmf(p["gmf"], u, i) + _mlp(p["mlp"], u, i),
  "dot": lambda p, u, i: (p["embed"]["user"]["embedding"][u - 1]
                          @ p["embed"]["item"]["embedding"][i]),
  "bilinear": lambda p, u, i: (p["embed"]["user"]["embedding"][u - 1] @ p["bilinear"]
                               @ p["embed"]["item"]["embedding"][i]),
  "fm": _fm,
  "fields": lambda p, u, i: _fm(p, u, i, _tables()["genre"][i]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_the_equations(kind):
  want = [[EQUATIONS[kind](_params(kind), user, item) for item in range(N + 1)] for user in USERS]
  np.testing.assert_allclose(_scores(kind), want, rtol=1e-4, atol=1e-5)


def test_fm_of_user_and_item_is_biased_matrix_factorization():
  p, (user, item) = _params("fm"), np.indices((U, N + 1))
  vectors, weights = ({k: x["embedding"] for k, x in p[name].items()}
                      for name in ("embed", "linear"))
  want = (p["bias"] + weights["user"][user, 0] + weights["item"][item, 0]
          + np.einsum("uk,ik->ui", vectors["user"], vectors["item"][:N + 1]))
  found = _scores("fm", users=np.arange(1, U + 1, dtype=np.int32))
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["neumf", "fields"])
def test_chosen_ids_and_blocks_have_the_scores_of_all(kind, monkeypatch):
  scores = _scores(kind)
  ids = np.random.default_rng(2).integers(0, N + 1, (2, 2, 3)).astype(np.int32)
  positions = np.array([[1, 0], [0, 1]], np.int32)  # of each half of the rows
  of, shared = _scores(kind, positions=positions, candidates=(ids, ids[:, :1]))
  rows = scores[[[1, 0], [2, 3]]]  # [S, C, N + 1]
  np.testing.assert_allclose(of, np.take_along_axis(rows, ids, -1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(shared, np.take_along_axis(rows, ids[:, :1].repeat(2, 1), -1),
                             rtol=1e-5, atol=1e-6)
  monkeypatch.setattr(pairwise.Pairs, "width", lambda self: 8)  # three blocks, the last one partial
  apply = jax.jit(lambda params: _model(kind).apply(
    {"params": params}, jnp.zeros((4, 1), jnp.int32), jnp.asarray(USERS), _tables())[0])
  np.testing.assert_allclose(apply(_params(kind))[:, 0], scores, rtol=1e-5, atol=1e-6)


def test_softmax_over_all_items_in_blocks(monkeypatch):
  labels = np.array([[3], [20], [1], [9]], np.int32)
  def apply(params, **where):
    return _model("neumf").apply({"params": params}, jnp.zeros((4, 1), jnp.int32),
                                 jnp.asarray(USERS), _tables(), **where)[0]
  def loss(params):
    picked, partition = apply(params, readout=lambda scores: scores.against_all(labels))
    return jnp.sum(partition - picked)
  def plain(params):
    scores, = apply(params, candidates=(np.arange(N + 1)[None, None],))
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(scores[:, 0]), labels, 1))
  want, wanted = jax.jit(jax.value_and_grad(plain))(_params("neumf"))
  monkeypatch.setattr(pairwise.Pairs, "width", lambda self: 8)
  found, grads = jax.jit(jax.value_and_grad(loss))(_params("neumf"))
  np.testing.assert_allclose(found, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, wanted)


@pytest.mark.parametrize("barred", [False, True])
@pytest.mark.parametrize("kind", ["dot", "bilinear", "gmf", "fm", "fields"])
def test_softmax_of_an_inner_product_in_one_pass(kind, barred, monkeypatch):
  labels, weights = np.array([[3], [20], [1], [9]], np.int32), np.array([[1], [2], [0.5], [1]])
  out = (jnp.arange(N + 1) % 4 == 2) & barred
  def loss(params, way):
    readout = lambda scores: way(scores.without(out))
    return _model(kind).apply({"params": params}, jnp.zeros((4, 1), jnp.int32),
                              jnp.asarray(USERS), _tables(), readout=readout)[0]
  def plain(scores):
    picked, partition = scores.against_all(labels)
    return jnp.sum((partition - picked) * weights)
  want, wanted = jax.value_and_grad(loss)(_params(kind), plain)
  monkeypatch.setattr(catalog.softmax, "block", lambda *_: 2)
  monkeypatch.setattr(pairwise.Pairs, "against_all", lambda *_: pytest.fail("in two passes"))
  found, grads = jax.value_and_grad(loss)(
    _params(kind), lambda scores: scores.cross_entropy(labels, weights))
  np.testing.assert_allclose(found, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_user_has_finite_scores(kind):
  assert np.isfinite(_scores(kind, users=np.zeros(4, np.int32))).all()


# Sizes, starts and names.


def test_parameters_of_neumf():
  # He et al. 2017 with 8 factors: GMF (U + N) f + f + 1; MLP (U + N) 32, the tower, 8 + 1.
  sizes = dict(num_items=3706, num_users=6040, factors=8, num_layers=3)
  rows, tower = 6040 + 3706 + 2, 64 * 32 + 32 + 32 * 16 + 16 + 16 * 8 + 8  # PAD and MASK
  count = {kind: trees.count(_shapes(kind, **sizes)) for kind in ("gmf", "mlp", "neumf")}
  assert count["gmf"] == rows * 8 + 8 + 1
  assert count["mlp"] == rows * 32 + tower + 8 + 1
  assert count["neumf"] == count["gmf"] + count["mlp"]


def test_parameters_of_fm():
  features = U + N + 2 + FIELD_ROWS["genre"]
  assert trees.count(_shapes("fields")) == 1 + features + features * 4


@pytest.mark.parametrize("kind,want", [
  ("neumf", ["gmf/item/embedding", "gmf/output/bias", "gmf/output/kernel", "gmf/user/embedding",
             "mlp/dense_0/bias", "mlp/dense_0/kernel", "mlp/dense_1/bias", "mlp/dense_1/kernel",
             "mlp/item/embedding", "mlp/output/bias", "mlp/output/kernel", "mlp/user/embedding"]),
  ("bilinear", ["bilinear", "embed/item/embedding", "embed/user/embedding"]),
  ("fields", ["bias", *(f"{part}/{name}/embedding" for part in ("embed", "linear")
                        for name in ("genre", "item", "user"))]),
])
def test_parameter_paths_are_an_interface(kind, want):
  # Checkpoints and transfer rules name them: renaming one breaks what people have stored.
  assert sorted(trees.flatten(_params(kind))) == want


@pytest.mark.parametrize("kind", KINDS)
def test_row_tables_have_a_row_for_every_name(kind):
  flat, rows = trees.flatten(_params(kind)), {"item": N + 2, "user": U, **FIELD_ROWS}
  named = _model(kind).row_tables()
  assert named.keys() == {leaf for leaf in flat if leaf.endswith("embedding")}
  for leaf, (vocabulary, axis) in named.items():
    assert flat[leaf].shape[axis] == rows[vocabulary], leaf


def test_starts():
  def spread(initializer, shape, **kw):
    return float(pairwise.kernel_init(initializer, **kw)(jax.random.key(0), shape).std())
  assert spread("small", (64, 32)) == pytest.approx(0.01, rel=0.1)
  assert spread("he", (64, 32)) == pytest.approx(np.sqrt(2 / 96), rel=0.1)  # Glorot
  assert spread("he", (64, 1), is_output=True) == pytest.approx(np.sqrt(1 / 64), rel=0.3)  # LeCun


@pytest.mark.parametrize("kind,fields,says", [
  ("mlp", dict(factors=0), "at least 1"), ("neumf", dict(parts=("gmf", "rnn")), "gmf, mlp or both"),
  ("fields", dict(factors=8), "as wide as factors=8"), ("dot", dict(factors=0), "at least 1"),
])
def test_sizes_that_do_not_fit(kind, fields, says):
  with pytest.raises(errors.UserError, match=says):
    _model(kind, **fields)


# What they are trained on.


def _resident(**columns):
  data = evaluator_data.random_dataset(12, 40, domain=30)
  objective = objectives.make("pair", num_items=40, known=("pair",), **columns)
  arrays = batches.resident(data, min_length=objective.min_length, slide=1,
                            columns=objective.columns)
  return data, objective, arrays


def test_an_epoch_visits_every_interaction_once():
  data, _, arrays = _resident()
  size, batch = len(arrays["users"]), 16
  sample = jax.jit(batches.make_sampler(num_users=size, batch_size=batch, length=1, window="last"))
  begin, end = data.span("train")
  want = sorted((user, item) for user in range(1, data.num_users + 1)
                for item in data.items[begin[user]:end[user]].tolist())
  epochs = []
  for epoch in range(2):
    seen = [sample(arrays, jax.random.key(3), epoch * -(-size // batch) + n)
            for n in range(-(-size // batch))]
    epochs.append([(int(u), int(i)) for b in seen
                   for u, i in zip(b["users"], b["items"][:, 0], strict=True) if u])
  assert sorted(epochs[0]) == sorted(epochs[1]) == want
  assert epochs[0] != epochs[1] and epochs[0] != want


def test_negatives_are_unseen_fresh_and_of_the_domain():
  data, objective, arrays = _resident()
  users = np.repeat(np.arange(1, 9, dtype=np.int32), 20)
  batch = {"users": users, "items": np.ones((len(users), 1), np.int32)}
  one, two = (jax.jit(objective.prepare)(jax.random.key(k), batch, arrays) for k in (0, 1))
  drawn = np.asarray(one["negatives"])
  assert drawn.shape == (160, 1, 4) and not np.array_equal(drawn, two["negatives"])
  assert data.in_domain[drawn].all() and (np.asarray(one["items"]) == 0).all()
  begin, end = data.span("train")
  for user, row in zip(users, drawn, strict=True):
    assert not set(row.ravel()) & set(data.items[begin[user]:end[user]].tolist())


def _loss(criterion, **fields):
  data, objective, arrays = _resident(pair=dict(criterion=criterion, **fields))
  model = models.make("dot", variant="dot", num_items=40, num_users=12, field_rows={}, factors=3)
  rng = np.random.default_rng(0)
  params = {"embed": {"user": {"embedding": rng.normal(size=(12, 3)).astype(np.float32)},
                      "item": {"embedding": rng.normal(size=(42, 3)).astype(np.float32)}}}
  batch = {"users": np.array([3, 1, 0, 5], np.int32),
           "items": np.array([[4], [9], [0], [2]], np.int32)}  # the third fills up an epoch
  inputs = jax.jit(objective.prepare)(jax.random.key(0), batch, arrays)
  total, weight, _ = jax.jit(lambda params, inputs: objective.loss(
    step_lib.make_apply(model, {}), params, inputs, shards=1, capacity=4, rng=None))(params, inputs)
  scores = params["embed"]["user"]["embedding"] @ params["embed"]["item"]["embedding"].T
  rows = [(scores[u - 1, i[0]], scores[u - 1, np.asarray(n[0])] if n is not None else scores[u - 1])
          for u, i, n in zip(batch["users"], batch["items"],
                             inputs.get("negatives", [None] * 4), strict=True) if u]
  return float(total), float(weight), rows


def _softplus(x):
  return np.log1p(np.exp(x))


def test_losses_are_those_of_the_papers():
  total, weight, rows = _loss("bce")
  want = sum((_softplus(-p) + _softplus(n).sum()) / 5 for p, n in rows)  # He et al. 2017, Eq. 7
  assert weight == 3 and total == pytest.approx(want, rel=1e-5)
  total, weight, rows = _loss("bpr", num_negatives=2)
  want = sum(_softplus(-(p - n)).mean() for p, n in rows)  # Rendle et al. 2009
  assert weight == 3 and total == pytest.approx(want, rel=1e-5)
  total, weight, rows = _loss("softmax")
  want = sum(np.log(np.exp(s[:41]).sum()) - p for p, s in rows)
  assert weight == 3 and total == pytest.approx(want, rel=1e-5)


def test_a_user_who_has_seen_everything_has_no_negatives():
  data = evaluator_data.dataset([(range(1, 6), [], []), ([1], [], [])], 5)
  objective = objectives.make("pair", num_items=5, known=("pair",), pair=dict(criterion="bpr"))
  arrays = batches.resident(data, slide=1, columns=objective.columns)
  batch = {"users": np.array([1, 2], np.int32), "items": np.array([[1], [1]], np.int32)}
  inputs = jax.jit(objective.prepare)(jax.random.key(0), batch, arrays)
  assert (np.asarray(inputs["negatives"])[0] == 0).all()
  assert (np.asarray(inputs["negatives"])[1] > 1).all()
  # Of the first user nothing is learned; the other's four pairs are all level.
  total, _ = losses.bayesian_ranking(jnp.zeros((2, 1)), jnp.zeros((2, 4)),
                                     inputs["negatives"][:, 0] > 0, jnp.ones(2))
  assert total == pytest.approx(np.log(2))


# Runs.


def _config(dataset="tgt", variant="neumf", **fields):
  config = tiny.config(dataset, **{
    "objective.name": "pair", "batch_size": 32, "micro_batch": None, "num_devices": 1,
    "total_steps": 8,
    "eval.every_steps": 4, "eval.contexts": ("train",), "optim.lr": 0.01, **fields})
  config.model = dict(name="neumf", variant=variant, factors=2, num_layers=2, dtype="float32",
                      fields=())
  config.objective.pair = dict(criterion="bce", num_negatives=4, unseen=True)
  return config


@functools.cache
def _stored(variant, seed):
  """Returns the workdir of a run on `tgt` that has taken no step yet."""
  config, workdir = _config("tgt", variant), tiny.root() / f"pair_{variant}"
  exp = experiment.build(config)
  state = state_lib.create(exp.init_params(seed), optim.none(), seed)
  checkpoints = checkpoint.Checkpoints(workdir, keep=1)
  checkpoints.save(state, rows=exp.rows(), data=exp.data.identity(), config=results.plain(config),
                   best_step=0, host={})
  checkpoints.wait()
  checkpoints.close()
  return workdir


def _crossed(config):
  """Returns (experiment, fresh parameters, what the transfer makes of them, its report)."""
  exp = experiment.build(config)
  fresh = exp.init_params(config.seed)
  merged, report = train.transfer_from(config.transfer, fresh, exp,
                                       dict.fromkeys(trees.flatten(fresh), True))
  return exp, fresh, merged, report


def test_candidates_alone_have_the_ranks_of_all_items():
  # A network is not asked for the scores of all items where the protocols need no more than some.
  exp, params, _ = experiment.restore(_stored("mlp", 4))
  assert exp.model.costly
  found = []
  for protocols in (("full", "uniform100_domain"), ("uniform100_domain",)):
    evaluator = exp.evaluator("test", contexts=("train",), protocols=protocols)
    found.append(evaluator.run(exp.predict, params).means()["train"]["uniform100_domain"])
  assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_fusion_averages_the_logits_of_both():
  sources = [_stored("gmf", 3), _stored("mlp", 4)]
  exp, _, merged, report = _crossed(_config("tgt", "neumf", **{
    "transfer.mode": "fusion", "transfer.checkpoint": ",".join(map(str, sources))}))
  def scores(exp, params):  # of what the sources have trained
    predict = jax.jit(exp.predict)(params, jnp.arange(1, 9), jnp.zeros((8, 1), jnp.int32))
    return np.asarray(predict)[:, np.asarray(exp.data.in_domain)]
  parts = [scores(e, p) for e, p, _ in map(experiment.restore, sources)]
  np.testing.assert_allclose(scores(exp, merged), (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-6)
  leaves = {entry["target"]: (entry.get("run", 0), entry.get("scale", 1), entry["source"])
            for entry in report["leaves"]}
  assert len(leaves) == 12 and len(report["source_step"]) == 2
  assert leaves["gmf/output/kernel"] == (0, 0.5, "gmf/output/kernel")
  assert leaves["mlp/item/embedding"] == (1, 1, "mlp/item/embedding")


def test_fusion_needs_two_runs_and_two_parts():
  source = str(_stored("gmf", 3))
  fields = {"transfer.mode": "fusion", "transfer.checkpoint": source}
  with pytest.raises(errors.UserError, match="takes from source 1"):
    _crossed(_config("tgt", "neumf", **fields))
  with pytest.raises(errors.UserError, match="transfer.mode is 'fusion'"):
    _crossed(_config("tgt", "gmf", **fields))


def test_embedding_transfer_carries_users_by_name_alone():
  source = _stored("mlp", 4)
  exp, fresh, merged, _ = _crossed(_config("src", "mlp", **{
    "transfer.mode": "embedding", "transfer.checkpoint": str(source)}))
  theirs, params, _ = experiment.restore(source)
  names = [np.asarray(e.data.user_ids)[1:].tolist() for e in (exp, theirs)]
  fresh, merged, params = map(trees.flatten, (fresh, merged, params))
  leaf = "mlp/user/embedding"
  for row, name in enumerate(names[0]):
    want = params[leaf][names[1].index(name)] if name in names[1] else fresh[leaf][row]
    np.testing.assert_array_equal(merged[leaf][row], want)
  assert all(np.array_equal(merged[n], fresh[n]) for n in fresh if n != leaf)


@pytest.mark.slow
def test_resume_equals_not_stopping(tmp_path):
  train.train_and_evaluate(_config(), tmp_path / "whole")
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  with pytest.MonkeyPatch.context() as patch:
    tiny.stop_at(patch, 4, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(_config(), tmp_path / "run")
  train.train_and_evaluate(_config(), tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tmp_path / "whole")
