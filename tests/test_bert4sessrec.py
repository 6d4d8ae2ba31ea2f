"""BERT4SessRec: clicks on items that are known by their content, new ones among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_responses

from recjax import errors, experiment, results, train, trees

HELD_OUT = {"held_out_items": (0.3, 0)}


def _clicks(**overrides):
  fields = {**HELD_OUT, "objective.click.of": "clicks", "eval.num_negatives": 5, **overrides}
  read = fields.pop("read", "mask")
  return tiny_responses.config({"click": 1.0}, model=tiny_responses.sessrec(read=read), **fields)


@functools.cache
def _model(read="mask"):
  """Returns (experiment of stage 2, parameters, their function) that tests share, compiled once."""
  exp = experiment.build(_clicks(read=read))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32),
                        exp.params_shapes())
  def ask(params, items, targets):
    inputs = {"items": items, "targets": targets, "users": jnp.zeros(len(items), jnp.int32)}
    return exp.apply_fn(params, inputs, None, head="click")
  return exp, params, jax.jit(ask)


SESSIONS = np.array([[0, 0, 0, 0, 0, 5, 6, 7], [0, 0, 0, 0, 8, 9, 10, 11]])


def test_new_items_have_scores_of_their_content():
  exp, params, ask = _model()
  cold, warm = np.flatnonzero(exp.data.held_out)[:2], np.flatnonzero(~exp.data.held_out)[1:3]
  targets = np.array([[*cold, *warm]] * 2)
  found = np.asarray(ask(params, SESSIONS, targets))
  assert np.isfinite(found).all() and len(set(found[0].tolist())) == 4
  assert not np.allclose(found[0], found[1])
  # No item has anything of its own: other rows of the table, the same scores.
  own = params["embed"]["item"]["embedding"].copy()
  own[1:exp.data.num_items + 1] += 1
  other = {**params, "embed": {**params["embed"], "item": {"embedding": own}}}
  np.testing.assert_allclose(found, ask(other, SESSIONS, targets), atol=1e-5)


def test_a_head_that_does_not_read_the_session_ranks_by_content_alone():
  exp, params, ask = _model()
  layer = params["head"]["click"]["layer_0"]
  kernel, width = layer["kernel"].copy(), exp.model.item_width
  kernel[:width] = kernel[2 * width:] = 0  # u, and u * v
  head = {"click": {**params["head"]["click"], "layer_0": {**layer, "kernel": kernel}}}
  found = np.asarray(ask({**params, "head": head}, SESSIONS, np.array([[1, 20, 33, 40]] * 2)))
  np.testing.assert_allclose(found[0], found[1], atol=1e-6)
  assert len(set(found[0].tolist())) == 4


@pytest.mark.parametrize("read", ["mask", "cls", "mean"])
def test_sessions_are_read_from_their_end(read):
  exp, params, ask = _model(read)
  targets = np.array([[1, 20, 33, 40]] * 2)
  found = ask(params, SESSIONS, targets)
  if read != "cls":  # Padding changes nothing: positions are counted from the end.
    np.testing.assert_allclose(found, ask(params, SESSIONS[:, 4:], targets), atol=1e-5)
  # What is appended takes the place of the oldest of `max_len` items.
  whole = np.arange(1, 17).reshape(2, exp.model.max_len)
  other = whole.copy()
  other[:, 0] = 30
  same = np.allclose(ask(params, whole, targets), ask(params, other, targets), atol=1e-6)
  assert same == (read != "mean")


def test_what_does_not_fit_is_refused():
  for overrides, message in (({"aggregate": "sum"}, "content alone"), ({"features": ()}, "content"),
                             ({"user_width": 4}, "user_width=0"),
                             ({"read": "cls", "extra_tokens": 0}, "extra_tokens=1")):
    with pytest.raises(errors.UserError, match=message):
      experiment.build(tiny_responses.config({"click": 1.0},
                                             model=tiny_responses.sessrec(**overrides)))


def test_stage_two_takes_over_all_but_the_head():
  target, params, _ = _model()
  source = experiment.build(tiny_responses.config(
    {"masked_item": 1.0}, "tgt", model=tiny_responses.sessrec(),
    **{"eval.metric": "full/ndcg@10", "eval.protocols": ("full",)}))
  plan = tiny_responses.plan(source, target, "model")
  assert {e.target.split("/")[0] for e in plan if e.source} == {"embed", "encoder"}
  assert {e.target for e in plan if not e.source} == {
    leaf for leaf in trees.flatten(params) if leaf.startswith("head/click/")}
  words = next(e for e in plan if e.target == "embed/features/title/words/embedding")
  assert words.vocabulary == "feature/title" and (words.rows >= 0).all()
  assert trees.count(params["head"]) == (3 * 8 + 1) * 6 + 6 + 1


@functools.cache
def _sessions():
  """Returns the workdir of stage 1."""
  workdir = tiny.root() / "sessions"
  train.train_and_evaluate(tiny_responses.config(
    {"masked_item": 1.0}, "src", model=tiny_responses.sessrec(), **HELD_OUT,
    **{"eval.metric": "full/ndcg@10", "eval.protocols": ("full",)}), workdir)
  return workdir


@pytest.mark.slow
def test_clicks_start_from_sessions_and_new_items_are_judged_apart():
  source, workdir = _sessions(), tiny.root() / "clicks"
  report = train.train_and_evaluate(_clicks(**{
    "transfer.checkpoint": str(source), "transfer.mode": "model",
    "transfer.freeze": "(embed|encoder)/.*"}), workdir)
  assert report["slices"]["popularity"]["cold"]["users"] > 3
  assert 0 <= report["slices"]["popularity"]["cold"]["test"]["click"]["auc"] <= 1
  assert report["slices"]["popularity"]["cold"]["popularity"]["click"]["auc"] == 0.5
  entries = results.json.loads((workdir / "restore_report.json").read_text())["leaves"]
  assert {e["target"].split("/")[0] for e in entries if e["source"] == "fresh"} == {"head"}
  assert {e["target"].split("/")[0] for e in entries if e["trainable"]} == {"head"}
  old, new = tiny.state(source), tiny.state(workdir)
  shared = [name for name in old if name.startswith(("params/encoder/", "params/embed/features/"))]
  assert shared and all(np.array_equal(old[name], new[name]) for name in shared)
