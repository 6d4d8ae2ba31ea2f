"""Draws by popularity: the distribution that is asked for, and sums that it leaves unbiased."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors, objectives
from recjax.data import proposals
from recjax.objectives import losses, negatives

N, K = 60, 12
POOL = np.arange(2, N + 1, 2, dtype=np.int32)  # the domain: even items
COUNTS = np.random.default_rng(0).zipf(1.3, N + 1).clip(0, 500) - 1  # some occur never


@functools.cache
def _resident(power):
  with jax.ensure_compile_time_eval():  # it may be asked for inside jit
    return jax.tree.map(jnp.asarray, {"pool": POOL, **proposals.popularity(COUNTS, POOL, power)})


def _wanted(power):
  weights = np.maximum(COUNTS[POOL], 1.0)**power
  return weights / weights.sum()


@pytest.mark.parametrize("seed", range(40))
def test_an_alias_table_says_what_the_weights_say(seed):
  rng = np.random.default_rng(seed)
  count = rng.integers(1, 60)
  weights = [np.ones(count), rng.integers(1, 4, count), rng.pareto(0.4, count) + 1e-3,
             np.full(count, 1e-9) + (np.arange(count) == count // 2)][seed % 4]
  weights = weights / weights.sum()
  chance, alias = proposals.alias_table(weights)
  assert (chance >= 0).all() and (chance <= 1).all()
  found = chance.astype(np.float64)
  np.add.at(found, alias, 1 - chance.astype(np.float64))
  np.testing.assert_allclose(found / count, weights, atol=2e-7)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_draws_follow_the_power_of_the_count(power):
  draws = np.asarray(jax.jit(lambda: negatives.by_popularity(
    jax.random.key(1), _resident(power), (4000, 5)))())
  assert (draws % 2 == 0).all()
  counts, want = np.bincount(draws.ravel(), minlength=N + 1)[POOL], draws.size * _wanted(power)
  assert ((counts - want)**2 / want).sum() < len(POOL) + 5 * np.sqrt(2 * len(POOL))
  np.testing.assert_allclose(_resident(power)["log_q"][POOL], np.log(_wanted(power)), rtol=1e-5)


def test_distinct_draws_of_a_large_pool_cost_no_ordering(monkeypatch):
  monkeypatch.setattr(negatives, "ORDERED", 20)
  draw = lambda key: negatives.uniform(key, jnp.asarray(POOL), (50, 8), distinct=True)
  assert " sort[" not in str(jax.make_jaxpr(draw)(jax.random.key(0)))
  counts = np.bincount(np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 40))).ravel(),
                       minlength=N + 1)[POOL]
  assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
  monkeypatch.setattr(negatives, "ORDERED", 30)
  assert all(len(set(row)) == 8 for row in np.asarray(draw(jax.random.key(0))))


def test_labels_of_the_batch_are_drawn_once_each():
  labels = np.zeros((6, 4), np.int32)
  labels[:, 1:3] = np.arange(12).reshape(6, 2) + 5
  draw = jax.jit(lambda key: negatives.of_batch(key, jnp.asarray(labels), 7))
  found = np.stack([draw(jax.random.key(k)) for k in range(200)])
  assert all(len(set(row)) == 7 for row in found) and set(found.ravel()) == set(range(5, 17))
  counts = np.bincount(found.ravel())[5:]
  assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
  all_of_them = np.sort(negatives.of_batch(jax.random.key(0), jnp.asarray(labels), 20))
  np.testing.assert_array_equal(all_of_them, [0] * 8 + list(range(5, 17)))


def _make(**fields):
  return objectives.make("causal_next_item", num_items=N, known=("causal_next_item",),
                         causal_next_item=dict(criterion="sampled_softmax", num_negatives=K,
                                               **fields))


def _sums(objective, draws, label, scores):
  """Returns [draws]: exp(loss) - 1 of a label with score 0, the estimated sum over all others."""
  rng = np.random.default_rng(9)
  # The batch whose labels are drawn in_batch: other positions, as often as in the data.
  others = rng.choice(POOL, (draws, 1, 2 * K), p=_wanted(1.0)).astype(np.int32)
  users = jnp.zeros(1, jnp.int32)
  def one(key, labels):
    drawn = objective.with_negatives(
      key, {"labels": labels, "items": labels, "users": users}, _resident(objective.popularity))
    only = jnp.zeros_like(labels).at[0, 0].set(label)
    def apply_fn(params, inputs, rng, *, positions, candidates):
      return tuple(jnp.where(ids == label, 0.0, params[ids]) for ids in candidates)
    return objective.loss(apply_fn, jnp.asarray(scores), {**drawn, "labels": only}, shards=1,
                          capacity=1, rng=None)[0]
  each = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), draws), jnp.asarray(others))
  return np.exp(np.asarray(each, np.float64)) - 1


@pytest.mark.parametrize("fields", [
  dict(proposal="popularity"), dict(proposal="popularity", power=1.0, negatives="row"),
  dict(proposal="popularity", negatives="batch"), dict(proposal="in_batch")])
@pytest.mark.parametrize("label", [2, 4])  # the most frequent of them, and another
def test_the_corrected_sum_is_unbiased(fields, label):
  # E[sum over the drawn of exp(score) / (K q)] = sum over all but the label of exp(score).
  label = POOL[np.argsort(-COUNTS[POOL])[label // 2 - 1]]
  scores = np.random.default_rng(4).normal(0, 1, N + 1).astype(np.float32)
  sums = _sums(_make(**fields), 6000, label, scores)
  want = np.exp(scores)[POOL].sum() - np.exp(scores[label])
  assert abs(sums.mean() - want) < 4 * sums.std() / np.sqrt(len(sums))
  assert sums.std() > 0.05 * want  # they do differ
  uncorrected = K * (_wanted(1.0 if "power" in fields or "in_batch" in fields.values() else 0.75)
                     * np.exp(scores)[POOL]).sum()
  assert abs(uncorrected - want) > 0.2 * want  # and the correction is none of nothing


def test_a_corrected_gradient_is_that_of_the_softmax_in_expectation():
  # For many negatives: the estimate is consistent, not only its sum unbiased.
  objective = _make(proposal="popularity")
  count, label = 10**6, int(POOL[5])
  scores = jnp.asarray(np.random.default_rng(4).normal(0, 1, N + 1), jnp.float32)
  drawn = negatives.by_popularity(jax.random.key(0), _resident(objective.popularity), (count,))
  expected = _resident(objective.popularity)["log_q"][drawn] + np.log(count)
  ours = jax.grad(lambda s: losses.sampled_cross_entropy(
    s[None, label][None], s[drawn][None], (drawn != label)[None], jnp.ones(1), offered=len(POOL),
    log_expected=expected)[0])(scores)
  want = jax.grad(lambda s: jax.nn.logsumexp(s[POOL]) - s[label])(scores)
  np.testing.assert_allclose(ours, want, atol=0.01)


@pytest.mark.parametrize("fields,says", [
  (dict(proposal="random"), "proposal.*uniform, popularity, in_batch"),
  (dict(proposal="popularity", unseen=True), "unseen negatives are a position's own and uniform"),
  (dict(proposal="popularity", power=-1), "power must be in 0..2"),
])
def test_mistakes_are_named(fields, says):
  with pytest.raises(errors.UserError, match=says):
    _make(**fields)


def test_gbce_keeps_to_what_it_is_calibrated_for():
  with pytest.raises(errors.UserError, match="calibrated for uniform"):
    objectives.make("masked_item", num_items=N, known=("masked_item",),
                    masked_item=dict(criterion="gbce", proposal="in_batch"))
  assert _make().popularity is None and _make(proposal="in_batch").popularity == 1
  softmax = objectives.make("masked_item", num_items=N, known=("masked_item",),
                            masked_item=dict(proposal="popularity"))
  assert softmax.popularity is None  # which needs no draws
