"""Tasks that read whole users: who is trained on, what is read, how users are judged."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import tiny
from recjax import errors
from recjax.data import batches, histories, profiles, sequences
from recjax.evaluators import classification, ranking
from recjax.objectives import user_task

PROFILE = dict(attribute="group", val=0.2, test=0.2, seed=1)


@functools.cache
def _data(name="src"):
  return sequences.load(tiny.root() / "data", name)


def _names(data):
  return [name.decode() for name in data.user_ids]


def test_users_are_split_by_their_external_ids_alone():
  of = lambda data: dict(zip(_names(data)[1:], profiles.parts(
    data, val=0.2, test=0.2, seed=1)[1:].tolist(), strict=True))
  source, target = of(_data()), of(_data("tgt"))
  shared = source.keys() & target.keys()
  assert len(shared) == 50 and all(source[name] == target[name] for name in shared)
  assert source != dict(zip(source, profiles.parts(_data(), val=0.2, test=0.2, seed=2)[1:].tolist(),
                            strict=True))
  many = dataclasses.replace(_data(), user_ids=np.array([b"", *(b"%d" % i for i in range(5000))]))
  shares = np.bincount(profiles.parts(many, val=0.1, test=0.3, seed=0)[1:]) / 5000
  np.testing.assert_allclose(shares, [0.6, 0.1, 0.3], atol=0.03)


def test_only_users_of_the_train_part_with_a_label_are_sampled():
  data = _data()
  labels = profiles.trained(data, **PROFILE)
  part = profiles.parts(data, val=0.2, test=0.2, seed=1)
  known = np.array([0] + [int(name[1:]) % 3 for name in _names(data)[1:]])
  np.testing.assert_array_equal(labels, np.where(part == 0, known, 0))
  resident = batches.resident(data, labels=labels)
  np.testing.assert_array_equal(resident["users"], np.flatnonzero(labels))
  batch = {"users": resident["users"][:3], "items": np.zeros((3, 4), np.int32)}
  prepared = user_task.Profile(num_items=70).prepare(None, batch, resident)
  np.testing.assert_array_equal(prepared["labels"], labels[resident["users"][:3]])
  with pytest.raises(errors.UserError, match="no user attribute 'age'; there are group"):
    profiles.labels(data, "age")


def test_tokens_stand_where_the_user_is_read():
  items = np.array([[0, 0, 5, 6], [0, 0, 0, 0], [1, 2, 3, 4]])
  last = user_task.Profile(num_items=9).with_tokens(items)
  np.testing.assert_array_equal(last, [[0, 0, 5, 6, 10], [0, 0, 0, 0, 10], [1, 2, 3, 4, 10]])
  both = user_task.Profile(num_items=9, ends="both")
  found = both.with_tokens(items)
  np.testing.assert_array_equal(found[::2], [[0, 0, 10, 5, 6, 10], [10, 1, 2, 3, 4, 10]])
  asked = {}
  def apply_fn(params, inputs, rng, **where):
    asked.update(where, **inputs)
    return np.zeros((3, 1, 3))
  both.predict(apply_fn, None, np.array([7, 8, 9]), items)
  np.testing.assert_array_equal(asked["positions"][::2], [[2, 5], [0, 5]])
  assert asked["pool"] and not asked["users"].any()


def _classification(**overrides):
  return classification.Classification(_data(), profile=PROFILE, batch_size=16, history_length=8,
                                       **overrides)


def test_an_oracle_is_right_and_a_constant_is_the_majority():
  evaluator = _classification()
  labels = np.asarray(_data().profiles["group"].values)
  oracle = lambda params, users, histories: jax.nn.one_hot(jax.numpy.asarray(labels)[users], 3)
  found = evaluator.run(oracle, None).means()
  assert found["train"]["profile"] == {"accuracy": 1.0, "macro_f1": 1.0}
  part = profiles.parts(_data(), val=0.2, test=0.2, seed=1)
  np.testing.assert_array_equal(evaluator.users, np.flatnonzero((part == 2) & (labels > 0)))
  facts = evaluator.facts()
  majority = 1 + (np.sum(labels[part == 0] == 2) > np.sum(labels[part == 0] == 1))
  assert facts["majority"] == ["even", "odd"][majority - 1] and facts["labels"] == 2
  assert facts["users"]["test"] == len(evaluator.users)
  constant = lambda params, users, histories: np.eye(3)[majority] * np.ones((len(users), 1))
  found = evaluator.run(lambda *args: jax.numpy.asarray(constant(*args)), None)
  assert found.means() == evaluator.references()["majority"].means()
  assert 0 < found.means()["train"]["profile"]["accuracy"] < 1
  with pytest.raises(FloatingPointError, match="NaN"):
    evaluator.run(lambda params, users, histories: jax.numpy.full((16, 3), np.nan), None)


def test_macro_f1_counts_labels_alike():
  truth, predicted = np.array([1, 1, 1, 2, 2]), np.array([1, 1, 2, 2, 3])
  assert classification.macro_f1(truth, predicted) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)


def _rows(data, part):
  """Returns {external user: [external item, ...]} of a part."""
  begin, end = data.span(part)
  return {name: [data.item_ids[i].decode() for i in data.items[low:high]]
          for name, low, high in zip(_names(data), begin, end, strict=True) if high > low}


def test_a_history_comes_first_and_the_rest_stays_what_it_was():
  data, other = _data("tgt"), _data("src")
  joined = histories.join(data, other)
  mine = {name: items for name, items in _rows(other, "train").items() if name in _names(data)}
  assert _rows(joined, "train") == mine and len(mine) == 50
  assert _rows(joined, "targets") == _rows(data, "train")
  for split in ("val", "test"):
    assert _rows(joined, split) == _rows(data, split)
  for split in sequences.SPLITS:
    np.testing.assert_array_equal(joined.item_counts(split), data.item_counts(split))
  assert joined.identity() != data.identity() and data.parts == sequences.SPLITS
  with pytest.raises(errors.UserError, match="no user of 'src'"):
    histories.join(dataclasses.replace(other, item_ids=np.char.add(other.item_ids, b"x")), data)


def test_what_a_user_trains_on_is_no_candidate_after_a_history():
  joined = histories.join(_data("tgt"), _data("src"))
  evaluator = ranking.Ranking(joined, protocols=("full",), contexts=("train",), batch_size=8)
  items, offsets = evaluator._excluded
  names = _names(joined)
  for row, user in enumerate(evaluator.users[:20]):
    mine = {name for part in ("train", "targets", "val") for name in _rows(joined, part).get(
      names[user], ())} - set(_rows(joined, "test")[names[user]])
    assert {joined.item_ids[i].decode() for i in items[offsets[row]:offsets[row + 1]]} == mine


def test_first_items_are_drawn_from_what_a_user_trains_on_there():
  joined = histories.join(_data("tgt"), _data("src"))
  objective = user_task.FirstItem(num_items=70)
  resident = batches.resident(joined, columns=objective.columns)
  users = np.concatenate([resident["users"][:20], [0]])
  batch = {"users": users, "items": np.zeros((21, 4), np.int32)}
  targets, begin = _rows(joined, "targets"), joined.item_ids
  seen = [set() for _ in users]
  for seed in range(12):
    for row, label in enumerate(np.asarray(objective.prepare(
        jax.random.key(seed), batch, resident)["labels"])):
      seen[row].add(begin[label].decode())
  for user, found in zip(users[:-1], seen[:-1], strict=True):
    wanted = set(targets[joined.user_ids[user].decode()])
    assert found <= wanted and (len(found) > 1 or len(wanted) == 1)
  assert seen[-1] == {""}
  with pytest.raises(errors.UserError, match="config.history"):
    batches.resident(_data("tgt"), columns=("targets",))
