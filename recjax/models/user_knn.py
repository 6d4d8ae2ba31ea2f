"""UserKNN: what a user's neighbors chose, no training (Herlocker et al. 1999, on choices).

With a history in another domain (`config.history`) neighbors are those who chose alike there, and
their items of the run's own domain are what is scored: users who are new to it have neighbors too.
Letters: B batch, N items, U users, K neighbors, L items of a user that count.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.models import item_knn
from recjax.models import untrained

VARIANTS = {"user_knn": dict()}


@dataclasses.dataclass(frozen=True)
class UserKNN(untrained.Untrained):
  """Scores an item by the similarity of those of a user's neighbors who own it.

  Parameters are computed from the data, not trained: of users 1..U the numbers of their neighbors
  (0 where they have fewer than K), their similarities, and what they own (0 after the last item).
  """
  num_items: int  # N
  num_users: int  # U
  neighbors: int = 100  # K
  shrink: float = 10.0  # in the denominator: similarities that few items speak for count less
  longest: int = 100  # L, the latest ones
  max_len: int = 1  # histories are not read
  dtype: str = "float32"

  def fit(self, data):
    """Returns {"user": {"neighbors" int32 [U, K], "similarity" float32 [U, K], "items" int32
    [U, L]}}.

    similarity(u, v) = |I_u and I_v| / (sqrt(|I_u| |I_v|) + shrink), I_u the items that u owns in
    the train split (of a joined history: there). Only those who own something to recommend, in
    train or in "targets", are neighbors; they come by falling similarity, equal ones by number.

    Args:
      data: `sequences.Dataset`.
    """
    items = self._items(data)
    voters = np.flatnonzero((items > 0).any(axis=1)) + 1
    found = item_knn.nearest(item_knn.users_by_items(data), voters, count=self._count,
                             shrink=self.shrink)
    return {"user": {**found, "items": items}}

  def _items(self, data):
    """Returns int32 [U, L]: what every user owns of what can be recommended."""
    begin, end = data.span("targets" if "targets" in data.parts else "train")
    place = np.maximum(begin, end - self.longest)[1:, None] + np.arange(self.longest)
    rows = np.asarray(data.items)
    found = np.where(place < end[1:, None], rows[np.minimum(place, len(rows) - 1)], 0)
    return found.astype(np.int32)

  def init(self, key, items, users, tables):
    """Returns {"params": of the shapes of `fit`, all zeros}."""
    del key, items, users, tables
    shape = (self.num_users, self._count)
    return {"params": {"user": {
      "neighbors": jnp.zeros(shape, jnp.int32), "similarity": jnp.zeros(shape, jnp.float32),
      "items": jnp.zeros((self.num_users, self.longest), jnp.int32)}}}

  def apply(self, variables, items, users, tables, *, train=False, rngs=None):
    """Returns (scores float32 [B, N + 1], {}); all are 0 for an unknown user.

    Args:
      variables: {"params": of `fit`}.
      items: int32 [B, T], not looked at, as are `tables`, `train` and `rngs`.
      users: int32 [B].
    """
    del items, tables, train, rngs
    table = variables["params"]["user"]
    take = lambda name, ids: jnp.take(table[name], jnp.maximum(ids - 1, 0), axis=0)
    neighbors = take("neighbors", users)  # [B, K]
    votes = jnp.where((users > 0)[:, None] & (neighbors > 0), take("similarity", users), 0)
    owned = take("items", neighbors)  # [B, K, L]
    scores = jnp.zeros((len(users), self.num_items + 1), jnp.float32)
    rows = jnp.arange(len(users))[:, None, None]
    return scores.at[rows, owned].add(jnp.broadcast_to(votes[..., None], owned.shape)), {}

  @property
  def _count(self):
    return min(self.neighbors, self.num_users)

  def check(self):
    """Raises UserError where a number makes no sense."""
    if min(self.neighbors, self.longest) < 1 or self.shrink < 0:
      raise errors.UserError("config.model: user_knn needs neighbors and longest of at least 1 and "
                             f"shrink of at least 0, not {(self.neighbors, self.longest)} and "
                             f"{self.shrink}")

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {f"user/{name}": ("user", 0) for name in ("neighbors", "similarity", "items")}
