"""Rating prediction: what is measured, what is hidden, and the rows to beat."""

import dataclasses

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors, objectives, spec
from recjax.data import batches, prepare, ratings, sequences
from recjax.evaluators import rating

N = 12


def _rated(users, *, num_items=N, in_domain=None):
  """Returns a data set of [(train, val, test), ...] lists of (item, rating)."""
  items = [[[item for item, _ in part] for part in user] for user in users]
  values = [value for user in users for part in user for _, value in part]
  data = evaluator_data.dataset(items, num_items, in_domain=in_domain)
  return dataclasses.replace(data, ratings=np.array(values, np.float32))


@pytest.fixture(scope="module")
def data():
  """Users of 2, 1 and 3 test ratings, one without validation, one without any held-out rating."""
  return _rated([
    ([(1, 5), (2, 3)], [(3, 4)], [(4, 2), (5, 1)]),
    ([(2, 1), (6, 2), (7, 3)], [], [(1, 4)]),
    ([(3, 3)], [(8, 5), (9, 4)], [(1, 5), (2, 2), (10, 3)]),
    ([(1, 2)], [], []),
  ])


# The evaluator.


def test_pooled_and_per_user_errors_differ():
  # One user is off by 3 once, the other by 1 three times.
  mask = np.array([[True, False, False], [True, True, True]])
  truth = np.array([[5.0, 0, 0], [3, 3, 3]])
  found = rating.user_errors(np.array([[2.0, 9, 9], [4, 2, 4]]), truth, mask)
  np.testing.assert_allclose(found["user_rmse"], [3, 1])
  np.testing.assert_allclose(found["mse"], [9, 1])
  means = rating.Results(np.arange(2), {"train": {"rating": found}}).means()["train"]["rating"]
  assert means == pytest.approx({"rmse": np.sqrt(12 / 4), "mae": 6 / 4, "user_rmse": 2,
                                 "user_mae": 2})


@pytest.mark.parametrize("batch_size", [2, 256])
def test_the_truth_has_no_error_and_its_negative_twice_itself(data, batch_size):
  evaluator = rating.Rating(data, batch_size=batch_size, history_length=2)
  truth = np.zeros((data.num_users + 1, N + 1), np.float32)
  begin, end = data.span("test")
  for user in range(1, data.num_users + 1):
    truth[user, data.items[begin[user]:end[user]]] = data.ratings[begin[user]:end[user]]
  def look_up(table, users, histories, given, targets):
    assert histories.shape == given.shape == (batch_size, 2) and targets.shape == (batch_size, 3)
    return jnp.take_along_axis(table[users], targets, axis=1)
  found = evaluator.run(look_up, jnp.asarray(truth))
  assert list(found.users) == [1, 2, 3]
  assert set(found.values) == {"train", "train+val"}
  assert all(value == 0 for value in found.means()["train"]["rating"].values())
  np.testing.assert_array_equal(found.values["train"]["rating"]["count"], [2, 1, 3])
  opposite = evaluator.run(look_up, jnp.asarray(-truth)).means()["train+val"]["rating"]
  assert opposite["mae"] == pytest.approx(2 * np.mean([2, 1, 4, 5, 2, 3]))


def test_a_prediction_sees_what_came_before_and_nothing_else(data):
  evaluator = rating.Rating(data, history_length=3, batch_size=4)
  seen = {}
  def spy(context, users, *arrays):
    jax.debug.callback(lambda u, *a: seen.setdefault(context, dict(
      zip(u.tolist(), zip(*map(np.ndarray.tolist, map(np.asarray, a)), strict=True),
          strict=True))), users, *arrays)
    return jnp.zeros_like(arrays[2], jnp.float32)
  for context in evaluator.contexts:  # One function object each, so that each is traced.
    evaluator.run(lambda _, *arrays, context=context: spy(context, *arrays), None,
                  contexts=[context])
    jax.effects_barrier()
  assert seen["train"][1] == ([0, 1, 2], [0, 5, 3], [0, 4, 5])
  assert seen["train+val"][1] == ([1, 2, 3], [5, 3, 4], [0, 4, 5])
  assert seen["train+val"][2] == ([2, 6, 7], [1, 2, 3], [0, 0, 1])
  assert seen["train"][0] == ([0] * 3, [0] * 3, [0] * 3)  # fills up the batch


def test_validation_sees_the_train_split_alone(data):
  evaluator = rating.Rating(data, split="val")
  assert evaluator.contexts == ("train",)
  assert list(evaluator.users) == [1, 3]


def test_nan_is_no_prediction(data):
  with pytest.raises(FloatingPointError, match="user 1"):
    rating.Rating(data).run(
      lambda _, users, h, r, targets: jnp.full(targets.shape, jnp.nan), None)


def test_unknown_names_and_data_without_ratings_are_errors(data):
  for wrong in (dict(split="train"), dict(contexts=("val",)), dict(protocols=("full",)),
                dict(split="val", contexts=("train+val",))):
    with pytest.raises(errors.UserError):
      rating.Rating(data, **wrong)
  with pytest.raises(errors.UserError, match="no ratings"):
    rating.Rating(dataclasses.replace(data, ratings=None))
  with pytest.raises(errors.UserError, match="no ratings"):
    ratings.train_rows(dataclasses.replace(data, ratings=None))


# The rows to beat.


def test_biases_are_shrunk_means(data):
  mean, item, user = ratings.biases(data)
  assert mean == pytest.approx(19 / 7)
  assert item[2] == pytest.approx((3 - mean + 1 - mean) / (2 + 5))
  assert item[11] == 0 and item[8] == 0  # never in the train split
  assert user[3] == pytest.approx((3 - mean - item[3]) / (1 + 3))


def test_references_come_from_the_train_split(data):
  references = rating.Rating(data).references()
  assert list(references) == ["global_mean", "item_bias", "item_user_bias"]
  other = dataclasses.replace(data, ratings=data.ratings.copy())
  begin, end = data.span("test")
  other.ratings[begin[1]:end[1]] = 3  # held out: changes the errors, not the predictions
  mean = ratings.biases(other)[0]
  found = rating.Rating(other).references()["global_mean"].values
  assert mean == ratings.biases(data)[0]
  for context in ("train", "train+val"):
    assert found[context]["rating"]["mae"][0] == pytest.approx(3 - mean)


# Last three ratings of MovieLens-1M's target domain: pooled RMSE, MAE, mean over users of RMSE.
ANCHORS = {"global_mean": (1.175, 0.983, 1.074), "item_bias": (1.007, 0.808, 0.911),
           "item_user_bias": (0.956, 0.755, 0.861)}


def test_movielens_anchors(raw_dir, tmp_path):
  prepare.prepare(spec.load_config("configs/data/ml1m.py"), raw_dir=raw_dir, data_dir=tmp_path,
                  log=str)
  found = rating.Rating(sequences.load(tmp_path, "ml1m_tgt")).references()
  for name, (rmse, mae, user_rmse) in ANCHORS.items():
    means = found[name].means()["train"]["rating"]
    assert means["rmse"] == pytest.approx(rmse, abs=0.005), name
    assert means["mae"] == pytest.approx(mae, abs=0.005), name
    assert means["user_rmse"] == pytest.approx(user_rmse, abs=0.005), name


# Facts and names.


def test_levels_are_those_of_the_train_split(data):
  assert ratings.levels(data) == (1, 2, 3, 5)  # 4 occurs among held-out ratings alone
  names, trained = ratings.row_names(data, {"rating"})["rating"]
  assert list(names) == [b"1", b"2", b"3", b"5", b"\x01mask", b"\x01unknown"] and trained.all()
  assert len(ratings.row_names(data, {"rated"})["rated"][0]) == N
  many = dataclasses.replace(data, ratings=np.linspace(0, 1, len(data.items), dtype=np.float32))
  many = dataclasses.replace(many, splits=many.splits.copy())
  many.splits[:, 0, 1] = np.diff(many.offsets)
  with pytest.raises(errors.UserError, match="distinct ratings"):
    ratings.levels(many)


def test_extra_ratings_match_names_and_leave_out_the_own_domain(data):
  # The other data set numbers items and users the other way round.
  other = _rated([([(12, 1), (7, 2), (3, 5)], [], [(11, 4)]), ([(5, 3)], [], [])])
  other = dataclasses.replace(
    other, item_ids=np.concatenate([other.item_ids[:1], other.item_ids[:0:-1]]),
    user_ids=np.array([b"", b"2", b"nobody"]))
  own = dataclasses.replace(data, in_domain=np.arange(N + 1) == 6)
  tables = ratings.extra_tables(own, other)
  # Items 12, 7, 3 there are 1, 6, 10 here, and 6 is of the own domain.
  assert tables["extra_items"].tolist() == [1, 10]
  assert tables["extra_ratings"].tolist() == [1, 5]
  assert tables["extra_offsets"].tolist() == [0, 0, 0, 2, 2, 2]
  with pytest.raises(errors.UserError, match="extra_ratings"):
    ratings.extra_tables(data, other)  # every item is of the own domain


# The objectives.


def _objective(name, **fields):
  return objectives.make(name, num_items=N, known=(name,), **{name: fields})


def _batch(rows=400, width=9):
  rng = np.random.default_rng(0)
  items = rng.integers(1, N + 1, (rows, width)).astype(np.int32)
  items[np.arange(width) < rng.integers(0, width, rows)[:, None]] = 0
  values = np.where(items > 0, rng.integers(1, 6, items.shape), 0).astype(np.float32)
  return {"items": items, "ratings": values, "users": np.arange(1, rows + 1, dtype=np.int32)}


def test_fifteen_percent_of_the_ratings_are_hidden_and_no_item():
  batch = _batch()
  out = jax.tree.map(np.asarray, _objective("masked_rating").prepare(jax.random.key(0), batch, {}))
  real, hidden = batch["items"] > 0, out["hidden"]
  assert not (hidden & ~real).any()
  assert abs(hidden.sum() - .15 * real.sum()) < 4 * np.sqrt(.1275 * real.sum())
  np.testing.assert_array_equal(out["items"], batch["items"])
  np.testing.assert_array_equal(out["ratings"] + out["labels"], batch["ratings"])
  assert (out["ratings"][hidden] == 0).all()  # nothing there to leak
  np.testing.assert_array_equal(out["labels"][hidden], batch["ratings"][hidden])


@pytest.mark.parametrize("name, where", [("masked_rating", "hidden"), ("autoencode", "items")])
def test_the_loss_is_that_of_its_three_line_version(name, where):
  objective, batch = _objective(name), _batch(30)
  inputs = objective.prepare(jax.random.key(1), batch, {})
  guess = np.random.default_rng(1).normal(size=batch["items"].shape).astype(np.float32)
  total, weight, extra = objective.loss(lambda *_: guess, None, inputs, shards=1, capacity=1,
                                        rng=None)
  mask = np.asarray(inputs[where]) > 0
  assert weight == mask.sum() > 0 and extra["dropped"] == 0
  assert total == pytest.approx(np.square(guess - batch["ratings"])[mask].sum(), rel=1e-5)


def test_label_statistics_are_those_of_many_draws():
  objective, batch = _objective("masked_rating", rate=.4), _batch(4000)
  lengths = (batch["items"] > 0).sum(axis=1)
  hidden = np.asarray(objective.prepare(jax.random.key(0), batch, {})["hidden"]).sum(axis=1)
  mean, variance, most = objective.label_statistics(lengths)
  assert hidden.mean() == pytest.approx(mean, rel=.05)
  assert hidden.var() == pytest.approx(variance, rel=.1)
  assert hidden.max() <= most == 9


def _recall(params, inputs, rng, **where):
  """A model that predicts column number + rating, so that order and alignment can be seen."""
  del params, rng, where
  real = inputs["items"] > 0
  assert inputs["hidden"].dtype == bool
  return jnp.where(inputs["hidden"], 100.0 * jnp.cumsum(real, axis=1) + inputs["items"], -1)


@pytest.mark.parametrize("name", ["masked_rating", "autoencode"])
def test_held_out_items_stand_hidden_at_the_end_wherever_padding_is(name):
  predict = _objective(name).predict
  one = lambda *rows: jnp.array(rows, jnp.int32)
  run = lambda history, targets: predict(
    _recall, None, one(3), one(history), one(history) * 1.0, one(targets))[0].tolist()
  assert run([0, 5, 6], [0, 7, 8])[1:] == [307, 408]
  assert run([5, 0, 6], [0, 7, 8])[1:] == [307, 408]
  assert run([5, 6, 0], [7, 0, 8])[::2] == [307, 408]
  assert run([0, 0, 0], [7, 8, 0])[:2] == [107, 208]


def test_more_held_out_items_than_places_are_an_error():
  objective = _objective("masked_rating", held_out=2)
  assert objective.room(10) == 8
  with pytest.raises(errors.UserError, match="held_out=2"):
    objective.predict(_recall, None, jnp.ones(1, jnp.int32), jnp.ones((1, 4), jnp.int32),
                      jnp.ones((1, 4)), jnp.ones((1, 3), jnp.int32))


def test_refeeding_at_a_fixed_point_does_nothing():
  objective = _objective("autoencode", refeed=1)
  assert objective.updates == 2 and _objective("autoencode").updates == 1
  batch = _batch(5)
  batch["users"][-1] = 0  # fills up an epoch's last batch
  inputs = objective.prepare(None, batch, {"pool": jnp.array([2, 3, 7])})
  table = jnp.arange(1.0, N + 1)
  def identity(scale, inputs, rng, full=False):
    if "dense" in inputs:
      return scale * inputs["dense"]
    assert full and "domain" not in inputs
    return scale * jnp.broadcast_to(table, (5, N))
  again = objective.again(identity, 1.0, inputs, None)
  expected = np.zeros((5, N))
  expected[:4, [1, 2, 6]] = [2, 3, 7]  # items of the domain, real users
  np.testing.assert_array_equal(again["dense"], expected)
  loss = lambda scale: objective.loss(identity, scale, again, shards=1, capacity=1, rng=None)[0]
  assert loss(1.0) == 0 and jax.grad(loss)(1.0) == 0
  assert jax.grad(loss)(1.1) > 0
  _, weight, _ = objective.loss(identity, 1.0, again, shards=1, capacity=1, rng=None)
  assert weight == 12


def test_sampled_ratings_belong_to_their_items(data):
  resident = batches.resident(data, columns=("ratings",))
  sample = batches.make_sampler(num_users=4, batch_size=4, length=3, window="last")
  batch = jax.tree.map(np.asarray, sample(jax.tree.map(jnp.asarray, resident), jax.random.key(0),
                                          jnp.int32(0)))
  begin, _ = data.span("train")
  for user, items, values in zip(batch["users"], batch["items"], batch["ratings"], strict=True):
    real = items > 0
    rows = begin[user] + np.arange(real.sum())
    np.testing.assert_array_equal(data.items[rows], items[real])
    np.testing.assert_array_equal(data.ratings[rows], values[real])
    assert (values[~real] == 0).all()
