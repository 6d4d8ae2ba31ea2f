"""Random walks on a graph, all of a batch at once: uniform, or biased as node2vec's.

From node v, entered from t, node2vec goes to a neighbor x with a weight of 1 / p where x is t, 1
where x has an edge to t, and else 1 / q (Grover & Leskovec 2016, Section 3.2.2). Neighbors are
drawn uniformly and accepted with their weight's share of the largest one, again until one is: that
is the exact law, and no table of all pairs of edges is made. p = q = 1 is DeepWalk.
"""

import functools

import jax
import jax.numpy as jnp


def walk(rng, start, resident, *, length, p=1.0, q=1.0):
  """Returns int32 [B, length]: nodes from `start` [B] on, -1 after a node without neighbors.

  Args:
    rng: key of these walks.
    start: int32 [B].
    resident: {"neighbors" int32 [A], "node_begin" and "node_end" int32 [E]}, see `graphs`.
    length: nodes of a walk.
    p: how unlikely the way back is.
    q: how unlikely the way out is.
  """
  choose = _uniform if p == q == 1 else functools.partial(_biased, p=p, q=q)

  def move(carry, key):
    before, here = carry
    at = jnp.maximum(here, 0)
    alive = (here >= 0) & (resident["node_end"][at] > resident["node_begin"][at])
    there = jnp.where(alive, choose(key, before, at, alive, resident), -1)
    return (here, there), there

  first = (jnp.full_like(start, -1), start)
  _, rest = jax.lax.scan(move, first, jax.random.split(rng, length - 1))
  return jnp.concatenate([start[None], rest]).T


def is_edge(a, b, resident):
  """Returns bool [B]: whether node a has an edge to node b."""
  neighbors = resident["neighbors"]
  def halve(_, edges):
    low, high = edges
    middle = (low + high) // 2
    right = (low < high) & (neighbors[middle] < b)
    return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
  end = resident["node_end"][a]
  low, _ = jax.lax.fori_loop(0, len(neighbors).bit_length(), halve,
                             (resident["node_begin"][a], end))
  return (low < end) & (neighbors[jnp.minimum(low, len(neighbors) - 1)] == b)


def _uniform(key, before, here, alive, resident):
  del before, alive
  begin, end = resident["node_begin"][here], resident["node_end"][here]
  place = begin + jax.random.randint(key, here.shape, 0, jnp.maximum(end - begin, 1))
  return resident["neighbors"][jnp.minimum(place, len(resident["neighbors"]) - 1)]


def _biased(key, before, here, alive, resident, *, p, q):
  most = max(1 / p, 1.0, 1 / q)

  def draw(state):
    key, chosen, waiting = state
    key, which, take = jax.random.split(key, 3)
    x = _uniform(which, before, here, alive, resident)
    near = is_edge(x, jnp.maximum(before, 0), resident)
    weight = jnp.where(x == before, 1 / p, jnp.where(near, 1.0, 1 / q))
    weight = jnp.where(before < 0, most, weight)  # the first step has no way back
    taken = waiting & (jax.random.uniform(take, x.shape) * most < weight)
    return key, jnp.where(taken, x, chosen), waiting & ~taken

  return jax.lax.while_loop(lambda state: jnp.any(state[2]), draw, (key, here, alive))[1]
