"""Link prediction in social graphs: each held-out edge against sampled pairs without an edge.

The node where an edge begins is compared with the one where it ends and with others that it has no
edge to in any split, drawn uniformly by a seed. `auc` is the share of those that score lower, ties
counting half; ranks are among all of them, ties in the middle.
"""

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.evaluators import held_out
from recjax.evaluators import values as values_lib

PROTOCOLS = ("edges",)
METRICS = ("auc", "mrr", "hits@10")
CONTEXT = "train"
ROUNDS = 1000  # of drawing again


class Edges:
  """Evaluates functions that compare nodes, on the edges of a split."""
  contexts = (CONTEXT,)

  def __init__(self, graph, *, split="test", contexts=None, protocols=PROTOCOLS, seed=0,
               num_negatives=100, batch_size=128, max_users=None, put=jnp.asarray):
    """Draws the pairs once; arguments as `links.Links`.

    Args:
      graph: `graphs.Graph`.
      split: "val" or "test".
      contexts: there is one, "train".
      protocols: there is one, "edges".
      seed: fixes the pairs and the choice of `max_users` edges.
      num_negatives: pairs without an edge for each that has one.
      batch_size: edges a block, always filled up.
      max_users: evaluate a fixed random subset of so many edges.
      put: places one host array, [batch_size, ...], on the devices.
    """
    held_out.check("context", contexts or (), self.contexts)
    held_out.check("protocol", protocols, PROTOCOLS)
    self._graph, self._put, self._batch_size = graph, put, batch_size
    edges = graph.split(split)
    if not len(edges):
      raise errors.UserError(f"data set {graph.name!r} has no edge in its {split} split")
    rng = np.random.default_rng(seed)
    self.rows = held_out.subset(np.arange(len(edges)), max_users, rng)
    edges = edges[self.rows]
    self._given = edges[:, 0]
    self._candidates = np.concatenate(
      [edges[:, 2:], without_edge(graph, edges[:, 0], num_negatives, rng)], axis=1)
    self._compare = (None, None)

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of predict(params, nodes [B], candidates [B, C]) -> scores [B, C].

    Raises:
      FloatingPointError: a score is NaN.
    """
    del contexts
    if predict != self._compare[0]:
      self._compare = (predict, jax.jit(predict))
    scores = np.zeros(self._candidates.shape, np.float32)
    pieces = held_out.pieces(len(self._given), self._batch_size)
    for rows, batch in held_out.fetched(
        (rows, self._compare[1](params, *self._batch(rows))) for rows in pieces):
      scores[rows] = batch[:len(self._given[rows])]
    if np.isnan(scores).any():
      raise FloatingPointError("NaN among the scores of edges")
    return self._results(scores)

  def references(self):
    """Returns {name: Results} of chance, and of popularity: the candidates' degrees in train."""
    ends = self._graph.split("train")[:, [0, 2]]
    degree = np.bincount(ends.ravel(), minlength=self._graph.num_entities)
    places = np.arange(1.0, self._candidates.shape[1] + 1)
    mean = {"auc": 0.5, "mrr": np.mean(1 / places), "hits@10": np.mean(places <= 10)}
    chance = {name: np.full(len(self.rows), value, np.float32) for name, value in mean.items()}
    return {"chance": self._wrap(chance), "popularity": self._results(degree[self._candidates])}

  def _batch(self, rows):
    return [self._put(held_out.fill(x[rows], self._batch_size))
            for x in (self._given, self._candidates)]

  def _results(self, scores):
    true, others = scores[:, :1], scores[:, 1:]
    ahead = (others > true).sum(axis=1) + (others == true).sum(axis=1) / 2
    table = {"auc": 1 - ahead / others.shape[1], "mrr": 1 / (1 + ahead), "hits@10": ahead < 10}
    return self._wrap({name: value.astype(np.float32) for name, value in table.items()})

  def _wrap(self, table):
    return values_lib.Results(self.rows.astype(np.int32), {CONTEXT: {PROTOCOLS[0]: table}})


def without_edge(graph, nodes, count, rng):
  """Returns int32 [n, count]: for each node others that it has no edge to in any split.

  Args:
    graph: `graphs.Graph`.
    nodes: int32 [n].
    count: how many, drawn apart.
    rng: numpy Generator.
  """
  size = graph.num_entities
  edges = np.asarray(graph.triples)[:, [0, 2]].astype(np.int64)
  edges = np.concatenate([edges, edges[:, ::-1]]) if graph.symmetric else edges
  known = np.unique(np.concatenate([edges[:, 0] * size + edges[:, 1],
                                    np.arange(size, dtype=np.int64) * (size + 1)]))
  out = np.zeros((len(nodes), count), np.int32)
  rows, columns = (x.ravel() for x in np.indices(out.shape))
  for _ in range(ROUNDS):
    out[rows, columns] = drawn = rng.integers(0, size, len(rows))
    keys = nodes[rows].astype(np.int64) * size + drawn
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    again = known[place] == keys
    rows, columns = rows[again], columns[again]
    if not len(rows):
      return out
  raise errors.UserError(f"data set {graph.name!r}: node {graph.entity_ids[nodes[rows[0]]]!r} has "
                         "an edge to nearly every other one; it cannot be evaluated")
