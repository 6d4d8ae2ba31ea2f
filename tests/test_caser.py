"""Caser and its two tasks: sizes, the paper's equations, id spaces, what a transfer carries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import errors
from recjax import models
from recjax import objectives
from recjax import step
from recjax import train
from recjax import trees

N, U, L, B = 30, 9, 4, 6
MASK = N + 1
FIELDS = (("genre", 3, 2),)
FIELD_ROWS = {"genre": 5}
SMALL = dict(name="caser", variant="survey", item_width=8, user_width=6, max_len=L, vertical=2,
             horizontal=3, dropout=0.0, fields=FIELDS)
W = 8 + 2 * 3


@functools.cache
def _model(**overrides):
  return models.make(**{**SMALL, **overrides}, num_items=N, num_users=U, field_rows=FIELD_ROWS)


@functools.cache
def _tables():
  table = np.random.default_rng(0).integers(0, 5, (MASK + 1, 2)).astype(np.int32)
  table[0], table[MASK] = 0, FIELD_ROWS["genre"]
  return {"genre": table}


def _shapes(model, tables):
  return jax.eval_shape(lambda: model.init(
    jax.random.key(0), **model.example_inputs(), tables=tables)["params"])


@functools.cache
def _params(**overrides):
  """Returns parameters of which none is 0, so that leaving one out shows."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype),
                      _shapes(_model(**overrides), _tables()))


@functools.cache
def _compiled(**overrides):
  model = _model(**overrides)
  return jax.jit(lambda params, items, users, **where: model.apply(
    {"params": params}, items, users, _tables(), **where))


def _run(items, users=None, *, params=None, overrides=(), **where):
  """Returns (scores, out) as numpy."""
  overrides = dict(overrides)
  params = _params(**overrides) if params is None else params
  users = np.arange(len(items)) % (U + 1) if users is None else users
  return jax.tree.map(np.asarray, _compiled(**overrides)(
    params, jnp.asarray(items, jnp.int32), jnp.asarray(users, jnp.int32), **where))


def _items(seed=0):
  items = np.random.default_rng(seed).integers(1, N + 1, (B, L))
  items[0, :2], items[1, :3], items[2, -1] = 0, 0, MASK
  return items


# Sizes and names.


@pytest.mark.parametrize("variant,fields,published", [
  ("repo", (), 887_911), ("survey", (), 1_792_011),
  ("survey", (("director", 25, 1), ("actor", 25, 4)), 2_592_011)])
def test_parameters_of_the_paper(variant, fields, published):
  # U d + (N + 1) d + (n_v L + n_v) + (n_h d L (L + 1) / 2 + n_h L) + ((n_v d + n_h L) d + d)
  # + (N + 1) 2 d + (N + 1), and the attribute tables (1,186 directors and 4,170 actors, "unknown"
  # and a padding row that we have no need of). Ours has one item row more: MASK.
  model = models.make("caser", variant=variant, num_items=3706, num_users=6040, fields=fields,
                      field_rows={"director": 1188, "actor": 4172})
  tables = {name: jnp.zeros((3708, slots), jnp.int32) for name, _, slots in fields}
  assert trees.count(_shapes(model, tables)) - model.item_width == published


def test_parameter_paths_are_an_interface():
  heights = [f"conv_h_{height}/{leaf}" for height in range(1, L + 1) for leaf in ("bias", "kernel")]
  assert sorted(trees.flatten(_params())) == sorted([
    "embed/item/embedding", "embed/user/embedding", "embed/genre/embedding", "conv_v/bias",
    "conv_v/kernel", *heights, "fc1/bias", "fc1/kernel", "out/W2", "out/b2"])


def test_row_tables_have_a_row_for_every_name():
  flat, tables = trees.flatten(_params()), _model().row_tables()
  rows = {"item": N + 2, "output": N + 1, "user": U, **FIELD_ROWS}
  for leaf, (vocabulary, axis) in tables.items():
    assert flat[leaf].shape[axis] == rows[vocabulary], leaf
  assert not [leaf for leaf in set(flat) - set(tables) if {N + 1, N + 2, U} & set(flat[leaf].shape)]


def test_parameters_start_as_in_the_repository():
  model = models.make("caser", variant="survey", num_items=400, num_users=300, field_rows={})
  params = trees.flatten(jax.jit(lambda key: model.init(
    key, **model.example_inputs(), tables={})["params"])(jax.random.key(0)))
  for leaf, deviation in (("embed/item/embedding", 1 / 100), ("embed/user/embedding", 1 / 100),
                          ("out/W2", 1 / 200)):
    assert np.std(params[leaf]) == pytest.approx(deviation, rel=0.02)
    assert abs(np.mean(params[leaf])) < 0.02 * deviation
  assert (params["out/b2"] == 0).all()
  for leaf, fan_in in (("conv_h_3", 300), ("fc1", 480), ("conv_v", 5)):
    kernel, bound = params[f"{leaf}/kernel"], fan_in**-0.5
    assert np.abs(kernel).max() < bound and np.abs(params[f"{leaf}/bias"]).max() < bound
    if leaf != "conv_v":
      assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.05)


# The paper's equations.


def _by_definition(params, items, users):
  """Returns scores [B, N + 1], one row, one filter and one place at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rows = lambda table, ids: np.where(ids[:, None] > 0, table["embedding"][ids - 1], 0)
  scores = []
  for row, user in zip(items, users, strict=True):
    genres = _tables()["genre"][row]
    image = np.concatenate([p["embed"]["item"]["embedding"][row],
                            *(rows(p["embed"]["genre"], genres[:, s]) for s in range(2))], 1)
    joined = []
    if "conv_v" in p:
      for kernel, bias in zip(p["conv_v"]["kernel"], p["conv_v"]["bias"], strict=True):
        joined.append((image * kernel).sum(0) + bias)
    for height in range(1, L + 1):
      if (name := f"conv_h_{height}") in p:
        for kernel, bias in zip(p[name]["kernel"], p[name]["bias"], strict=True):
          places = [max((image[top:top + height] * kernel).sum() + bias, 0)
                    for top in range(L - height + 1)]
          joined.append([max(places)])
    z = np.maximum(np.concatenate(joined) @ p["fc1"]["kernel"] + p["fc1"]["bias"], 0)
    z = np.concatenate([z, rows(p["embed"]["user"], np.array([user]))[0]])
    scores.append(p["out"]["W2"] @ z + p["out"]["b2"])
  return np.array(scores)


@pytest.mark.parametrize("overrides", [(), (("vertical", 0),), (("horizontal", 0),)])
def test_equals_the_definition(overrides):
  items, users = _items(), np.array([1, 0, 3, 9, 9, 2])
  scores, out = _run(items, users, overrides=overrides)
  assert scores.shape == (B, 1, N + 1)
  np.testing.assert_allclose(scores[:, 0], _by_definition(_params(**dict(overrides)), items, users),
                             atol=1e-4)
  assert ("vertical" in out, "horizontal" in out) == tuple(
    dict(overrides).get(name) != 0 for name in ("vertical", "horizontal"))


def test_a_vertical_filter_of_ones_adds_the_items_up():
  params = jax.tree.map(np.array, _params(vertical=1))
  params["conv_v"] = {"kernel": np.ones((1, L, 1), np.float32), "bias": np.zeros(1, np.float32)}
  items = _items()
  out = _run(items, params=params, overrides={"vertical": 1}.items())[1]
  total = params["embed"]["item"]["embedding"][items].sum(1)  # padding has a trained row as well
  np.testing.assert_allclose(out["vertical"][:, 0, :8], total, atol=1e-5)


def test_padding_that_is_cut_changes_nothing():
  items = np.array([[0, 0, 5, 9], [0, 0, 0, 3], [0, 0, 0, 0]])
  whole = _run(items)[0]
  np.testing.assert_allclose(_run(items[:, 2:])[0], whole, atol=1e-5)
  np.testing.assert_allclose(_run(items[:, :0])[0][2], whole[2], atol=1e-5)
  # But it is no zero: its vector is trained.
  moved = jax.tree.map(np.array, _params())
  moved["embed"]["item"]["embedding"][0] += 1
  assert np.abs(_run(items, params=moved)[0] - whole).max() > 0.1


def test_positions_stand_for_their_rows():
  items = _items()
  everything = _run(items)[0][:, 0]
  positions = np.array([[0, L - 1, 2 * L + 1], [1, L, 3 * L - 2]], np.int32)
  some = _run(items, positions=positions)[0]
  for shard in range(2):
    want = everything[positions[shard] // L + 3 * shard]
    np.testing.assert_allclose(some[shard], want, atol=1e-5)


def test_candidates_have_the_scores_that_they_have_among_all():
  items, rng = _items(), np.random.default_rng(0)
  positions = np.array([[0, L - 1, 2 * L + 1], [1, L, 3 * L - 2]], np.int32)
  own, shared = rng.integers(0, N + 1, (2, 3, 5)), rng.integers(0, N + 1, (2, 1, 7))
  some = _run(items, positions=positions)[0]
  found = _run(items, positions=positions, candidates=(own, shared))[0]
  for scores, ids in zip(found, (own, shared), strict=True):
    want = np.take_along_axis(some, np.broadcast_to(ids, (2, 3, ids.shape[2])), -1)
    np.testing.assert_allclose(scores, want, atol=1e-5)


def test_a_hidden_item_does_not_show_through_its_attributes():
  items = _items()
  items[:, 1] = MASK
  embedded = _run(items)[1]["embedded"]
  assert (embedded[:, 1] == embedded[0, 1]).all()


@pytest.mark.parametrize("values,message", [
  (dict(vertical=0, horizontal=0), "no filter"), (dict(vertical=-1), "no filter"),
  (dict(max_len=0), "max_len")])
def test_sizes_that_do_not_fit(values, message):
  with pytest.raises(errors.UserError, match=message):
    _model(**values)


# What a transfer carries.


@pytest.mark.parametrize("mode,overrides,carried", [
  ("none", {}, set()),
  ("embedding", {}, {"embed/user", "embed/genre"}),
  ("embedding", {"transfer_items": True}, {"embed/user", "embed/genre", "embed/item"}),
  ("embedding", {"user_width": 0, "fields": ()}, None),
  ("model", {}, {"embed/user", "embed/genre", "embed/item", "conv_v",
                 *(f"conv_h_{height}" for height in range(1, L + 1))})])
def test_transfer_rules(mode, overrides, carried):
  rules = _model(**overrides).transfer_rules(mode)
  if carried is None:
    assert rules == ()
    return
  matched, _ = trees.match(_params(**overrides), rules, what="rule")
  assert {leaf.rpartition("/")[0] for leaf in matched} == carried
  assert _model().transfer_rules("all") is None


def _config(dataset, **fields):
  return tiny.config(dataset, **{
    "model.name": "caser", "model.variant": "survey", "model.num_layers": None,
    "model.heads": None, "model.hidden": None, "model.max_len": 5, "total_steps": 6,
    "eval.every_steps": 6, "objective.name": "next_window", **fields})


@pytest.mark.slow
def test_a_run_of_one_task_starts_a_run_of_the_other(tmp_path):
  train.train_and_evaluate(_config("src", **{"objective.name": "masked_window"}), tmp_path / "src")
  report = train.train_and_evaluate(_config("tgt", **{
    "transfer.checkpoint": str(tmp_path / "src"), "transfer.mode": "model",
    "transfer.freeze": "embed/user/embedding|conv_h_.*"}), tmp_path / "tgt")
  assert report["run"]["transfer_mode"] == "model" and 0 < report["test"]["full"]["mrr"] < 1
  before, after = tiny.state(tmp_path / "src"), tiny.state(tmp_path / "tgt")
  convolutions = {name for name in after if name.startswith("params/conv")}
  assert {name for name in convolutions if np.array_equal(after[name], before[name])} == {
    name for name in convolutions if "conv_h" in name}  # carried and frozen; conv_v was trained


# Next items after a window.

T, K = 3, 4
NOTHING_SEEN = {"pool": np.arange(1, N + 1), "seen_gaps": np.zeros(1, int),
                "seen_begin": np.zeros(U + 1, int), "seen_end": np.zeros(U + 1, int)}


@functools.cache
def _next(**fields):
  return objectives.make("next_window", num_items=N, known=("next_window",),
                         next_window=dict(targets=T, num_negatives=K, **fields))


def _prepare(objective, batch, key=1):
  resident = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), NOTHING_SEEN)
  return dict(_compiled_prepare(objective)(jax.random.key(key), batch, resident))


@functools.cache
def _compiled_prepare(objective):
  return jax.jit(objective.prepare)


def _batch(*, whole):
  items = np.random.default_rng(3).integers(1, N + 1, (B, L + T)).astype(np.int32)
  if not whole:
    items[0, :4], items[1, :-1], items[2] = 0, 0, 0
  users = np.where(items.any(1), np.arange(1, B + 1), 0).astype(np.int32)
  return {"items": items, "users": users}


def test_a_window_is_cut_into_context_and_targets():
  batch = _batch(whole=False)
  out = jax.tree.map(np.asarray, _prepare(_next(), batch))
  np.testing.assert_array_equal(np.concatenate([out["items"], out["targets"]], 1), batch["items"])
  assert out["targets"].shape == (B, T) and out["negatives"].shape == (B, K)
  # Where the longest user has fewer items than targets, there is still a context: padding.
  short = {**batch, "items": batch["items"][:, -2:]}
  out = jax.tree.map(np.asarray, _prepare(_next(), short))
  np.testing.assert_array_equal(out["items"], np.zeros((B, 1)))
  np.testing.assert_array_equal(out["targets"][:, 1:], batch["items"][:, -2:])


def _loss(inputs, *, shards, scores=None):
  """Returns (sum, weight); `scores` [B, N + 1] stand for the model's."""
  apply_fn = step.make_apply(_model(), _tables())
  if scores is not None:
    def apply_fn(params, inputs, rng, positions, candidates):
      rows = jnp.asarray(scores).reshape(shards, -1, N + 1)
      at = jnp.take_along_axis(rows, positions[..., None] // inputs["items"].shape[1], 1)
      return tuple(jnp.take_along_axis(at, ids, -1) for ids in candidates)
  total, weight, metrics = jax.jit(functools.partial(
    _next().loss, apply_fn, shards=shards, capacity=0, rng=None))(_params(), inputs)
  assert metrics == {"dropped": 0}
  return total, weight


def _two_means(scores, targets, drawn):
  sigmoid = lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))
  near, far = (np.take_along_axis(scores, ids, 1) for ids in (targets, drawn))
  return -np.log(sigmoid(near)).mean() - np.log(1 - sigmoid(far)).mean()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_loss_of_whole_windows_is_two_means(shards):
  inputs = _prepare(_next(), _batch(whole=True))
  scores = _run(inputs["items"], inputs["users"])[0][:, 0]
  total, weight = _loss(inputs, shards=shards)
  assert weight == B * T
  np.testing.assert_allclose(total / weight, _two_means(
    scores, np.asarray(inputs["targets"]), np.asarray(inputs["negatives"])), rtol=1e-5)


def test_padding_is_no_target_and_weighs_no_negative():
  inputs = _prepare(_next(), _batch(whole=False))
  inputs["negatives"] = inputs["negatives"].at[3].set(0)  # a user who has seen everything
  scores = np.random.default_rng(4).normal(size=(B, N + 1)).astype(np.float32)
  want = 0
  for row in range(B):
    targets = np.asarray(inputs["targets"][row])
    targets, drawn = targets[targets > 0], np.asarray(inputs["negatives"][row])
    drawn = drawn[drawn > 0]
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))
    want -= log_sigmoid(scores[row, targets]).sum()
    if len(drawn):
      want -= len(targets) * log_sigmoid(-scores[row, drawn]).mean()
  total, weight = _loss(inputs, shards=2, scores=scores)
  np.testing.assert_allclose(total, want, rtol=1e-5)
  assert weight == 3 * 3 + 1 + 3 and not inputs["targets"][2].any()


def test_an_oracle_loses_nothing_and_an_off_by_one_does():
  # Targets and scores live in one id space.
  batch = _batch(whole=True)
  inputs = _prepare(_next(), batch)
  scores = np.full((B, N + 1), -60, np.float32)
  np.put_along_axis(scores, batch["items"][:, -T:], 60, 1)
  others = [np.setdiff1d(np.arange(1, N + 1), row)[:K] for row in batch["items"][:, -T:]]
  inputs["negatives"] = jnp.asarray(others)
  assert _loss(inputs, shards=2, scores=scores)[0] < 1e-6
  for shift in (-1, 1):
    assert _loss(inputs, shards=2, scores=np.roll(scores, shift, 1))[0] > 60 * B


def test_large_scores_stay_finite():
  inputs = _prepare(_next(), _batch(whole=True))
  scores = np.tile(np.where(np.arange(N + 1) % 2, 1e4, -1e4), (B, 1)).astype(np.float32)
  assert np.isfinite(_loss(inputs, shards=1, scores=scores)[0])


@pytest.mark.parametrize("pool,columns", [("domain", ("seen",)), ("global", ("seen", "global"))])
def test_the_pool_says_what_is_resident(pool, columns):
  assert _next(pool=pool).columns == columns
  assert _next().slide and _next().extra_columns == T


def test_mistakes_are_user_errors():
  with pytest.raises(errors.UserError, match="domain, global"):
    _next(pool="all")
  with pytest.raises(errors.UserError, match="at least 1"):
    objectives.make("next_window", num_items=N, known=("next_window",),
                    next_window=dict(num_negatives=0))


# One hidden item a window.


@functools.cache
def _masked():
  return objectives.make("masked_window", num_items=N, known=("masked_window",))


def test_exactly_one_real_item_is_hidden_anywhere_alike():
  rows = 6000
  items = np.random.default_rng(0).integers(1, N + 1, (rows, L)).astype(np.int32)
  length = np.arange(rows) % (L + 1)
  items[np.arange(L) < (L - length)[:, None]] = 0
  out = jax.tree.map(np.asarray, _prepare(
    _masked(), {"items": items, "users": np.ones(rows, np.int32)}))
  chosen = out["labels"] > 0
  np.testing.assert_array_equal(chosen.sum(1), np.minimum(length, 1))
  np.testing.assert_array_equal(out["labels"][chosen], items[chosen])
  np.testing.assert_array_equal(out["items"][~chosen], items[~chosen])
  for n in range(1, L + 1):
    places, total = chosen[length == n].sum(0), (length == n).sum()
    assert not places[:L - n].any()
    assert np.abs(places[L - n:] - total / n).max() <= 4.5 * np.sqrt(total / n)
  now, total = out["items"][chosen], chosen.sum()
  close = lambda count, share: abs(count - share * total) < 4.5 * np.sqrt(
    total * share * (1 - share))
  assert close((now == MASK).sum(), 0.8)
  assert close((now == items[chosen]).sum(), 0.1 + 0.1 / N)


def test_the_masked_loss_is_the_cross_entropy_over_all_items():
  out = _prepare(_masked(), {"items": _items().astype(np.int32) % MASK,
                             "users": np.arange(B, dtype=np.int32)})
  scores = _run(out["items"], out["users"])[0][:, 0].astype(np.float64)
  label = np.asarray(out["labels"]).max(1)
  logp = scores - np.log(np.exp(scores).sum(1, keepdims=True))
  total, weight, metrics = jax.jit(functools.partial(
    _masked().loss, step.make_apply(_model(), _tables()), shards=2, capacity=B // 2, rng=None))(
      _params(), out)
  assert weight == (label > 0).sum() and metrics["dropped"] == 0
  np.testing.assert_allclose(total, -logp[np.arange(B), label][label > 0].sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["next_window", "masked_window"])
def test_predictions_are_the_scores_after_the_last_items(name):
  objective = _next() if name == "next_window" else _masked()
  room = objective.room(L)
  histories = _items()[:, -room:].astype(np.int32) % MASK
  mask = np.full((B, 1), MASK, np.int32)
  items = histories if name == "next_window" else np.concatenate([histories, mask], 1)
  assert items.shape[1] == L
  users = np.arange(B, dtype=np.int32)
  found = jax.jit(functools.partial(objective.predict, step.make_apply(_model(), _tables())))(
    _params(), users, histories)
  assert found.shape == (B, N + 1) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, _run(items, users)[0][:, 0], atol=1e-5)
