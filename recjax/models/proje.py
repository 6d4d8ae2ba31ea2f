"""ProjE: candidates projected onto a combination of entity and relation (Shi & Weninger 2017).

Letters: B queries, K candidates, E entities, R relations, D width.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax.models import graph_layers, layers

VARIANTS = {"paper": dict(width=200, dropout=0.5)}


class ProjE(graph_layers.LinkModel):
  """c . tanh(D_e e + D_r r + b_c), with diagonals D and offset b_c of each side that is asked.

  Parameters: entity/, relation/ and combine/{entity,relation,bias} [2, D], tails first; bias [2]
  with `output_bias`, which the paper has and the released code has not.
  """
  width: int = 200  # D
  dropout: float = 0.5  # after tanh
  output_bias: bool = False
  objectives = ("candidate_softmax", "one_to_all", "logistic")

  @nn.compact
  def __call__(self, given, relations, asks_head, mask, tables, *, candidates=None,
               penalize=False, train=False):
    """Returns (scores [B, K], {"query": [B, D]}); see `graph_layers.LinkModel`.

    The penalty is the sum of the absolute values of all parameters, the same in every row.
    """
    del mask, tables
    start = graph_layers.uniform_start
    table = graph_layers.Table(self.num_entities, self.width, start, name="entity")()
    relation = graph_layers.Table(self.num_relations, self.width, start, name="relation")()
    combine = _Combine(self.width, name="combine")()
    side = asks_head.astype(jnp.int32)
    scale_e, scale_r, bias = (combine[name][side] for name in ("entity", "relation", "bias"))
    query = jnp.tanh(scale_e * jnp.take(table, given, axis=0)
                     + scale_r * jnp.take(relation, relations, axis=0) + bias)
    seen = layers.Dropout(self.dropout)(query, train=train)
    scores = graph_layers.dot(seen, table, candidates)
    if self.output_bias:
      scores += self.param("bias", nn.initializers.zeros_init(), (2,))[side][:, None]
    if not penalize:
      return scores, {"query": query}
    size = sum(jnp.sum(jnp.abs(x)) for x in (table, relation, *combine.values()))
    return (scores, jnp.full(len(given), size)), {"query": query}


class _Combine(nn.Module):
  """The two sets of diagonals and offsets, [2, D] each."""
  width: int

  @nn.compact
  def __call__(self):
    start = graph_layers.uniform_start
    starts = {"entity": start, "relation": start, "bias": nn.initializers.zeros_init()}
    return {name: self.param(name, fn, (2, self.width)) for name, fn in starts.items()}
