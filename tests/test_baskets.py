"""Pairs of baskets: how rows are laid out, what is hidden and drawn, and what a run learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recjax import catalog, errors, models, objectives, results, step, train, trees, transfer
from recjax.data import sequences

N, B, L, T = 30, 60, 40, 16
MASK, CLS, SEP = N + 1, N + 2, N + 3
NAMES = models.MODELS["basket_bert"].objectives


def _make(name, **fields):
  return objectives.make(name, num_items=N, known=NAMES,
                         **{name: dict(length=T, look_back=L - T, **fields)})


@functools.cache
def _users():
  """Returns the baskets of B users: few items, so that baskets of several users are the same."""
  rng = np.random.default_rng(0)
  baskets = [[rng.choice(N if u % 3 else 3, rng.integers(1, 4), replace=False) + 1
              for _ in range(rng.integers(1, 9))] for u in range(B)]
  baskets[-1] = []  # a row that fills up the epoch's last batch
  return baskets


@functools.cache
def _batch():
  items, numbers = np.zeros((2, B, L), np.int32)
  for user, baskets in enumerate(_users()):
    flat = [i for basket in baskets for i in basket]
    items[user, L - len(flat):] = flat
    numbers[user, L - len(flat):] = np.repeat(np.arange(1, len(baskets) + 1),
                                              [len(b) for b in baskets])
  users = np.arange(1, B + 1)
  users[-1] = 0
  return {"items": items, "baskets": numbers, "users": users}


@functools.cache
def _prepared(name, draws=20, **fields):
  """Returns what the objective prepares, of `draws` keys: [draws, B, ...] each."""
  objective = _make(name, **fields)
  prepare = lambda key: objective.prepare(key, _batch(), {"pool": jnp.arange(1, N + 1)})
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(prepare))(jax.random.split(jax.random.key(1),
                                                                              draws)))


@pytest.mark.parametrize("width", [3, 9, 12])
def test_what_is_kept_moves_to_the_end_in_its_order(width):
  rng = np.random.default_rng(0)
  keep, x, y = rng.random((6, 9)) < 0.5, *rng.integers(1, 99, (2, 6, 9))
  keep[0], keep[1] = False, True
  found = objectives.baskets.compact(jnp.asarray(keep), width, jnp.asarray(x), jnp.asarray(y))
  for ours, theirs in zip(found, (x, y), strict=True):
    for row, kept, values in zip(np.asarray(ours), keep, theirs, strict=True):
      wanted = values[kept][-width:]
      assert row.tolist() == [0] * (width - len(wanted)) + wanted.tolist()


def _split(row, segments):
  """Returns (b1, b2) of a row, having checked its frame."""
  tokens = row[row > 0].tolist()
  assert (np.diff((row > 0).astype(int)) >= 0).all()  # left-padded
  assert tokens[0] == CLS and tokens[-1] == SEP and tokens.count(SEP) == 2
  middle = tokens.index(SEP)
  own = segments[row > 0].tolist()
  assert own == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
  return tokens[1:middle], tokens[middle + 1:-1]


def test_half_of_the_pairs_are_true_and_the_others_never_are():
  found = _prepared("next_basket")
  follows, falses = found["follows"], 0
  for draw, user in np.ndindex(*follows.shape):
    baskets = [list(b) for b in _users()[user]]
    if len(baskets) < 2:
      assert follows[draw, user] == -1
      continue
    first, second = _split(found["items"][draw, user], found["segments"][draw, user])
    places = [k for k in range(len(baskets) - 1) if baskets[k] == first]
    assert places
    if follows[draw, user]:
      assert any(baskets[k + 1] == second for k in places)
    else:
      falses += 1
      assert any(set(baskets[k + 1]) != set(second) for k in places)
      assert any(second in map(list, _users()[other]) for other in range(B) if other != user)
  pairs = (follows >= 0).sum()
  assert abs(falses / pairs - 0.5) < 4 * 0.5 / np.sqrt(pairs)
  assert (np.ptp(follows, axis=0)[follows[0] >= 0] == 1).all()  # drawn anew for everybody


def test_a_basket_with_the_same_items_is_no_other_basket():
  baskets = jnp.array([[0, 1, 2], [0, 2, 1], [0, 0, 5], [0, 1, 2]])
  whole, users = jnp.array([True, True, True, False]), jnp.array([1, 2, 3, 4])
  draw = jax.jit(lambda whole: jax.vmap(lambda key: objectives.baskets.another(
    key, baskets, users, whole))(jax.random.split(jax.random.key(0), 30)))
  other, found = draw(whole)
  assert found.all() and (other[:, :2] == jnp.array([0, 0, 5])).all()
  assert {tuple(row) for row in np.asarray(other[:, 2]).tolist()} == {(0, 1, 2), (0, 2, 1)}
  _, found = draw(jnp.array([True, True, False, False]))
  assert not found[:, [0, 1, 3]].any() and found[:, 2].all()


def test_masks_hide_items_alone_at_their_rate():
  found = _prepared("masked_basket", rate=0.4)
  items, labels = found["items"], found["labels"]
  hidden = labels > 0
  assert ((labels <= N) & (items[..., -1:] != MASK)).all()  # the last column is a SEP
  for token in (CLS, SEP):
    assert not hidden[items == token].any()
  restored = np.where(hidden, labels, items)
  real = (restored > 0) & (restored <= N)
  assert hidden.sum() / real.sum() == pytest.approx(0.4, abs=0.02)
  assert (items[hidden] == MASK).mean() == pytest.approx(0.8, abs=0.03)
  assert not (items == MASK)[~hidden].any()
  begins = (restored > 0).any(-1) & (np.take_along_axis(
    restored, np.argmax(restored > 0, -1)[..., None], -1)[..., 0] == CLS)
  assert begins[:, [bool(b) for b in _users()]].all() and not items[:, -1].any()


def test_the_first_half_holds_as_many_baskets_as_asked_and_fit():
  one, all_of_them = _prepared("basket_items", context=1), _prepared("basket_items")
  for user, baskets in enumerate(map(lambda b: [list(x) for x in b], _users())):
    for draw in range(20):
      if len(baskets) < 2:
        assert not one["targets"][draw, user].any()
        continue
      target = one["targets"][draw, user]
      target = target[target > 0].tolist()
      first, ask = _split(one["items"][draw, user], one["segments"][draw, user])
      assert ask == [MASK] and any(a == first and b == target
                                   for a, b in zip(baskets, baskets[1:], strict=False))
      everything, _ = _split(all_of_them["items"][draw, user], all_of_them["segments"][draw, user])
      flat = sum(baskets, [])
      assert any(flat[:n][-(T - 4):] == everything for n in range(1, len(flat)))
      assert everything[len(everything) - len(first):] == first  # the same draw


def test_items_of_a_basket_share_a_position():
  found, plain = _prepared("basket_items"), _prepared("basket_items", shared_position=False)
  assert "ages" not in plain and (plain["items"] == found["items"]).all()
  items, ages = found["items"].reshape(-1, T), found["ages"].reshape(-1, T)
  for row, age in zip(items, ages, strict=True):
    age = age[row > 0]
    assert not len(age) or age[-3:].tolist() == [2, 1, 0]  # SEP MASK SEP
    inner = age[1:-3]
    assert (np.diff(inner) <= 0).all() and (np.diff(inner) >= -1).all() and (inner >= 3).all()
  several = [len(set(a[1:-3])) < len(a[1:-3]) for a in (
    age[row > 0] for row, age in zip(items, ages, strict=True)) if len(a) > 4]
  assert np.mean(several) > 0.5


def test_prediction_asks_as_training_does():
  @jax.jit
  def asked(batch):
    rows = {}
    def apply_fn(params, seen, rng, positions):
      rows.update(seen, positions=positions)
      return jnp.zeros((B, 1, N + 1))
    _make("basket_items").predict(apply_fn, None, batch["users"], batch["items"], batch["baskets"])
    return rows
  rows = jax.tree.map(np.asarray, asked(_batch()))
  for user, baskets in enumerate(_users()):
    if baskets:
      first, ask = _split(rows["items"][user], rows["segments"][user])
      assert ask == [MASK] and first == [i for b in baskets for i in b][-(T - 4):]
      assert rows["items"][user, rows["positions"][user, 0]] == MASK
      assert rows["ages"][user, -4] == 3


def test_all_items_of_the_basket_are_positives():
  objective, rng = _make("basket_items"), np.random.default_rng(0)
  targets = np.array([[0, 3, 5], [0, 0, 7], [0, 0, 0], [1, 2, 9]])
  scores = rng.normal(size=(4, T, N + 1)).astype(np.float32)
  def apply_fn(params, seen, rng, positions, readout):
    flat = scores.reshape(1, -1, N + 1)
    return readout(catalog.Given(jnp.take_along_axis(flat, positions[..., None], 1)))
  total, weight, _ = objective.loss(apply_fn, None, {"items": np.zeros((4, T)), "targets": targets},
                                    shards=1, capacity=None, rng=None)
  logp = np.asarray(jax.nn.log_softmax(scores[:, -2]))
  want = -sum(np.mean([logp[row, t] for t in targets[row] if t]) for row in (0, 1, 3))
  assert weight == 3
  np.testing.assert_allclose(total, want, rtol=1e-5)


@functools.cache
def _model():
  model = models.make("basket_bert", variant="bert", num_items=N, num_users=B, field_rows={},
                      num_layers=1, item_width=8, heads=2, hidden=16, max_len=T, dropout=0.0)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs(), tables={})["params"])
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)


def test_swapping_the_baskets_changes_segments_and_answers():
  model, params = _model()
  objective, width = _make("next_basket"), T - 3
  pad = lambda *items: np.array([[0] * (width - len(items)) + list(items)], np.int32)
  row = jax.jit(lambda first, second: objective.row(first, jnp.minimum(first, 1), second))
  one, two = row(pad(4, 5, 6), pad(7)), row(pad(7), pad(4, 5, 6))
  assert np.asarray(one["segments"])[0, -7:].tolist() == [0, 0, 0, 0, 0, 1, 1]
  assert np.asarray(two["segments"])[0, -7:].tolist() == [0, 0, 0, 1, 1, 1, 1]
  apply_fn = step.make_apply(model, {})
  answer = jax.jit(lambda row: apply_fn(params, {**row, "users": jnp.ones(1, jnp.int32)}, None,
                                        positions=jnp.array([[T - 7]]), pairs=True))
  assert jnp.abs(answer(one) - answer(two)).max() > 0.01
  # Items of a basket have no order.
  np.testing.assert_allclose(answer(one), answer(row(pad(4, 6, 5), pad(7))), atol=1e-5)


def test_cutting_columns_of_padding_changes_no_loss():
  model, params = _model()
  objective, apply_fn = _make("next_basket"), step.make_apply(model, {})
  inputs = {name: x[0] for name, x in _prepared("next_basket").items()}
  short = (inputs["items"] > 0).sum(1) <= 10
  inputs = {name: x[short] for name, x in inputs.items()}
  loss = jax.jit(lambda inputs: objective.loss(apply_fn, params, inputs, shards=1, capacity=None,
                                               rng=None))
  whole, cut = loss(inputs), loss(objective.trim(inputs, 10))
  assert whole[1] == cut[1] > 10 and whole[0] > 0
  np.testing.assert_allclose(whole[0], cut[0], rtol=1e-5)
  assert whole[2]["right"] == cut[2]["right"]


def test_parameters_are_those_of_the_transformer_and_a_pooler():
  _, params = _model()
  flat = {name: x.shape for name, x in trees.flatten(params).items()}
  assert {name: shape for name, shape in flat.items() if name.startswith("pair/")} == {
    "pair/pooler/kernel": (8, 8), "pair/pooler/bias": (8,), "pair/follows/kernel": (8, 2),
    "pair/follows/bias": (2,)}
  assert flat["embed/item/embedding"] == (N + 4, 8) and flat["embed/segment/embedding"] == (2, 8)


def test_model_transfer_carries_all_but_the_pairs_head():
  model, params = _model()
  rows = {}
  plan = transfer.make_plan(params, trees.flatten(params), model.transfer_rules("model"),
                            row_tables={}, target_rows=rows, source_rows=rows)
  fresh = {entry.target for entry in plan if entry.source is None}
  assert fresh == {name for name in trees.flatten(params) if name.startswith("pair/")}


@functools.cache
def _data():
  """Returns a folder with the tiny data set `tgt` as `baskets`, two items in each."""
  folder = tiny.root() / "data"
  data = sequences.load(folder, "tgt")
  splits = np.array(data.splits)  # cut where baskets end
  sequences.save(folder / "baskets", dataclasses.replace(
    data, times=np.concatenate([np.arange(n) // 2 for n in np.diff(data.offsets)]), splits=splits,
    manifest={**data.manifest, "name": "baskets"}))
  return folder


def _config(name, **fields):
  _data()
  config = tiny.config(dataset="baskets", **fields)
  config.model.update(name="basket_bert", variant="bert", max_len=T, user_width=0)
  row = dict(length=T, look_back=8)
  config.objective.name = name
  config.objective.mix.parts = (("masked_basket", 1.0), ("next_basket", 1.0))
  config.objective.masked_basket = dict(rate=0.3, **row)
  config.objective.next_basket = dict(row)
  config.objective.basket_items = dict(row)
  config.eval.update(metric="full_repeats/hit@5", protocols=("full_repeats",), ks=(5, 10))
  return config


@pytest.mark.slow
def test_pre_training_and_tuning(tmp_path):
  """One run of both tasks, in parts cut to two lengths; then its ranker is tuned."""
  config = _config("mix", total_steps=40)
  config.micro_lengths = (10,)
  config.log.every_steps = 20
  report = train.train_and_evaluate(config, tmp_path / "source")
  rows = [row for (_, split, _), row in tiny.metric_rows(tmp_path / "source").items()
          if split == "train"]
  assert rows[-1]["masked_basket/loss"] < rows[0]["masked_basket/loss"]
  assert all(row["next_basket/labels"] > 0 and row["labels_dropped"] == 0 for row in rows)
  assert {"f1@5", "hit@10", "ndcg@5"} <= report["test"]["full_repeats"].keys()
  assert "personal_frequency" in report["references"]

  config = _config("basket_items")
  config.transfer.update(checkpoint=str(tmp_path / "source"), mode="model")
  train.train_and_evaluate(config, tmp_path / "tuned")
  assert results.finished(tmp_path / "tuned")["run"]["transfer_mode"] == "model"
  before, after = (tiny.state(tmp_path / name) for name in ("source", "tuned"))
  moved = {name for name in before if name.startswith("params/")
           and not np.array_equal(before[name], after[name])}
  assert "params/embed/item/embedding" in moved and "params/pair/pooler/kernel" in moved  # fresh


@pytest.mark.parametrize("fields, message", [
  (dict(length=4), "length 8"), (dict(context=-1), "context"), (dict(rate=0.1), "no field 'rate'")])
def test_mistakes_are_one_line(fields, message):
  with pytest.raises(errors.UserError, match=message):
    objectives.make("next_basket", num_items=N, known=NAMES, next_basket=fields)


def test_rows_must_fit_the_model():
  with pytest.raises(errors.UserError, match="length 16 do not fit model.max_len=12"):
    _make("basket_items").room(12)
