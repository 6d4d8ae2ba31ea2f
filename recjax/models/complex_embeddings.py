"""ComplEx: a bilinear form of complex vectors (Trouillon et al. 2016).

Letters: B queries, K candidates, E entities, R relations, C complex width.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import graph_layers, layers

VARIANTS = {
  "fb15k": dict(width=200),  # the authors' sizes
  "wn18": dict(width=150),
}


class ComplEx(graph_layers.LinkModel):
  """Re(sum h r conj(t)). Parameters: entity/ [E, 2 C] and relation/ [R, 2 C], real parts first."""
  width: int = 200  # C
  scale: float = 1.0  # of the start, N(0, scale)
  dropout: float = 0.0  # of what a query says, in training
  penalty_power: int = 2  # 3: of moduli, as Lacroix et al. 2018 (N3)

  @nn.compact
  def __call__(self, given, relations, asks_head, mask, tables, *, candidates=None,
               penalize=False, train=False):
    """Returns (scores [B, K], {"query": [B, 2 C]}); see `graph_layers.LinkModel`.

    The penalty is the mean of squares of all vectors that a row uses, or of their cubed moduli;
    where all entities are candidates, of the given entity and the relation.
    """
    del mask, tables
    start = nn.initializers.normal(self.scale)
    table = graph_layers.Table(self.num_entities, 2 * self.width, start, name="entity")()
    relation = graph_layers.Table(self.num_relations, 2 * self.width, start, name="relation")()
    e, r = jnp.take(table, given, axis=0), jnp.take(relation, relations, axis=0)
    query = combine(e, r, asks_head)
    seen = layers.Dropout(self.dropout)(query, train=train)
    scores = graph_layers.dot(seen, table, candidates)
    if not penalize:
      return scores, {"query": query}
    used = [self._size(e), self._size(r)]
    if candidates is not None:
      used.append(jnp.mean(self._size(jnp.take(table, candidates, axis=0)), -1))
    return (scores, sum(used) / len(used)), {"query": query}

  def _size(self, x):
    """Returns [...] of [..., 2 C]: the mean over coordinates of what the penalty weighs."""
    if self.penalty_power == 2:
      return jnp.mean(jnp.square(x), -1)
    real, imaginary = jnp.split(x, 2, -1)
    return jnp.mean(jnp.power(jnp.square(real) + jnp.square(imaginary), 1.5), -1)

  def check(self):
    """Raises UserError where the penalty is of another power."""
    if self.penalty_power not in (2, 3):
      raise errors.UserError("config.model: penalty_power must be 2 or 3, not "
                             f"{self.penalty_power!r}")


def combine(e, r, asks_head):
  """Returns q [B, 2 C] with q . t = Re(sum h r conj(t)), whichever of h and t is asked.

  Re(sum h r conj(t)) = Re(sum (h r) conj(t)) = Re(sum h conj(t conj(r))).

  Args:
    e: [B, 2 C], the given entity.
    r: [B, 2 C].
    asks_head: bool [B].
  """
  (a, b), (c, d) = jnp.split(e, 2, -1), jnp.split(r, 2, -1)
  d = jnp.where(asks_head[:, None], -d, d)
  return jnp.concatenate([a * c - b * d, a * d + b * c], -1)
