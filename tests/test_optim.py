"""Optimizers by path rules: what is frozen, clipped, scaled, decayed; schedules at their ends."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from recjax import errors
from recjax import optim
from recjax import trees

DEFAULTS = dict(name="adam", lr=0.1, b1=0.9, b2=0.999, eps=1e-8, momentum=0.9, weight_decay=0.0,
                clip_norm=None, decay="constant", final_lr_scale=0.0, warmup_steps=None, rules=())
PARAMS = {"embed": {"item": jnp.full((4, 3), 2.0), "user": jnp.full((2, 3), -1.0)},
          "head": {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.zeros(4)}}
GRADS = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1).reshape(x.shape), PARAMS)


def _config(**kw):
  return ml_collections.ConfigDict({**DEFAULTS, **kw})


def _steps(config, *, params=PARAMS, grads=GRADS, count=1, extra_rules=()):
  """Returns (params, optimizer state, updates of the last step)."""
  schedule = optim.make_schedule(config, total_steps=10)
  tx = optim.make(config, params, schedule=schedule,
                  plan=optim.plan(config, params, extra_rules=extra_rules))
  state = tx.init(params)
  for _ in range(count):
    updates, state = tx.update(grads, state, params)
    params = optim.apply_updates(params, updates)
  return params, state, updates


def _leaf(tree, name):
  return np.asarray(trees.flatten(tree)[name])


# Rules.


def test_frozen_leaves_do_not_move_and_own_no_slots():
  config = _config(rules=(("embed/.*", {"freeze": True}),))
  params, state, _ = _steps(config, count=3)
  for name, before in trees.flatten(PARAMS).items():
    after = _leaf(params, name)
    assert np.array_equal(after, before) == name.startswith("embed"), name
  _, whole, _ = _steps(_config())
  slots = lambda state: [x for x in jax.tree.leaves(state) if x.ndim]
  trained = sum(x.size for name, x in trees.flatten(PARAMS).items() if name.startswith("head"))
  assert sum(x.size for x in slots(state)) == 2 * trained  # two moments of what is trained
  assert sum(x.size for x in slots(whole)) == 2 * trees.count(PARAMS)


def test_everything_may_be_frozen():
  params, state, _ = _steps(_config(clip_norm=1.0), extra_rules=((".*", {"freeze": True}),))
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  assert not [x for x in jax.tree.leaves(state) if x.ndim]


@pytest.mark.parametrize("freeze", [False, True])
def test_the_clipped_norm_is_of_trained_leaves_alone(freeze):
  rules = (("embed/.*", {"freeze": True}),) if freeze else ()
  config = _config(name="sgd", momentum=0.0, lr=1.0, clip_norm=0.5, rules=rules)
  _, _, updates = _steps(config)
  assert float(optim.global_norm(updates)) == pytest.approx(0.5, rel=1e-5)
  # And a gradient within the bound passes whole, however large those of frozen leaves are.
  small = {"embed": GRADS["embed"], "head": jax.tree.map(lambda g: g * 1e-4, GRADS["head"])}
  _, _, updates = _steps(config, grads=small)
  np.testing.assert_allclose(
    _leaf(updates, "head/kernel") == -_leaf(small, "head/kernel"), freeze)


def test_options_apply_to_their_leaves():
  config = _config(name="sgd", momentum=0.0, lr=0.1, weight_decay=0.5, rules=(
    ("head/bias", {"weight_decay": 0.0}), ("head/.*", {"lr_scale": 10.0})))
  _, _, updates = _steps(config)
  for name, lr, decay in (("embed/item", 0.1, 0.5), ("head/bias", 0.1, 0.0),
                          ("head/kernel", 1.0, 0.5)):
    want = -lr * (_leaf(GRADS, name) + decay * _leaf(PARAMS, name))
    np.testing.assert_allclose(_leaf(updates, name), want, rtol=1e-5)


def test_extra_rules_come_first():
  config = _config(rules=(("embed/.*", {"lr_scale": 2.0}),))
  plan = optim.plan(config, PARAMS, extra_rules=(("embed/user", {"freeze": True}),))
  assert plan == {
    "embed/user": {**optim.OPTIONS, "freeze": True},
    "embed/item": {**optim.OPTIONS, "lr_scale": 2.0},
    "head/kernel": optim.OPTIONS, "head/bias": optim.OPTIONS}


@pytest.mark.parametrize("rules,says", [
  ((("nothing/.*", {"freeze": True}),), "nothing"),
  (((".*", {}), ("head/.*", {"freeze": True})), "head/"),
  (((".*", {"frozen": True}),), "frozen.*freeze"),
])
def test_bad_rules(rules, says):
  with pytest.raises(errors.UserError, match=says):
    optim.plan(_config(rules=rules), PARAMS)


@pytest.mark.parametrize("field,known", [("name", "adamw"), ("decay", "cosine")])
def test_unknown_names_list_the_known(field, known):
  with pytest.raises(errors.UserError, match=f"optim.{field}.*{known}"):
    _steps(_config(**{field: "adamax"}))


# Update rules.


def test_adam_is_the_papers():
  # Kingma & Ba 2015, Algorithm 1, in float64.
  config = _config()
  params, _, _ = _steps(config, count=3)
  p, g = (np.asarray(t["head"]["kernel"], np.float64) for t in (PARAMS, GRADS))
  m = v = 0
  for t in (1, 2, 3):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  np.testing.assert_allclose(params["head"]["kernel"], p, rtol=1e-4)


def test_adam_decays_the_gradient_and_adamw_the_weight():
  still = jax.tree.map(jnp.zeros_like, GRADS)
  _, _, coupled = _steps(_config(name="adam", weight_decay=0.01), grads=still)
  _, _, apart = _steps(_config(name="adamw", weight_decay=0.01), grads=still)
  # Adam normalizes the decay away: a full step; adamw: lr * decay * weight.
  np.testing.assert_allclose(coupled["embed"]["item"], np.full((4, 3), -0.1), rtol=1e-3)
  np.testing.assert_allclose(apart["embed"]["item"], np.full((4, 3), -0.1 * 0.01 * 2.0), rtol=1e-5)
  for name in ("adam", "adamw"):
    _, _, without = _steps(_config(name=name), grads=still)
    assert float(optim.global_norm(without)) == 0


def test_sgd_has_momentum():
  _, _, updates = _steps(_config(name="sgd", momentum=0.5, lr=1.0), count=3)
  np.testing.assert_allclose(updates["head"]["bias"], -1.75 * GRADS["head"]["bias"], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_adagrad_does_not_see_how_large_gradients_are(scale):
  """Duchi et al. 2011: lr g / sqrt(sum of g^2), from no sum; optax would begin with 0.1."""
  grads = jax.tree.map(lambda g: scale * g, GRADS)
  params, _, updates = _steps(_config(name="adagrad", eps=0.0), grads=grads, count=4)
  for name, before in trees.flatten(PARAMS).items():
    np.testing.assert_allclose(_leaf(updates, name), -0.1 / np.sqrt(4), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
      _leaf(params, name), before - 0.1 * sum(n ** -0.5 for n in (1, 2, 3, 4)), rtol=1e-5)


def test_the_rate_follows_the_schedule_step_by_step():
  config = _config(name="sgd", momentum=0.0, lr=1.0, decay="linear", warmup_steps=4)
  schedule = optim.make_schedule(config, total_steps=10)
  for count in (1, 3, 4, 5, 8):
    _, _, updates = _steps(config, count=count)
    want = -schedule(count - 1) * GRADS["head"]["bias"]
    np.testing.assert_allclose(updates["head"]["bias"], want, rtol=1e-5)


# Schedules.


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "rsqrt"])
@pytest.mark.parametrize("warmup", [None, 1, 2, 20])
@pytest.mark.parametrize("last", [0.0, 0.25])
def test_schedules_reach_their_ends(decay, warmup, last):
  total, peak = 100, 0.2
  schedule = optim.make_schedule(
    _config(lr=peak, decay=decay, warmup_steps=warmup, final_lr_scale=last), total_steps=total)
  rates = np.array([float(schedule(step)) for step in range(total + 1)])
  steps = warmup or 0
  ramp = peak * np.arange(1, steps + 1) / max(steps, 1)
  np.testing.assert_allclose(rates[:steps], ramp, rtol=1e-5)
  assert rates[max(steps - 1, 0)] == pytest.approx(peak, rel=1e-5)
  assert rates[steps] == pytest.approx(peak, rel=1e-5)
  assert (np.diff(rates[steps:]) <= 1e-8).all()
  if decay in ("linear", "cosine"):
    assert rates[total] == pytest.approx(peak * last, abs=1e-7)
    assert rates[total - 1] > rates[total]
    middle = (steps + total) // 2
    if (steps + total) % 2 == 0:
      assert rates[middle] == pytest.approx(peak * (1 + last) / 2, rel=1e-4)
  elif decay == "rsqrt":
    span = max(steps, 1)
    want = peak * np.sqrt(span / (span + np.arange(total + 1 - steps)))
    np.testing.assert_allclose(rates[steps:], np.maximum(want, peak * last), rtol=1e-5)
  else:
    assert (rates[steps:] == rates[steps]).all()


def test_warmup_has_units():
  config = _config(lr=1.0)
  del config.warmup_steps
  config.warmup_epochs = 2
  schedule = optim.make_schedule(config, total_steps=100, batch_size=10, examples=45)
  assert float(schedule(8)) < 1 == float(schedule(9))  # 10 steps of warm-up
  config = _config(lr=1.0, warmup_percent=10)
  assert float(optim.make_schedule(config, total_steps=50)(3)) == pytest.approx(0.8)


def test_both_units_of_warmup_are_an_error():
  with pytest.raises(errors.UserError, match="exactly one.*set: steps, percent"):
    optim.make_schedule(_config(warmup_steps=1, warmup_percent=1), total_steps=10)
