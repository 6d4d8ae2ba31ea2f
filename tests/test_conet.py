"""CoNet: without connections it is two networks, with them its equations; two domains at once."""

import dataclasses
import functools

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import errors, experiment, models, objectives, train, trees
from recjax import step as step_lib
from recjax.data import batches, sequences

N, U = 20, 6
USERS, COMPANIONS = np.array([1, 2, 6], np.int32), np.array([4, 9, 0], np.int32)
SIZES = dict(factors=2, num_layers=3, num_items=N, num_users=U, field_rows={})
TABLES = {"companion": np.array([0, 4, 9, 1, 1, 1, 0], np.int32)}


def _model(variant="conet", **overrides):
  return models.make("conet", variant=variant, other="there", **{**SIZES, **overrides})


def _shapes(variant="conet", **overrides):
  model = _model(variant, **overrides)
  return jax.eval_shape(lambda: model.init(jax.random.key(0), **model.example_inputs(),
                                           tables=TABLES)["params"])


@functools.cache
def _params(variant="conet"):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), _shapes(variant))


@functools.cache
def _compiled(variant, there):
  return jax.jit(lambda params, companions=None: _model(variant).apply(
    {"params": params}, jnp.zeros((3, 1), jnp.int32), USERS, TABLES, companions=companions,
    there=there)[0][:, 0])


def _relu(x):
  return np.maximum(x, 0)


def _score(p, user, item, other, *, there):
  """Hu et al. 2018, Eq. 5, one pair at a time."""
  table = {name: x["embedding"] for name, x in p["embed"].items()}
  person = table["user"][user - 1]
  a = np.concatenate([person, table["item"][item]])
  c = np.concatenate([person, table["item"][other] * (other > 0)])
  mine, theirs = (p["there"], p["here"]) if there else (p["here"], p["there"])
  for level in range(3):
    w, v = mine[f"dense_{level}"], theirs[f"dense_{level}"]
    h = p["cross"][f"kernel_{level}"] if "cross" in p else 0 * w["kernel"]
    a, c = (_relu(a @ w["kernel"] + c @ h + w["bias"]), _relu(c @ v["kernel"] + a @ h + v["bias"]))
  return a @ mine["output"]["kernel"][:, 0] + mine["output"]["bias"][0]


@pytest.mark.parametrize("variant,there", [("conet", False), ("conet", True), ("mlp++", False)])
def test_scores_follow_the_equations(variant, there):
  want = [[_score(_params(variant), u, i, j, there=there) for i in range(N + 1)]
          for u, j in zip(USERS, COMPANIONS, strict=True)]
  found = _compiled(variant, there)(_params(variant), COMPANIONS)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_the_latest_item_of_the_other_domain_is_the_companion():
  run = _compiled("conet", False)
  given, found = run(_params(), COMPANIONS), run(_params())
  np.testing.assert_array_equal(given, found)
  assert not np.allclose(found, run(_params(), COMPANIONS[::-1].copy()))


def test_without_connections_it_is_two_networks():
  params = dict(_params(), cross=jax.tree.map(np.zeros_like, _params()["cross"]))
  mlp = models.make("neumf", variant="mlp", **SIZES)
  for there, name in ((False, "here"), (True, "there")):
    alone = {"mlp": {**params["embed"], **params[name]}}
    want = mlp.apply({"params": alone}, jnp.zeros((3, 1), jnp.int32), USERS, {})[0][:, 0]
    found = _compiled("conet", there)(params, COMPANIONS)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_parameters_of_the_paper():
  # Vectors of 32; 64 x 32 + 32 x 16 + 16 x 8 with biases; 8 and a bias. Items: PAD and MASK, too.
  sizes = dict(factors=8, num_items=1000, num_users=300)
  tower = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 8 + 8 + 8 + 1
  base = (300 + 1000 + 2) * 32
  assert trees.count(_shapes("mlp++", **sizes)) == base + 2 * tower
  assert trees.count(_shapes("conet", **sizes)) == base + 2 * tower + 64 * 32 + 32 * 16 + 16 * 8


def test_parameter_paths_are_an_interface():
  layers = [f"{layer}/{leaf}" for layer in ("dense_0", "dense_1", "dense_2", "output")
            for leaf in ("bias", "kernel")]
  assert sorted(trees.flatten(_params())) == sorted([
    *(f"cross/kernel_{i}" for i in range(3)), "embed/item/embedding", "embed/user/embedding",
    *(f"{tower}/{layer}" for tower in ("here", "there") for layer in layers)])


def test_conet_must_know_the_other_domain():
  with pytest.raises(errors.UserError, match="needs model.other"):
    models.make("conet", variant="conet", **SIZES)


# Two domains in a batch.


@functools.cache
def _prepared(seed=0, **fields):
  """Returns (data sets of two domains, inputs): items 1..10 here, 11..20 there; user 3 has none."""
  rng = np.random.default_rng(3)
  own = lambda low: rng.choice(np.arange(low, low + 10), 4, replace=False)
  here = evaluator_data.dataset([(own(1), [], []) for _ in range(U)], N, in_domain=range(1, 11))
  there = evaluator_data.dataset([(own(11) if u != 2 else [], [], []) for u in range(U)], N,
                                 in_domain=range(11, 21))
  objective = objectives.make("cross_pair", num_items=N, known=("cross_pair",),
                              cross_pair=dict(fields))
  arrays = batches.resident(here, slide=1, columns=objective.columns)
  arrays["beside"] = batches.beside(there)
  begin, _ = here.span("train")
  users = np.tile(np.array([1, 2, 3, 0], np.int32), 8)
  batch = {"users": users, "items": np.where(users > 0, here.items[begin[users]], 0)[:, None]}
  return (here, there), objective, batch, jax.jit(objective.prepare)(
    jax.random.key(seed), batch, arrays)


def test_a_batch_has_an_item_and_negatives_of_each_domain():
  (here, there), _, batch, inputs = _prepared()
  inputs = jax.tree.map(np.asarray, inputs)
  owned = {name: {u: set(data.items[slice(*(e[u] for e in data.span("train")))].tolist())
                  for u in range(U + 1)} for name, data in (("here", here), ("there", there))}
  seen = set()
  for row, user in enumerate(batch["users"]):
    item, other = int(inputs["labels"][row, 0]), int(inputs["companions"][row])
    if user in (0, 3):  # nobody, and who has nothing there
      assert other == 0 and int(inputs["there"]["labels"][row, 0]) == 0
      continue
    seen.add((user, other))
    assert item in owned["here"][user] and other in owned["there"][user]
    assert int(inputs["there"]["labels"][row, 0]) == other
    assert int(inputs["there"]["companions"][row]) == item
    mine, theirs = int(inputs["negatives"][row, 0, 0]), int(inputs["there"]["negatives"][row, 0, 0])
    assert mine in set(range(1, 11)) - owned["here"][user]
    assert theirs in set(range(11, 21)) - owned["there"][user]
  assert len(seen) > 2  # not always the same companion


def test_the_loss_is_that_of_both_domains_and_of_the_penalty():
  _, objective, batch, inputs = _prepared()
  apply_fn = step_lib.make_apply(_model(), TABLES)
  sparse = objectives.make("cross_pair", num_items=N, known=("cross_pair",),
                           cross_pair=dict(sparsity=0.5))
  (total, weight, _), (more, _, _) = jax.jit(lambda params, inputs: [
    o.loss(apply_fn, params, inputs, shards=1, capacity=len(batch["users"]), rng=None)
    for o in (objective, sparse)])(_params(), inputs)
  inputs = jax.tree.map(np.asarray, inputs)
  p, want = _params(), 0.0
  softplus = lambda x: np.log1p(np.exp(x))
  for part, other, there in ((inputs, "companions", False), (inputs["there"], "companions", True)):
    for row, user in enumerate(batch["users"]):
      label = int(part["labels"][row, 0])
      if label:
        scores = [_score(p, user, int(i), int(part[other][row]), there=there)
                  for i in (label, part["negatives"][row, 0, 0])]
        want += (softplus(-scores[0]) + softplus(scores[1])) / 2
  assert weight == 24 and total == pytest.approx(want, rel=1e-4)
  norm = sum(np.abs(x).sum() for x in p["cross"].values())
  assert more - total == pytest.approx(0.5 * 24 * norm, rel=1e-3)


def test_losses_over_all_items_are_refused():
  with pytest.raises(errors.UserError, match="cross_pair draws negatives of each domain"):
    objectives.make("cross_pair", num_items=N, known=("cross_pair",),
                    cross_pair=dict(criterion="softmax"))


# Runs.


@functools.cache
def _data_dir():
  """Returns a folder with `tgt` and, numbered alike, its users' other half as `beside`."""
  data, folder = sequences.load(tiny.root() / "data", "tgt"), tiny.root() / "two"
  sequences.save(folder / "tgt", data)
  manifest = dict(data.manifest, name="beside")
  there = (np.asarray(data.items) - 1 + 40) % 70 + 1
  domain = np.zeros(len(data.in_domain), bool)
  domain[np.unique(there)] = True
  sequences.save(folder / "beside", dataclasses.replace(
    data, manifest=manifest, items=there.astype(np.int32), in_domain=domain))
  return str(folder)


def _config(**fields):
  config = tiny.config("tgt", **{
    "data_dir": _data_dir(), "objective.name": "cross_pair", "batch_size": 32, "micro_batch": None,
    "num_devices": 1,
    "total_steps": 4, "eval.every_steps": 4, "eval.contexts": ("train",), "optim.lr": 0.01,
    "eval.protocols": ("uniform100_domain",), "eval.metric": "uniform100_domain/mrr"})
  config.model = dict(name="conet", variant="conet", other="beside", factors=2, num_layers=2,
                      initializer="he", dtype="float32", fields=())
  config.objective.cross_pair = dict(sparsity=0.01)
  return config


@pytest.mark.slow  # tests/test_configs.py takes a step, too
def test_a_run_learns_both_domains(tmp_path):
  report = train.train_and_evaluate(_config(), tmp_path / "run")
  assert report["run"]["steps"] == 4
  exp, params, _ = experiment.restore(tmp_path / "run")
  before, after = (trees.flatten(x) for x in (exp.init_params(0), params))
  assert all(not np.array_equal(before[name], after[name]) for name in after)
  moved = np.abs(np.asarray(before["embed/item/embedding"]) - after["embed/item/embedding"]).max(1)
  assert (moved[np.asarray(exp.other.items)] > 0).any()


def test_the_other_domain_must_be_numbered_alike():
  config = _config()
  config.data_dir = str(tiny.root() / "data")
  config.model.other = "src"
  with pytest.raises(errors.UserError, match="prepare both in one run"):
    experiment.build(config)
