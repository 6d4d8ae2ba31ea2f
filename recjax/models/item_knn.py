"""ItemKNN: items and their neighbors, no training (Sarwar et al. 2001, Deshpande & Karypis 2004).

Letters: B batch, T positions, N items, K neighbors.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from recjax import errors
from recjax.models import untrained

VARIANTS = {"item_knn": dict()}
BLOCK = 1024  # sets whose similarities to others are in memory at once
DENSE = 2**26  # entries of the largest square matrix that scoring lays out
FLOPS = 1000  # multiplications of a matmul in the time of one scattered addition, on a CPU


@dataclasses.dataclass(frozen=True)
class ItemKNN(untrained.Untrained):
  """Scores an item by its similarity to the items of the history whose neighbor it is.

  Parameters are computed from the data, not trained: for every token of the item vocabulary the ids
  of its neighbors (0 where it has fewer than K) and their similarities.
  """
  num_items: int  # N
  num_users: int  # U
  neighbors: int = 100  # K
  shrink: float = 10.0  # in the denominator: similarities that few users speak for count less
  decay: float = 1.0  # what an item of the history weighs, relative to the one after it
  max_len: int = 1000  # most recent items that count
  dtype: str = "float32"

  def fit(self, data):
    """Returns the parameters {"item": {"neighbors" int32, "similarity" float32, [N + 2, K] each}}.

    similarity(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrink), U_i the users who own i in the
    train split; neighbors come by falling similarity, equal ones by rising id. In memory are the
    interactions and the pairs that BLOCK items are in, never all N^2.

    Args:
      data: `sequences.Dataset`.
    """
    owners = users_by_items(data).T.tocsr()
    found = nearest(owners, np.arange(self.num_items + 1), count=self._count, shrink=self.shrink)
    return {"item": {name: np.pad(x, ((1, 1), (0, 0))) for name, x in found.items()}}

  def init(self, key, items, users, tables):
    """Returns {"params": of the shapes of `fit`, all zeros}."""
    del key, items, users, tables
    shape = (self.num_items + 2, self._count)
    return {"params": {"item": {"neighbors": jnp.zeros(shape, jnp.int32),
                                "similarity": jnp.zeros(shape, jnp.float32)}}}

  def apply(self, variables, items, users, tables, *, train=False, rngs=None):
    """Returns (scores float32 [B, N + 1], {}).

    Args:
      variables: {"params": of `fit`}.
      items: int32 [B, T] left-padded ids.
      users: not looked at, as are `tables`, `train` and `rngs`.
    """
    del users, tables, train, rngs
    neighbors, similarity = (variables["params"]["item"][x] for x in ("neighbors", "similarity"))
    batch, length = items.shape
    rows = jnp.arange(batch)[:, None]
    weight = jnp.where(items > 0, jnp.float32(self.decay)**jnp.arange(length)[::-1], 0)  # [B, T]
    scores = jnp.zeros((batch, self.num_items + 1), jnp.float32)
    if (self.num_items + 1)**2 <= min(DENSE, FLOPS * length * self._count):
      # Long histories and few items: a product with all similarities beats adding votes one by one.
      square = jnp.zeros((self.num_items + 1,) * 2, jnp.float32)
      square = square.at[jnp.arange(self.num_items + 1)[:, None], neighbors[:-1]].add(
        similarity[:-1])
      return scores.at[rows, items].add(weight) @ square, {}
    votes = jnp.take(similarity, items, axis=0) * weight[..., None]  # [B, T, K]
    return scores.at[rows[..., None], jnp.take(neighbors, items, axis=0)].add(votes), {}

  @property
  def _count(self):
    return min(self.neighbors, self.num_items)

  def check(self):
    """Raises UserError where a number makes no sense."""
    if self.neighbors < 1 or self.max_len < 1 or self.shrink < 0 or not 0 < self.decay <= 1:
      raise errors.UserError(
        "config.model: item_knn needs neighbors and max_len of at least 1, shrink of at least 0 "
        f"and decay in (0, 1], not {(self.neighbors, self.max_len, self.shrink, self.decay)}")

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {"item/neighbors": ("item", 0), "item/similarity": ("item", 0)}


def nearest(sets, among, *, count, shrink):
  """Returns {"neighbors" int32 [n, K], "similarity" float32 [n, K]} of the sets 1..n.

  similarity(i, j) = |S_i and S_j| / (sqrt(|S_i| |S_j|) + shrink); neighbors come by falling
  similarity, equal ones by rising number, 0 where there are fewer than K. In memory are the pairs
  that BLOCK sets are in, never all n^2.

  Args:
    sets: sparse [n + 1, M] in rows, 1 where a set has a member.
    among: int [k], ascending numbers of the sets that can be neighbors.
    count: K.
    shrink: see above.
  """
  norms, others = np.sqrt(np.asarray(sets.sum(axis=1)).ravel()), sets[among].T.tocsr()
  shape = (sets.shape[0] - 1, count)
  neighbors, similarity = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for low in range(1, sets.shape[0], BLOCK):
    high = min(low + BLOCK, sets.shape[0])
    both = (sets[low:high] @ others).tocsr()  # members in common
    one, other = np.repeat(np.arange(low, high), np.diff(both.indptr)), among[both.indices]
    values = both.data / (norms[one] * norms[other] + shrink)
    values[other == one] = 0  # nobody is its own neighbor
    for row in range(low, high):
      here = slice(*both.indptr[row - low:row - low + 2])
      best = np.lexsort((other[here], -values[here]))[:count]
      neighbors[row - 1, :len(best)] = other[here][best]
      similarity[row - 1, :len(best)] = values[here][best]
  neighbors[similarity == 0] = 0
  return {"neighbors": neighbors, "similarity": similarity}


def users_by_items(data):
  """Returns the sparse matrix [U + 1, N + 1] of who owns what in the train split, all ones."""
  begin, end = data.span("train")
  owner = np.repeat(np.arange(len(begin)), np.diff(data.offsets))
  row = np.arange(len(owner))
  train = (row >= begin[owner]) & (row < end[owner])
  owner, items = owner[train], np.asarray(data.items)[train]
  owned = sparse.csr_matrix((np.ones(len(items), np.float32), (owner, items)),
                            shape=(len(begin), data.num_items + 1))
  owned.sum_duplicates()
  owned.data[:] = 1
  return owned
