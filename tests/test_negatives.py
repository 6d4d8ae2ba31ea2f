"""Negatives: never what a user has seen, uniform over the rest, for all kinds of users."""

import functools

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.data import batches
from recjax.objectives import negatives

N = 40
DOMAIN = np.array([item for item in range(1, N + 1) if item % 4])  # 30 items
SEEN = {  # train items by user; repeats, other domains, the first and the last of the pool
  1: [1, 2, 3, 3, 1], 2: [], 3: [39, 38, 37, 4, 8], 4: [5, 17, 5, 29], 5: [4, 8, 12],
  6: DOMAIN[:-1].tolist(), 7: DOMAIN[1:].tolist(), 8: DOMAIN.tolist()}


@functools.cache
def _resident(pool):
  users = [(SEEN[user], [2], [5]) for user in sorted(SEEN)]
  data = evaluator_data.dataset(users, N, in_domain=DOMAIN)
  columns = ("seen", "global") if pool == "global" else ("seen",)
  return jax.tree.map(jnp.asarray, batches.resident(data, columns=columns))


@functools.cache
def _draws(pool, count=4000):
  """Returns int32 [users, count], row u - 1 of user u."""
  users = jnp.array(sorted(SEEN), jnp.int32)
  return np.asarray(jax.jit(lambda r: negatives.unseen(jax.random.key(0), users, r, count))(
    _resident(pool)))


def _unseen(user, pool):
  return np.setdiff1d(DOMAIN if pool == "domain" else np.arange(1, N + 1), SEEN[user])


@pytest.mark.parametrize("pool", ["domain", "global"])
@pytest.mark.parametrize("user", sorted(SEEN))
def test_draws_are_uniform_over_what_is_unseen(pool, user):
  draws, unseen = _draws(pool)[user - 1], _unseen(user, pool)
  if not len(unseen):  # No item is left: 0, which is none.
    assert (draws == 0).all()
    return
  assert set(draws) == set(unseen)
  counts = np.bincount(draws, minlength=N + 1)[unseen]
  expected, freedom = len(draws) / len(unseen), len(unseen) - 1
  assert ((counts - expected)**2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom) + 1e-9


def test_rejection_draws_the_same_distribution():
  # The plain way: draw from the pool until it is unseen. Two samples of one distribution.
  rng = np.random.default_rng(0)
  for user in (1, 4, 6):
    plain = rng.choice(DOMAIN, 40000)
    plain = plain[~np.isin(plain, SEEN[user])][:1000]
    ours = _draws("domain")[user - 1][:len(plain)]
    a, b = (np.bincount(x, minlength=N + 1) for x in (plain, ours))
    some = a + b > 0
    freedom = max(some.sum() - 1, 1)
    assert ((a - b)[some]**2 / (a + b)[some]).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_every_place_of_a_large_catalog_is_found():
  # Each unseen item is the answer to exactly one rank: enumerate them.
  rng, items = np.random.default_rng(1), 5000
  seen = np.unique(rng.integers(1, items + 1, 900))
  data = evaluator_data.dataset([([7], [], []), (seen, [], []), ([1, 2], [], [])], items)
  table = batches.resident(data, columns=("seen",))
  begin, end = table["seen_begin"][2], table["seen_end"][2]
  gaps = table["seen_gaps"][begin:end]
  assert (np.diff(gaps) >= 0).all() and end - begin == len(seen)
  ranks = np.arange(items - len(seen))
  found = table["pool"][ranks + np.searchsorted(gaps, ranks, side="right")]
  np.testing.assert_array_equal(found, np.setdiff1d(np.arange(1, items + 1), seen))
  draws = np.asarray(negatives.unseen(
    jax.random.key(2), jnp.array([2]), jax.tree.map(jnp.asarray, table), 20000))
  assert not np.isin(draws, seen).any() and draws.min() >= 1 and draws.max() <= items
  assert len(np.unique(draws)) > 0.98 * len(found)  # 1 - exp(-20000 / 4100)


def test_an_unknown_user_has_seen_nothing():
  draws = np.asarray(negatives.unseen(jax.random.key(0), jnp.array([0]), _resident("domain"), 2000))
  assert set(draws[0]) == set(DOMAIN)


def test_draws_follow_the_key_and_are_apart():
  users = jnp.array([2, 2], jnp.int32)
  one, again, other = (np.asarray(negatives.unseen(jax.random.key(key), users, _resident("domain"),
                                                   500)) for key in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert (one == other).mean() < 0.1 and (one[0] == one[1]).mean() < 0.1


def test_nobody_has_seen_anything_of_the_pool():
  data = evaluator_data.dataset([([4, 8], [], [])], N, in_domain=DOMAIN)
  table = jax.tree.map(jnp.asarray, batches.resident(data, columns=("seen",)))
  draws = np.asarray(negatives.unseen(jax.random.key(0), jnp.array([1]), table, 2000))
  assert set(draws[0]) == set(DOMAIN)
