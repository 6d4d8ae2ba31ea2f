"""ComplEx: a bilinear form of complex vectors (Trouillon et al. 2016).

Letters: B queries, K candidates, E entities, R relations, C complex width.
"""

import flax.linen as nn
import jax.numpy as jnp

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

  @nn.compact
  def __call__(self, given, relations, asks_head, mask, tables, *, candidates=None,
               penalize=False, train=False):
    """Returns (scores [B, K], {"query": [B, 2 C]}); see `graph_layers.LinkModel`.

    The penalty is the mean of squares of all vectors that a row uses.
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
    used = [jnp.mean(jnp.square(e), -1), jnp.mean(jnp.square(r), -1)]
    if candidates is not None:
      used.append(jnp.mean(jnp.square(jnp.take(table, candidates, axis=0)), (-2, -1)))
    return (scores, sum(used) / len(used)), {"query": query}


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
