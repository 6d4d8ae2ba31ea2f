"""Sequences behind each other: the numbers and gradients of rows, and what finds no room."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import errors, experiment
from recjax import setting as setting_lib
from recjax import state as state_lib
from recjax.models import flash, stream, transformer
from recjax.objectives import losses, masked_item

B, T, N = 6, 20, 50
LENGTHS = np.array([20, 3, 0, 11, 20, 7])
SIZES = dict(num_items=N, num_users=B, item_width=24, user_width=8, num_layers=2, heads=2,
             hidden=48, max_len=T + 4, dropout=0.0)


def _batch():
  """Returns items and labels, int32 [B, T], left-padded."""
  rng = np.random.default_rng(0)
  there = np.arange(T) >= T - LENGTHS[:, None]
  items = np.where(there, rng.integers(1, N + 1, (B, T)), 0)
  return (jnp.asarray(x, jnp.int32) for x in (items, items * (rng.random((B, T)) < 0.4)))


@pytest.mark.parametrize("shards,room,attributes", [
  (1, 61, dict()), (2, 90, dict(causal=True, norm="query", final_norm=True)),
  (1, B * T, dict(norm="post", patch="prefix", remat=True, user_width=40))])
def test_a_stream_gives_what_rows_give(shards, room, attributes):
  model = transformer.SequenceTransformer(**{**SIZES, **attributes})
  items, labels = _batch()
  users = jnp.arange(B)
  positions, picked, weights, dropped = losses.labeled_positions(labels, shards=shards, capacity=40)
  assert dropped == 0 and weights.sum() > 10
  params = jax.jit(model.init)(jax.random.key(0), items, users, {})

  @functools.partial(jax.jit, static_argnums=1)
  @jax.value_and_grad
  def loss(params, layout):
    kernel = "auto" if layout == "stream" else "written_out"  # on a GPU, too
    return model.clone(layout=layout, attention_kernel=kernel).apply(
      params, items, users, {}, positions=positions, train=True,
      room=room if layout == "stream" else None,
      readout=lambda scores: scores.cross_entropy(picked, weights))[0]

  (want, want_grad), (found, found_grad) = loss(params, "rows"), loss(params, "stream")
  np.testing.assert_allclose(found, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found_grad, want_grad)
  assert max(np.abs(x).max() for x in jax.tree.leaves(want_grad)) > 0.1


def test_the_last_block_feeds_forward_at_labeled_positions_alone():
  """More labels than room, as of next items, and there is nothing to gain."""
  model = transformer.SequenceTransformer(**SIZES)
  items, _ = _batch()
  params = jax.jit(model.init)(jax.random.key(0), items, jnp.arange(B), {})
  def fed(places):
    """Returns how many positions each block feeds forward."""
    run = lambda: model.clone(layout="stream").apply(
      params, items, jnp.arange(B), {}, positions=jnp.arange(places)[None], room=64)
    return [int(n) for n in re.findall(r"f32\[1,(\d+),48\] = tanh", str(jax.make_jaxpr(run)()))]
  assert fed(20) == [64, 20] and fed(64) == [64, 64] and fed(80) == [64, 64]


def test_a_stream_is_read_in_order():
  items, _ = _batch()
  kept = stream.Stream(items > 0, 64)
  assert kept.groups.shape == (1, 64)
  counts = np.bincount(kept.groups[0], minlength=B + 1)
  np.testing.assert_array_equal(counts[1:], LENGTHS)
  read = kept.take(items[..., None])[0, :, 0]
  np.testing.assert_array_equal(read, np.append(items[items > 0], np.zeros(3)))
  # Two labels in the first half of the rows, none in the second.
  positions = jnp.array([[0, T + 19, 0], [0, 0, 0]])
  found = kept.select(kept.take(items[..., None]), positions)[..., 0]
  np.testing.assert_array_equal(found[0], [items[0, 0], items[1, 19], 0])
  np.testing.assert_array_equal(found[1, 1:], 0)


def test_dropout_of_attention_differs_between_sequences_and_heads():
  """All weights of one position, 1 / 40 each, are dropped or not: the values tell which."""
  size, rate = 40, 0.3
  qkv = jnp.zeros((1, 2 * size, 3, 2, 64)).at[:, :, 2].set(
    jnp.tile(jnp.eye(size, 64), (2, 1))[None, :, None])
  groups = jnp.repeat(jnp.array([[1, 2]]), size, axis=1)
  seeds = jnp.array([3, 4], jnp.uint32)
  kept = np.asarray(flash.attention(qkv, groups, seeds, False, rate, flash.PERIOD))[0] > 0
  kept = kept[..., :size].reshape(2, size, 2, size)  # sequence, query, head, key
  assert abs(kept.mean() - (1 - rate)) < 0.02
  for a, b in ((kept[0], kept[1]), (kept[:, :, 0], kept[:, :, 1]), (kept[:, 1:], kept[:, :-1])):
    assert abs((a == b).mean() - (rate**2 + (1 - rate)**2)) < 0.03


def test_what_finds_no_room_are_the_oldest_items():
  items, labels = _batch()
  objective = masked_item.MaskedItem(num_items=N)
  inputs = {"items": items, "labels": labels, "users": jnp.arange(B)}
  same, lost = objective.fit(inputs, 61)
  assert lost == 0
  jax.tree.map(np.testing.assert_array_equal, same, inputs)
  fewer, lost = objective.fit(inputs, 60)  # the two of 20 items lose one each
  np.testing.assert_array_equal((fewer["items"] > 0).sum(1), [19, 3, 0, 11, 19, 7])
  np.testing.assert_array_equal(fewer["items"][:, 1:], items[:, 1:])
  assert lost == (labels[:, 0] > 0).sum() and not fewer["labels"][:, 0].any()


def test_room_is_what_batches_need():
  objective = masked_item.MaskedItem(num_items=N)
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 201, 6000)
  room = objective.filled(lengths, rows=256)
  drawn = rng.choice(lengths, (20000, 256)).sum(1)
  assert drawn.max() <= room < 256 * 200 * 0.7 and room % 128 == 0
  assert objective.filled(lengths, rows=1) == 200


def _start(**fields):
  """Returns the sums of three steps of a tiny run."""
  setting = setting_lib.set_up(experiment.build(tiny.config(**{
    "model.dropout": 0.0, "model.item_width": 28, "model.user_width": 4, "model.fields": (),
    "micro_batch": 12, "num_devices": 1, **fields})))
  params = setting.init_params(0)
  tx, _, trainable = setting.make_optimizer(setting.exp.config, params)
  steps = setting.make_steps(tx, trainable)
  state = state_lib.create(params, tx, 0)
  sums = steps(state, setting.feed.at(0)[0], np.int32(3))[1]
  return {name: float(x) for name, x in sums.items()}


@pytest.mark.parametrize("objective", ["masked_item", pytest.param(
  "causal_next_item", marks=pytest.mark.slow)])
def test_steps_are_those_of_rows(objective):
  name = "sasrec" if objective == "causal_next_item" else "bert4rec"
  fields = {"objective.name": objective, "model.name": name}
  want, found = (_start(**fields, **{"model.layout": layout}) for layout in ("rows", "stream"))
  assert found == pytest.approx(want, rel=1e-4)
  assert want["weight"] > 20 and found["dropped"] == 0


@pytest.mark.parametrize("fields,message", [
  ({"micro_lengths": (5,)}, "layout=stream is not there with micro_lengths"),
  ({"model.attention_kernel": "fused"}, "attention_kernel=fused is not there in a stream"),
  ({"model.heads": 4}, "attention in a stream is not there: heads must be 16")])
def test_it_is_said_where_there_is_no_stream(fields, message):
  with pytest.raises(errors.UserError, match=message):
    _start(**{"model.layout": "stream", **fields})


def test_a_gpu_streams_by_itself(monkeypatch):
  model = transformer.SequenceTransformer(**SIZES)
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert not model.streams and model._kernel() == "written_out"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert model.streams and model._kernel() == "flash"
  assert not model.clone(layout="rows").streams
  assert not model.clone(attention_kernel="written_out").streams
  narrow = model.clone(heads=4)  # 8 wide
  assert not narrow.streams and narrow._kernel() == "written_out"
