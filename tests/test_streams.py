"""Streams against the sampler on the device, and what holds where their orders differ."""

import functools
import itertools
import sys

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax.data import batches, streams

L, B = 6, 8


@functools.cache
def _plain():
  return evaluator_data.random_dataset(num_users=61, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return evaluator_data.shard(_plain(), tmp_path_factory.mktemp("data"), 7)


def _stream(data, **fields):
  return streams.Stream(data, **{**dict(batch_size=B, longest=L, window="last", seed=3), **fields})


def _epochs(stream, epochs):
  """Returns {name: [epochs, per_epoch * b, ...]} of the stream's own rows."""
  stacks = [stream.stack(step) for step in range(0, stream.per_epoch * epochs, stream.depth)]
  cut = lambda x: x[:epochs * stream.per_epoch].reshape(epochs, -1, *x.shape[2:])
  return {name: cut(np.concatenate([stack[name] for stack in stacks])) for name in stacks[0]}


def _windows(rows):
  """Returns the sorted (user, items...) of the rows that are nobody's padding."""
  found = np.concatenate([rows["users"][:, None], rows["items"]], axis=1)
  return sorted(map(tuple, found[found[:, 0] > 0].tolist()))


@pytest.mark.parametrize("window, slide", [("last", None), ("prefix", None), ("random", None),
                                           ("last", L)])
def test_batches_are_those_of_the_sampler_bit_for_bit(data, window, slide):
  resident = jax.tree.map(jnp.asarray, batches.resident(_plain(), min_length=2, slide=slide))
  examples = len(resident["users"])
  sample = jax.jit(batches.make_sampler(num_users=examples, batch_size=B, length=L, window=window))
  stream = _stream(data, window=window, slide=slide, min_length=2)
  lengths = np.minimum(resident["end"] - resident["begin"], L)
  np.testing.assert_array_equal(np.sort(stream.lengths), np.sort(lengths))
  assert (stream.length, stream.per_epoch) == (L, -(-examples // B))
  key, first = jax.random.split(jax.random.key(3), 3)[0], stream.per_epoch - 3
  stack = stream.stack(first)
  assert stream.depth > 6  # It goes over the end of an epoch.
  for step in range(stream.depth):
    batch = sample(resident, key, np.int32(first + step))
    assert batch.keys() == stack.keys()
    for name, values in batch.items():
      np.testing.assert_array_equal(values, stack[name][step])
      assert values.dtype == stack[name].dtype


@pytest.mark.parametrize("held, hosts, slide", [
  (1, 1, None), (2, 1, None), (3, 2, None), (2, 3, L)])
def test_an_epoch_visits_every_example_once(data, held, hosts, slide):
  whole = _epochs(_stream(data, slide=slide, batch_size=12), 1)
  want = _windows({name: rows[0] for name, rows in whole.items()})
  parts = [_epochs(_stream(data, slide=slide, batch_size=12, held=held, hosts=hosts, host=host), 2)
           for host in range(hosts)]
  assert len({part["users"].shape for part in parts}) == 1  # All hosts take the same steps.
  orders = []
  for epoch in range(2):
    rows = {name: np.concatenate([part[name][epoch] for part in parts]) for name in whole}
    assert _windows(rows) == want
    orders.append(rows["users"].tolist())
  assert orders[0] != orders[1]
  # No host sees a user of another one's shards.
  seen = [set(np.unique(part["users"]).tolist()) - {0} for part in parts]
  assert all(not a & b for a, b in itertools.combinations(seen, 2))
  owner = np.searchsorted(data.shards.users, [sorted(users) for users in seen][0], side="right") - 1
  assert set(owner.tolist()) <= set(range(0, 7, hosts))


@pytest.mark.parametrize("window, held", [("random", 2), ("last", 8)])
def test_a_batch_is_a_function_of_seed_and_step(data, window, held):
  make = functools.partial(_stream, data, window=window, held=held)
  one, depth = make(), make().depth
  ahead = list(itertools.islice(one.stacks(0, sys.maxsize), 3))
  whole = {name: np.concatenate([stack[name] for stack in ahead]) for name in ahead[0]}
  for first in (1, one.per_epoch + 2, 2 * depth - 5):
    for name, values in next(make().stacks(first, sys.maxsize)).items():
      np.testing.assert_array_equal(values, whole[name][first:first + depth])
  other = make(seed=4).stack(0)
  assert (other["users"] != ahead[0]["users"]).any()


def test_what_is_held_is_a_few_shards(data, monkeypatch):
  stream, reads, most = _stream(data, held=2), [], []
  original = data.shards.read
  def read(shard, names):
    reads.append(shard)
    most.append(sum(len(group) for group in stream._loading))
    return original(shard, names)
  monkeypatch.setattr(data.shards, "read", read)
  monkeypatch.setattr(stream, "depth", 1)
  for step in range(3 * stream.per_epoch):
    stream.stack(step)
  stream._reader.shutdown()
  assert sorted(reads[:7]) == list(range(7)) and len(reads) <= 3 * 7 + 2
  assert max(most) <= 4  # this group and the next


@pytest.mark.parametrize("fields, says", [
  (dict(columns=("seen",)), "unseen=False"), (dict(columns=("ratings",)), "has no ratings"),
  (dict(hosts=3), "batch_size"), (dict(hosts=8), "a shard each"), (dict(held=0), "mixed_shards"),
  (dict(window="first"), "objective.window"), (dict(min_length=10**6), "no user has")])
def test_mistakes_are_user_errors(data, fields, says):
  with pytest.raises(errors.UserError, match=says):
    _stream(data, **fields)


def test_a_shard_that_vanishes_stops_the_stream_with_its_name(tmp_path):
  data = evaluator_data.shard(_plain(), tmp_path, 7)
  stacks = _stream(data, held=1).stacks(0, sys.maxsize)
  data.shards.paths[4].unlink()
  with pytest.raises(errors.UserError, match="part-00004-of-00007.parquet.*damaged or gone"):
    for _ in range(20):
      next(stacks)
