"""What is known of users beside what they chose: read by external id, aggregated, transferred."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import errors, experiment, models, trees
from recjax.models import features

N, U = 6, 4
OPTIONS = {"group": {"kind": "attribute", "width": 2}, "friends": {"kind": "given", "width": 0}}
SIZES = {"group": 2, "friends": 3}
GROUP = np.array([[0], [1], [2], [0], [1], [0]])
FRIENDS = np.random.default_rng(0).normal(size=(U + 2, 3)).astype(np.float32)
KNOWN = np.array([0, 1, 1, 0, 1, 0], bool)
UNOWNED = np.array([0, 0, 1, 1, 1, 0], bool)
TABLES = {"user/feature/group": GROUP, "user/feature/friends": FRIENDS,
          "user/feature/friends/known": KNOWN, "user/item/unowned": UNOWNED}
USERS = np.array([0, 1, 2, 3, 4], np.int32)
SEQUENCES = dict(variant="survey_code", num_layers=1, item_width=4, user_width=4, heads=1, hidden=4,
                 max_len=3, dropout=0.0)


def _model(name, **fields):
  return models.make(name, num_items=N, num_users=U, field_rows={}, user_features=OPTIONS,
                     user_feature_sizes=SIZES, **fields)


@functools.cache
def _filled(model):
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **model.example_inputs(),
                                             tables=TABLES)["params"])
  return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)


def _said(p):
  """Returns [U + 1, W], P v^ of users 0..U by its definition, of the parameters p of UserFeatures.
  """
  values = np.concatenate([np.zeros((1, 2)), p["group"]["values"]["embedding"]])[GROUP[:U + 1, 0]]
  group = np.where(GROUP[:U + 1] > 0, values, p["group"]["missing"])
  friends = np.where(KNOWN[:U + 1, None], FRIENDS[:U + 1], p["friends"]["missing"])
  return group @ p["group"]["project"]["kernel"] + friends @ p["friends"]["project"]["kernel"]


@pytest.mark.parametrize("aggregate", ["sum", "replace"])
def test_a_pair_model_scores_with_what_is_known_of_users(aggregate):
  model = _model("dot", variant="dot", factors=4, user_aggregate=aggregate)
  params = _filled(model)
  scores = jax.jit(lambda users: model.apply({"params": params}, jnp.zeros((5, 1), jnp.int32),
                                             users, TABLES)[0])(USERS)[:, 0]
  own = np.concatenate([np.zeros((1, 4)), params["embed"]["user"]["embedding"]])
  own[UNOWNED[:U + 1]] = 0
  said = _said(params["user_features"])
  vectors = own + said
  if aggregate == "replace":  # An unknown user has nothing that could be replaced.
    vectors = np.where(np.arange(U + 1)[:, None] > 0, said, own)
  np.testing.assert_allclose(scores, vectors @ params["embed"]["item"]["embedding"][:N + 1].T,
                             rtol=1e-4, atol=1e-5)


def test_a_sequence_model_knows_two_new_users_apart_by_what_is_known_alone():
  model = _model("sasrec", **SEQUENCES)
  params, items = _filled(model), jnp.zeros((5, 3), jnp.int32).at[:, 2].set(1)
  run = jax.jit(lambda params, users: model.apply({"params": params}, items, users, TABLES)[0][
    :, -1])
  found = run(params, USERS)
  assert np.abs(found[2] - found[4]).max() > 1e-3
  table = params["embed"]["user"]["embedding"]
  moved = trees.join(params, {"embed/user/embedding": table + 1})
  changed = np.abs(run(moved, USERS) - found).max(axis=1) > 1e-4
  assert changed.tolist() == [False, True, False, False, False]  # of the others nothing is owned


def test_leaves_are_named_and_carried_by_what_they_stand_for():
  for name, under, fields in (("dot", "user_features", dict(variant="dot", factors=4)),
                              ("sasrec", "embed/user_features", SEQUENCES),
                              ("caser", "embed/user_features", dict(
                                variant="survey", item_width=4, user_width=4, max_len=3)),
                              ("gru4rec", "embed/user_features", dict(
                                variant="gru4rec", item_width=4, hidden=4, user_width=4))):
    model = _model(name, **fields)
    assert model.row_tables()[f"{under}/group/values/embedding"] == ("user/feature/group", 0)
    leaves = trees.flatten(_filled(model))
    assert model.row_tables().keys() <= leaves.keys()
    matched, _ = trees.match(leaves, model.transfer_rules("embedding"))
    assert {leaf for leaf in leaves if leaf.startswith(f"{under}/")} <= matched.keys()


def _config(tmp_path, **fields):
  ids = [f"u{n:02d}" for n in range(1, 31)]
  np.savez(tmp_path / "friends.npz", ids=np.array(ids), vectors=np.ones((30, 3)))
  given = {"kind": "given", "path": str(tmp_path / "friends.npz")}
  return tiny.config("tgt", **{"model.user_features": (
    ("group", {"kind": "attribute", "width": 2}), ("friends", given)), **fields})


def test_a_run_reads_them_by_external_id(tmp_path):
  exp = experiment.build(_config(tmp_path, held_out_users=(0.4, 3)))
  assert exp.describe_features()[0].startswith("feature group (attribute): ")
  assert exp.describe_features()[1].startswith("feature friends (given): 20 of 55 users, 3 columns")
  names = np.asarray(exp.data.user_ids)
  known = np.asarray(exp.tables["user/feature/friends/known"])
  assert {n.decode() for n in names[known[:-1]]} == {f"u{n:02d}" for n in range(11, 31)}
  unowned = np.asarray(exp.tables["user/item/unowned"])
  assert np.array_equal(unowned[1:-1], exp.data.held_out_users[1:]) and not unowned[[0, -1]].any()
  rows = exp.rows()["user/feature/group"]
  assert set(rows.names.tolist()) == {b"even", b"odd"} and rows.trained.all()
  assert len(exp.data.identity()["feature_files"]["user/friends"]) == 64
  assert "embed/user_features/friends/missing" in trees.flatten(exp.params_shapes())


@pytest.mark.parametrize("fields, says", [
  ({"model.user_aggregate": "concat"}, "user_aggregate is 'concat'; there are sum, gate"),
  ({"model.user_width": 0}, "set user_width"),
  ({"model.user_features": (("age", {"kind": "attribute"}),)}, "user_features, age: attribute"),
  ({"model.user_features": (("a", {"kind": "text"}),)}, "user_features, a: kind"),
  ({"model.user_features": (("a",),)}, "model.user_features: each is"),
])
def test_mistakes_are_told(fields, says, tmp_path):
  with pytest.raises(errors.UserError, match=says):
    experiment.build(_config(tmp_path, **fields))


def test_a_trained_copy_of_users_vectors_is_not_there():
  options = {"friends": {"kind": "given", "width": 0, "trained": True}}
  with pytest.raises(errors.UserError, match="set trained=False"):
    models.make("dot", variant="dot", num_items=N, num_users=U, field_rows={},
                user_features=options, user_feature_sizes=SIZES)
  assert features.OF_USERS == ("sum", "gate", "mlp", "replace")
