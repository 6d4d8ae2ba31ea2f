"""Prepared graphs: triples (head, relation, tail) of named entities and relations, in splits.

A data set of kind "graph" is a folder of `.npy` arrays beside `manifest.json`. Entities and
relations are numbered from 0, by the order of their external ids; nothing is padded with them.

    entity_ids.npy    bytes [E]       external ids
    relation_ids.npy  bytes [R]
    triples.npy       int32 [M, 3]    train, then val, then test; in the order of the files
    offsets.npy       int64 [4]       split s is triples[offsets[s]:offsets[s + 1]]
    item_ids.npy      bytes [K]       external ids of items that are entities; K may be 0
    item_entities.npy int32 [K]       which ones

Of a symmetric graph (friends) each pair is in one split; train holds both its directions.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np

from recjax import errors
from recjax.data import proposals, sequences

KIND = "graph"
ARRAYS = ("entity_ids", "relation_ids", "triples", "offsets", "item_ids", "item_entities")
IDENTITY = ("name", "version", "raw_sha256", "triples", "split")  # manifest keys
MAX_KEYS = 2**62  # a query and its answer as one int64


@dataclasses.dataclass(frozen=True)
class Graph:
  """The arrays of one prepared graph; see the module's docstring for their shapes."""
  manifest: dict
  entity_ids: np.ndarray
  relation_ids: np.ndarray
  triples: np.ndarray
  offsets: np.ndarray
  item_ids: np.ndarray
  item_entities: np.ndarray
  kind = KIND
  shards = None

  @property
  def name(self):
    return self.manifest["name"]

  @property
  def num_entities(self):
    return len(self.entity_ids)

  @property
  def num_relations(self):
    return len(self.relation_ids)

  @property
  def symmetric(self):
    """Returns whether (a, r, b) holds wherever (b, r, a) does."""
    return self.manifest["symmetric"]

  def identity(self):
    """Returns what tells this data set from another of the same name, as a JSON-able dict."""
    return {key: self.manifest.get(key) for key in IDENTITY}

  def split(self, name):
    """Returns int32 [m, 3]: the triples of train, val or test."""
    place = sequences.SPLITS.index(name)
    return np.asarray(self.triples[self.offsets[place]:self.offsets[place + 1]])

  def row_names(self):
    """Returns {vocabulary: (names bytes [rows], trained bool [rows])} of entities and relations."""
    train = self.split("train")
    seen = lambda ids, size: np.bincount(ids.ravel(), minlength=size) > 0
    return {"entity": (np.asarray(self.entity_ids), seen(train[:, [0, 2]], self.num_entities)),
            "relation": (np.asarray(self.relation_ids), seen(train[:, 1], self.num_relations))}

  def known(self, *splits):
    """Returns the `Queries` of everything that these splits say; of all splits by default."""
    triples = np.concatenate([self.split(name) for name in splits or sequences.SPLITS])
    if self.symmetric:  # Held-out pairs are stored once.
      triples = np.concatenate([triples, triples[:, ::-1]])
    return queries(triples, self.num_entities, self.num_relations)


@dataclasses.dataclass(frozen=True)
class Queries:
  """All distinct (entity, relation, which side is asked) of some triples, with their answers.

  Query q has the ascending distinct answers[begin[q]:end[q]]; `of_triples` int32 [M, 2] are the
  queries that ask for the tail and for the head of every triple.
  """
  given: np.ndarray  # int32 [Q]
  relations: np.ndarray  # int32 [Q]
  asks_head: np.ndarray  # bool [Q]
  begin: np.ndarray  # int32 [Q]
  end: np.ndarray  # int32 [Q]
  answers: np.ndarray  # int32 [A]
  of_triples: np.ndarray

  @property
  def most(self):
    """Returns the largest number of answers of a query."""
    return int((self.end - self.begin).max(initial=1))


def queries(triples, num_entities, num_relations):
  """Returns the `Queries` of int [M, 3] triples."""
  if 2 * num_entities**2 * num_relations >= MAX_KEYS or len(triples) >= 2**30:
    raise errors.UserError(f"a graph of {num_entities} entities, {num_relations} relations and "
                           f"{len(triples)} triples is too large to be indexed")
  head, relation, tail = np.asarray(triples, np.int64).T
  number = lambda given, asks_head: (given * num_relations + relation) * 2 + asks_head
  asked, answers = np.concatenate([number(head, 0), number(tail, 1)]), np.concatenate([tail, head])
  pairs = np.unique(asked * num_entities + answers)
  asked_once, answers = np.divmod(pairs, num_entities)
  distinct, begin = np.unique(asked_once, return_index=True)
  given, rest = np.divmod(distinct, 2 * num_relations)
  as_int = lambda x: x.astype(np.int32)
  return Queries(
    as_int(given), as_int(rest // 2), (rest % 2).astype(bool), as_int(begin),
    as_int(np.append(begin[1:], len(answers))), as_int(answers),
    as_int(np.searchsorted(distinct, asked).reshape(2, -1).T))


def resident(graph, *, columns=()):
  """Returns the host arrays that batches of a graph's train split are sampled from.

  Args:
    graph: `Graph`.
    columns: "adjacency" adds `adjacency` and what negatives are drawn from, q ~ degree^0.75.

  Returns:
    {"triples" int32 [M, 3], "queries" int32 [M, 2], "given" and "relations" int32 [Q], "asks_head"
    bool [Q]; "pool" int32 [E] all entities and "seen_gaps", "seen_begin", "seen_end": the answers
    of each query as `objectives.negatives.unseen` reads them; "places" int32 [W], 0, 1, ... up to
    the most answers of a query; "head_share" float32 [R], the chance of `bern` to corrupt a head}.
  """
  train = graph.split("train")
  if not len(train):
    raise errors.UserError(f"data set {graph.name!r} has no triple to train on")
  found = queries(train, graph.num_entities, graph.num_relations)
  place = np.arange(len(found.answers)) - np.repeat(found.begin, found.end - found.begin)
  arrays = {
    "triples": train, "queries": found.of_triples, "given": found.given,
    "relations": found.relations, "asks_head": found.asks_head,
    "pool": np.arange(graph.num_entities, dtype=np.int32),
    "places": np.arange(found.most, dtype=np.int32),
    # One entry more, which is nobody's, keeps look-ups in range.
    "seen_gaps": np.append(found.answers - place, 0).astype(np.int32),
    "seen_begin": found.begin, "seen_end": found.end,
    "head_share": head_share(found, graph.num_relations)}
  if "adjacency" in columns:
    ends = train[:, 0] if graph.symmetric else train[:, [0, 2]].ravel()
    degree = np.bincount(ends, minlength=graph.num_entities)
    arrays |= adjacency(train, graph.num_entities)
    arrays |= proposals.popularity(degree, arrays["pool"], power=0.75)
  return arrays


def adjacency(triples, num_entities):
  """Returns {"neighbors" int32 [A], "node_begin" and "node_end" int32 [E]} of directed edges.

  Node v has edges to the ascending distinct neighbors[node_begin[v]:node_end[v]], whatever the
  relation, but none to itself.
  """
  head, _, tail = np.asarray(triples, np.int64).T
  node, neighbors = np.divmod(np.unique(head * num_entities + tail), num_entities)
  node, neighbors = node[node != neighbors], neighbors[node != neighbors]
  end = np.cumsum(np.bincount(node, minlength=num_entities))
  begin = np.concatenate([[0], end[:-1]])
  # Never empty, so that look-ups of nodes without neighbors have something to read.
  neighbors = neighbors if len(neighbors) else np.zeros(1)
  return {"neighbors": neighbors.astype(np.int32), "node_begin": begin.astype(np.int32),
          "node_end": end.astype(np.int32)}


def head_share(found, num_relations):
  """Returns float32 [R]: tph / (tph + hpt), how often `bern` corrupts the head (Wang et al. 2014).

  tph are the mean tails of a head and hpt the mean heads of a tail; 1/2 for a relation without
  triples.
  """
  answers = (found.end - found.begin).astype(np.float64)
  def mean(asks_head):
    of = found.asks_head == asks_head
    count = np.bincount(found.relations[of], minlength=num_relations)
    return np.bincount(found.relations[of], answers[of], num_relations) / np.maximum(count, 1)
  tails, heads = mean(False), mean(True)
  return np.where(tails + heads > 0, tails / np.maximum(tails + heads, 1e-9), 0.5).astype(
    np.float32)


def load(data_dir, name):
  """Returns the `Graph` that `recjax.prepare` left in `data_dir/name`, memory-mapped."""
  folder = pathlib.Path(data_dir) / name
  manifest = sequences.read_manifest(data_dir, name)
  graph = Graph(manifest=manifest, **{stem: sequences.read_array(folder / f"{stem}.npy")
                                      for stem in ARRAYS})
  triples, sizes = graph.triples, (graph.num_entities, graph.num_relations, graph.num_entities)
  right = (triples.ndim == 2 and triples.shape[1] == 3 and graph.offsets.shape == (4,)
           and int(graph.offsets[-1]) == len(triples)
           and graph.item_ids.shape == graph.item_entities.shape)
  if not right or (triples.size and ((triples < 0) | (triples >= sizes)).any()):
    raise errors.UserError(f"{folder}: the arrays do not fit together; prepare the data again")
  return graph


def save(folder, graph):
  """Writes `graph` to `folder` under a temporary name, then renames it there."""
  folder = pathlib.Path(folder)
  draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
  draft.mkdir(parents=True)
  write(draft, graph)
  sequences.replace_folder(draft, folder)


def write(draft, graph):
  """Writes arrays and manifest into the existing folder `draft`; returns the manifest."""
  for stem in ARRAYS:
    np.save(draft / f"{stem}.npy", getattr(graph, stem), allow_pickle=False)
  manifest = dict(graph.manifest, kind=KIND, version=sequences.VERSION)
  (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  return manifest
