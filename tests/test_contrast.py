"""Contrastive views: what the operators change, the loss against its definition, and its groups."""

import types

import jax
import numpy as np
import pytest
import tiny

from recjax import errors, experiment, objectives, setting, train
from recjax.objectives import contrast

N, T, B = 99, 12, 40
LENGTHS = np.concatenate([[0, 1, 2], np.random.default_rng(0).integers(3, T + 1, B - 3)])
ITEMS = np.where(np.arange(T) >= T - LENGTHS[:, None], np.arange(1, T + 1) + np.arange(B)[:, None],
                 0).astype(np.int32)  # distinct in a row


def _rows(array):
  return [row[row > 0].tolist() for row in np.asarray(array)]


CROP, MASK, REORDER = (jax.jit(operator, static_argnums=rest) for operator, rest in (
  (contrast.crop, 2), (contrast.mask, (2, 3)), (contrast.reorder, 2)))


def _make(**fields):
  return objectives.make("contrast", num_items=N, known=("contrast",), contrast=fields)


def test_a_crop_is_a_run_of_the_row():
  starts = set()
  for before, after in zip(_rows(ITEMS), _rows(CROP(jax.random.key(0), ITEMS, 0.6)),
                           strict=True):
    size = max(int(0.6 * len(before)), min(len(before), 1))
    runs = [before[i:i + size] for i in range(len(before) - size + 1)]
    assert after in runs
    starts.add(runs.index(after))
  assert len(starts) > 3
  cropped = np.asarray(CROP(jax.random.key(0), ITEMS, 0.6)) > 0
  assert (np.diff(cropped.astype(int), axis=1) >= 0).all()  # left-padded again


def test_a_mask_hides_its_share_and_nothing_else():
  masked = np.asarray(MASK(jax.random.key(1), ITEMS, 0.3, N + 1))
  changed = masked != ITEMS
  np.testing.assert_array_equal(changed.sum(1), np.floor(0.3 * LENGTHS))
  assert (masked[changed] == N + 1).all() and not changed[ITEMS == 0].any()
  assert changed[:, -6:].any(0).all()  # anywhere


def test_a_reordering_shuffles_one_run():
  moved = 0
  for before, after in zip(ITEMS, np.asarray(REORDER(jax.random.key(2), ITEMS, 0.5)),
                           strict=True):
    changed = np.flatnonzero(before != after)
    assert sorted(before) == sorted(after) and not (before[changed] == 0).any()
    if len(changed):
      assert np.ptp(changed) < 0.5 * (before > 0).sum()
      moved += 1
  assert moved > B / 2


def test_the_two_views_of_a_row_are_drawn_apart():
  prepare = lambda **fields: jax.jit(lambda key, batch: _make(**fields).prepare(key, batch, None))(
    jax.random.key(3), {"items": ITEMS, "users": LENGTHS})
  inputs = prepare(append_mask=True)
  one, two = (np.asarray(inputs[name]) for name in ("items", "others"))
  assert ((one != two).any(1)[LENGTHS > 4]).mean() > 0.8
  for view in (one, two):
    assert view.shape == ITEMS.shape
    assert ((view[:, -1] == N + 1) == (LENGTHS > 0)).all()
  plain = prepare(operators=("crop",), crop_share=1.0)
  np.testing.assert_array_equal(plain["items"], ITEMS)


def _loss(objective, inputs, x):
  """Returns what the objective makes of the representations x [2 B, W]."""
  @jax.jit
  def loss(inputs, x):
    apply_fn = lambda params, seen, rng, positions, readout: readout(types.SimpleNamespace(
      x=x[None]))
    return objective.loss(apply_fn, None, inputs, shards=1, capacity=None, rng=None)[:2]
  total, weight = loss(inputs, x)
  return float(total), float(weight)


@pytest.mark.parametrize("group", [None, 4])
def test_the_loss_is_its_definition(group):
  rng = np.random.default_rng(0)
  users = np.array([1, 2, 3, 2, 5, 6, 0, 0])  # one of them twice, the last two nobody's
  x = rng.normal(size=(2, 8, 3)).astype(np.float32)
  size, want = group or 8, 0.0
  for row, view in np.ndindex(8, 2):
    if users[row] == 0:
      continue
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.2
    mine = cosine(x[view, row], x[1 - view, row])
    rivals = [cosine(x[view, row], x[v, r]) for r in range(8) for v in range(2)
              if r // size == row // size and users[r] not in (0, users[row])]
    want += np.log(np.exp(mine) + np.sum(np.exp(rivals))) - mine
  inputs = {"items": ITEMS[:8], "others": ITEMS[:8], "users": users}
  total, weight = _loss(_make(group=group, temperature=0.2), inputs, x.reshape(16, 3))
  assert weight == 12
  np.testing.assert_allclose(total, want, rtol=1e-5)


def test_cutting_between_groups_changes_nothing():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 12, 3)).astype(np.float32)
  inputs = {"items": ITEMS[:12], "others": ITEMS[:12], "users": np.arange(1, 13)}
  whole = _loss(_make(group=3), inputs, x.reshape(24, 3))
  parts = [_loss(_make(group=3), {name: v[i:i + 6] for name, v in inputs.items()},
                 x[:, i:i + 6].reshape(12, 3)) for i in (0, 6)]
  np.testing.assert_allclose(whole, np.sum(parts, 0), rtol=1e-6)


CONTRAST = dict(append_mask=True, temperature=0.2)


def _config(**fields):
  config = tiny.config(**fields)
  config.objective.mix.parts = (("masked_item", 1.0), ("contrast", 0.5))
  config.objective.name = "mix"
  config.objective.contrast = CONTRAST
  return config


@pytest.mark.slow
def test_a_run_learns_both_and_reports_each(tmp_path):
  config = _config(total_steps=60)
  config.objective.contrast.group = 3  # as micro-batches have
  config.log.every_steps = 20
  report = train.train_and_evaluate(config, tmp_path / "run")
  rows = [row for (_, split, _), row in tiny.metric_rows(tmp_path / "run").items()
          if split == "train"]
  for row in rows:
    parts = row["masked_item/loss"] + 0.5 * row["contrast/loss"]
    assert row["loss"] == pytest.approx(parts, rel=0.05)  # means over steps of different weights
    assert row["contrast/labels"] > row["masked_item/labels"] / 20 > 0
  for name in ("masked_item/loss", "contrast/loss"):
    assert rows[-1][name] < rows[0][name]
  assert report["run"]["objective"] == "mix" and report["test"]["full"]["mrr"] > 0


def test_a_batch_that_is_cut_needs_groups():
  made = setting.set_up(experiment.build(_config()))
  with pytest.raises(errors.UserError, match="compares 12 users.*parts of 3.*cut them apart"):
    made.make_steps(None, {})


@pytest.mark.parametrize("fields, message", [
  (dict(operators=("crop", "cut")), "operators.*'cut'"), (dict(operators=()), "operators"),
  (dict(crop_share=0.0), "shares are in 0..1"), (dict(temperature=0), "temperature is above 0"),
  (dict(group=1), "two rows at least")])
def test_mistakes_are_one_line(fields, message):
  with pytest.raises(errors.UserError, match=message):
    _make(**fields)
