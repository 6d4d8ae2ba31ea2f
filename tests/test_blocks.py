"""Evaluation in blocks of users equals that of all at once."""

import evaluator_data
import numpy as np
import pytest

from recjax import errors
from recjax.evaluators import blocks, ranking

DATA = evaluator_data.random_dataset(num_users=37)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
  return evaluator_data.shard(DATA, tmp_path_factory.mktemp("data"), 5)


def _equal(one, two):
  np.testing.assert_array_equal(one.users, two.users)
  a, b = one.flat(), two.flat()
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
  # Positives come in the order of users.
  np.testing.assert_array_equal(one.positives.rows, two.positives.rows)
  np.testing.assert_array_equal(one.positives.items, two.positives.items)
  for context, table in one.positives.values.items():
    for protocol, metrics in table.items():
      for name, values in metrics.items():
        np.testing.assert_array_equal(values, two.positives.values[context][protocol][name])


@pytest.mark.parametrize("max_users, size", [(None, 8), (None, 100), (20, 7), (20, 64)])
def test_blocks_give_what_one_evaluator_does(sharded, max_users, size):
  options = dict(split="test", num_negatives=20, batch_size=8, history_length=5)
  whole = ranking.Ranking(DATA, max_users=max_users, **options)
  parts = blocks.Blocks(sharded, lambda data: ranking.Ranking(data, **options), split="test",
                        max_users=max_users, seed=0, size=size)
  scores = np.random.default_rng(0).integers(0, 9, (DATA.num_users + 1, DATA.num_items + 1))
  scores = scores.astype(np.float32)
  assert parts.contexts == whole.contexts
  _equal(parts.run(evaluator_data.lookup, scores), whole.run(evaluator_data.lookup, scores))
  ours, theirs = parts.references(), whole.references()
  assert ours.keys() == theirs.keys() == {"popularity", "chance"}
  for name in ours:
    _equal(ours[name], theirs[name])


def test_an_evaluator_of_other_users_is_refused(sharded):
  make = lambda data: ranking.Ranking(data, split="test", max_users=3)
  with pytest.raises(errors.UserError, match="users of its test split"):
    blocks.Blocks(sharded, make, split="test", max_users=None, seed=0)
