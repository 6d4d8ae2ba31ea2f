"""Vectors of the nodes of a social graph: DeepWalk, node2vec, LINE.

DeepWalk (Perozzi et al. 2014), node2vec (Grover & Leskovec 2016) and LINE (Tang et al. 2015) learn
the same parameters from different pairs of nodes: walks (`objectives.skip_gram`) or edges
(`objectives.edge_sampling`). Letters: B rows, L nodes of a row, K negatives, E nodes, D width.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import graph_layers

ORDERS = ("first", "second")
VARIANTS = {
  "deepwalk": dict(width=128, orders=("second",)),
  "line": dict(width=100, orders=("first", "second")),  # each order has its own vectors
  "line_first": dict(width=100, orders=("first",)),
  "line_second": dict(width=100, orders=("second",)),
}


class NodeVectors(graph_layers.LinkModel):
  """Products of a node's vector with those of its contexts.

  Of the first order a context has the same vector as a node: nodes that are joined come close. Of
  the second it has one of its own: nodes with the same neighbors come close. Parameters: first/,
  second/ and context/, as `orders` says.
  """
  width: int = 128  # D, of each order
  orders: tuple = ("second",)
  objectives = ("skip_gram", "edge_sampling")

  @nn.compact
  def __call__(self, given, contexts, negatives, tables, *, compare=False, train=False):
    """Returns (scores, {}).

    Scores are a tuple, an entry for each order, of (products with contexts [B, L, M], with
    negatives [B, L, K]); with `compare` the mean over orders of cosines of `given` and `contexts`,
    both as nodes, [B, L, M].

    Args:
      given: int32 [B, L] nodes.
      contexts: int32 [B, M] nodes.
      negatives: int32 [B, L, K] nodes.
      tables: unused, as is `train`.
    """
    del tables, train
    start = nn.initializers.uniform(1 / self.width)
    centered = lambda key, shape, dtype=jnp.float32: start(key, shape, dtype) - 0.5 / self.width
    table = lambda name, start: graph_layers.Table(self.num_entities, self.width, start,
                                                   name=name)()
    nodes = {order: table(order, centered) for order in self.orders}
    others = dict(nodes)
    if "second" in nodes:
      others["second"] = table("context", nn.initializers.zeros_init())
    take = lambda array, ids: jnp.take(array, ids, axis=0)
    if compare:
      pair = lambda x: jnp.einsum("bld,bmd->blm", *(graph_layers.unit(take(x, ids))
                                                    for ids in (given, contexts)))
      return sum(map(pair, nodes.values())) / len(nodes), {}
    def products(order):
      x = take(nodes[order], given)
      return (jnp.einsum("bld,bmd->blm", x, take(others[order], contexts)),
              jnp.einsum("bld,blkd->blk", x, take(others[order], negatives)))
    return tuple(map(products, self.orders)), {}

  def check(self):
    """Raises UserError for orders that there are not."""
    if not self.orders or set(self.orders) - set(ORDERS) or len(set(self.orders)) < len(
        self.orders):
      raise errors.UserError(f"config.model: orders are of {ORDERS}, not {self.orders!r}")

  def example_inputs(self):
    one = jnp.zeros((1, 1), jnp.int32)
    return {"given": one, "contexts": one, "negatives": one[..., None]}

  def row_tables(self):
    names = [*self.orders, *(["context"] if "second" in self.orders else [])]
    return {f"{name}/embedding": ("entity", 0) for name in names}

  def transfer_rules(self, mode):
    """Returns rules: "embedding" carries nodes, "model" contexts as well."""
    return {"none": (), "embedding": (("(first|second)/embedding", r"\g<0>"),),
            "model": ((".*", r"\g<0>"),)}.get(mode)
