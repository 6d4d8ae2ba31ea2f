"""Link prediction: the rank of each held-out triple's head and tail among all entities.

`raw` counts every entity that scores higher; `filtered` leaves out those that make another triple
of train, val or test. Ties count half: an entity that scores like n others stands n / 2 places
after the first of them, so that a constant scorer has the mean rank of chance. A triple's value is
the mean over its two sides; `filtered_head` and the like are of one side.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.data import sequences
from recjax.evaluators import held_out
from recjax.evaluators import values as values_lib

SIDES = ("tail", "head")
PROTOCOLS = tuple(f"{kind}{side}" for side in ("", "_tail", "_head")
                  for kind in ("filtered", "raw"))
HITS = (1, 3, 10)
METRICS = ("mrr", "mr", *(f"hits@{k}" for k in HITS))
CONTEXT = "train"


class Links:
  """Ranks the triples of a split; blocks of queries, never all of them against all entities."""
  contexts = (CONTEXT,)

  def __init__(self, graph, *, split="test", contexts=None, protocols=PROTOCOLS, seed=0,
               batch_size=128, max_users=None, put=jnp.asarray):
    """Indexes what is known once.

    Args:
      graph: `graphs.Graph`.
      split: "val" or "test".
      contexts: there is one, "train".
      protocols: of PROTOCOLS.
      seed: fixes the choice of `max_users`.
      batch_size: queries a block, always filled up; a multiple of the data-parallel devices.
      max_users: evaluate a fixed random subset of so many triples.
      put: places one host array, [batch_size, ...], on the devices.
    """
    held_out.check("context", contexts or (), self.contexts)
    held_out.check("protocol", protocols, PROTOCOLS)
    self._graph, self._put, self._batch_size = graph, put, batch_size
    self._protocols = tuple(protocols)
    triples = graph.split(split)
    if not len(triples):
      raise errors.UserError(f"data set {graph.name!r} has no triple in its {split} split")
    self.rows = held_out.subset(np.arange(len(triples)), max_users, seed)
    self._triples, self._known = triples[self.rows], graph.known()
    self._of_triples = _queries_of(self._known, self._triples, graph)
    self._width = int(np.max((self._known.end - self._known.begin)[self._of_triples]))
    self._rank = (None, None)

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of predict(params, given, relations, asks_head) -> scores [B, E].

    `predict` is compiled once per function object.

    Raises:
      FloatingPointError: a score is NaN.
    """
    del contexts
    if predict != self._rank[0]:
      self._rank = (predict, jax.jit(lambda params, *batch: _counts(predict, params, *batch)))
    found = {kind: np.zeros((len(self.rows), 2)) for kind in ("raw", "filtered")}
    places = itertools.product(held_out.pieces(len(self.rows), self._batch_size), range(2))
    for (rows, side), batch in held_out.fetched(
        (place, self._rank[1](params, *self._batch(*place))) for place in places):
      raw, filtered, broken = (x[:len(self.rows[rows])] for x in batch)
      if broken.any():
        raise FloatingPointError("NaN among the scores of triple "
                                 f"{self._names()[rows][np.argmax(broken)]!r}")
      found["raw"][rows, side], found["filtered"][rows, side] = raw, filtered
    return self._results({kind: _metrics(ranks) for kind, ranks in found.items()})

  def references(self):
    """Returns {"chance": Results}: what a random order of the candidates gives on average."""
    known = (self._known.end - self._known.begin)[self._of_triples]
    entities = self._graph.num_entities
    candidates = {"raw": np.full(known.shape, entities), "filtered": entities - known + 1}
    return {"chance": self._results({kind: _chance(n) for kind, n in candidates.items()})}

  def _batch(self, rows, side):
    """Returns device arrays of a block: given, relations, asks_head, targets, known [B, W]."""
    head, relation, tail = self._triples[rows].T
    given, target = (head, tail) if side == 0 else (tail, head)
    queries = self._of_triples[rows, side]
    known = sequences.pad(self._known.answers + 1, self._known.begin[queries],
                          self._known.end[queries], width=self._width, align="left") - 1
    arrays = (given, relation, np.full(len(given), side == 1), target, known)
    filled = [held_out.fill(array.astype(array.dtype), self._batch_size) for array in arrays]
    filled[-1][len(given):] = -1
    return [self._put(array) for array in filled]

  def _names(self):
    """Returns bytes [n]: the external ids of each triple, tab-separated."""
    return names_of(self._graph, self._triples)

  def _results(self, found):
    """Returns `Results` of {kind: {metric: [n, 2]}}."""
    table = {}
    for protocol in self._protocols:
      kind, _, side = protocol.partition("_")
      pick = lambda x, side=side: x[:, SIDES.index(side)] if side else x.mean(axis=1)
      table[protocol] = {name: pick(x).astype(np.float32) for name, x in found[kind].items()}
    return values_lib.Results(self.rows.astype(np.int32), {CONTEXT: table})


def names_of(graph, triples):
  """Returns bytes [n]: "HEAD\\tRELATION\\tTAIL" in external ids."""
  ids = (graph.entity_ids, graph.relation_ids, graph.entity_ids)
  columns = [np.asarray(names)[triples[:, place]].tolist() for place, names in enumerate(ids)]
  return np.array([b"\t".join(row) for row in zip(*columns, strict=True)])


def _queries_of(known, triples, graph):
  """Returns int64 [n, 2]: the queries in `known` that ask for tail and head of each triple."""
  number = lambda given, relation, asks_head: (
    given.astype(np.int64) * graph.num_relations + relation) * 2 + asks_head
  order = number(known.given, known.relations, known.asks_head)  # ascending
  head, relation, tail = triples.T
  return np.stack([np.searchsorted(order, number(head, relation, 0)),
                   np.searchsorted(order, number(tail, relation, 1))], axis=1)


def _counts(predict, params, given, relations, asks_head, targets, known):
  """Returns (raw rank, filtered rank, whether a score is NaN), [B] each.

  `known` int32 [B, W] are the answers of a query, padded with -1; the target is among them.
  """
  scores = predict(params, given, relations, asks_head)  # [B, E]
  own = jnp.take_along_axis(scores, targets[:, None], axis=1)
  rank = lambda greater, equal: 1 + greater + equal / 2
  greater, equal = jnp.sum(scores > own, axis=1), jnp.sum(scores == own, axis=1) - 1
  theirs = jnp.take_along_axis(scores, jnp.maximum(known, 0), axis=1)
  other = (known >= 0) & (known != targets[:, None])
  above = jnp.sum(other & (theirs > own), axis=1)
  beside = jnp.sum(other & (theirs == own), axis=1)
  return (rank(greater, equal), rank(greater - above, equal - beside),
          jnp.any(jnp.isnan(scores), axis=1))


def _metrics(ranks):
  """Returns {metric: float64} of ranks, whatever their shape."""
  return dict(zip(METRICS, [1 / ranks, ranks, *((ranks <= k).astype(np.float64) for k in HITS)],
                  strict=True))


def _chance(candidates):
  """Returns {metric: float64}: expectations of a uniform rank among so many candidates."""
  harmonic = np.cumsum(1 / np.arange(1.0, candidates.max() + 1))
  return dict(zip(METRICS, [harmonic[candidates - 1] / candidates, (candidates + 1) / 2,
                            *(np.minimum(k / candidates, 1) for k in HITS)], strict=True))
