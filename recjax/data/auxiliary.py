"""What objectives learn from beside the sequences: a knowledge graph, attributes, friends.

An objective asks for them by name (its `auxiliary`); here they are read and matched with the users
and items of a data set by external id. `recjax.models.auxiliary` has what is learned of them.
"""

import dataclasses

import numpy as np

from recjax import errors
from recjax.data import graphs, kinds


@dataclasses.dataclass(frozen=True)
class Found:
  """What was read of one name.

    sizes     what its module must know
    resident  {name: array} that batches are drawn from
    tables    {name: array} that the module looks up
    rows      {vocabulary: (names bytes [n], trained bool [n])} of its tables
    items     bool [N + 1], items whose rows it trains whether they are chosen or not; or None
    identity  of a graph, which a resumed run checks
  """
  sizes: dict
  resident: dict = dataclasses.field(default_factory=dict)
  tables: dict = dataclasses.field(default_factory=dict)
  rows: dict = dataclasses.field(default_factory=dict)
  items: np.ndarray | None = None
  identity: dict | None = None


def read(data_dir, data, asked):
  """Returns {name: Found} of {name: options} for a `sequences.Dataset`.

  Raises:
    UserError: there is no such graph or attribute, or none of its ids is known here.
  """
  readers = {"knowledge": _knowledge, "attributes": _attributes, "social": _social}
  return {name: readers[name](data_dir, data, **options) for name, options in asked.items()}


def _knowledge(data_dir, data, *, graph, **scoring):
  """Returns Found of a knowledge graph some of whose entities are items."""
  graph = _graph(data_dir, graph, "objective.knowledge.graph")
  number = _numbers(data.item_ids)
  place = np.zeros(graph.num_entities, np.int32)  # the item that an entity is; 0 for none
  items = [number.get(name, 0) for name in np.asarray(graph.item_ids).tolist()]
  place[np.asarray(graph.item_entities)] = items
  if not place.any():
    raise errors.UserError(f"objective.knowledge.graph: no item of {data.name!r} is an entity of "
                           f"{graph.name!r}; see `items` in configs/data/ml1m_kg.py")
  linked = np.zeros(data.num_items + 1, bool)
  linked[place[place > 0]] = True
  own = np.flatnonzero(place == 0)
  place[own] = -1 - np.arange(len(own))
  rows = graph.row_names()
  names, trained = rows["entity"]
  linked[place[(place > 0) & ~trained]] = False
  return Found(
    sizes={"num_entities": graph.num_entities, "num_relations": graph.num_relations,
           "num_own": len(own), **scoring},
    resident=graphs.resident(graph), tables={"knowledge/rows": place},
    rows={"knowledge/entity": (names[own], trained[own]), "knowledge/relation": rows["relation"]},
    items=linked, identity=graph.identity())


def _attributes(data_dir, data, *, attributes, min_count, width, sides):
  """Returns Found of the values, of several attributes, that `min_count` items of the domain have.

  Padding, MASK and extra tokens have none; see `expand`.
  """
  del data_dir
  domain = np.asarray(data.in_domain)
  columns, names, counts, size = [], [], [], 0
  for attribute in attributes:
    feature = errors.choose(data.features, attribute, "config.objective: attributes")
    values = np.asarray(feature.values)
    item, slot = np.nonzero((values > 0) & domain[:, None])
    pairs = np.unique(item * len(feature.ids) + values[item, slot])
    held = np.bincount(pairs % len(feature.ids), minlength=len(feature.ids))
    kept = held >= max(min_count, 1)
    rank = np.where(kept, size + np.cumsum(kept), 0)
    columns.append(rank[values])
    names += [attribute.encode() + b":" + value for value in np.asarray(feature.ids)[kept]]
    counts.append(held[kept])
    size += int(kept.sum())
  if not size:
    raise errors.UserError(f"config.objective: no value of {', '.join(attributes)} is that of "
                           f"{min_count} items; lower min_count")
  table = _distinct(np.concatenate(columns, axis=1))
  share = (np.concatenate(counts) + 0.5) / (domain.sum() + 1)
  return Found(
    sizes={"num_attributes": size, "width": width, "sides": dict(sides)},
    resident={"described": (table > 0).any(1)},
    tables={"attributes": table.astype(np.int32),
            "attributes/log_odds": np.log(share / (1 - share)).astype(np.float32)},
    rows={"attributes": (np.array(names), np.ones(size, bool))})


def _social(data_dir, data, *, graph, sides):
  """Returns Found of who is connected with whom, among users with something to train on.

  "edges" int32 [M, 2] are those of the graph's train split, in both directions where it has none;
  a single pair of user 0, nobody, where there are none. A neighbor is one in either direction.
  """
  if data.shards is not None:
    raise errors.UserError(f"data set {data.name!r} is sharded, and friends are looked up with all "
                           "of it in memory; prepare it with --config.shards=0")
  graph = _graph(data_dir, graph, "config.objective: graph")
  number = _numbers(data.user_ids)
  begin, end = data.span("train")
  users = np.array([number.get(name, 0) for name in np.asarray(graph.entity_ids).tolist()])
  users = np.where(end[users] > begin[users], users, 0)
  if not users.any():
    raise errors.UserError(f"config.objective: no user of {data.name!r} with training items is in "
                           f"{graph.name!r}")
  edges = users[graph.split("train")[:, [0, 2]]].reshape(-1, 2)
  edges = edges[(edges > 0).all(1) & (edges[:, 0] != edges[:, 1])]
  both = np.concatenate([edges, edges[:, ::-1]])
  near = graphs.adjacency(np.insert(both, 1, 0, axis=1), data.num_users + 1)
  return Found(
    sizes={"sides": dict(sides)},
    resident={"edges": np.asarray(edges if len(edges) else np.zeros((1, 2)), np.int32),
              "begin": begin.astype(np.int32), "end": end.astype(np.int32), **near},
    identity=graph.identity())


def identified(data, found):
  """Returns the Dataset that names the graphs of {name: Found}, which a resumed run checks."""
  known = {name: each.identity for name, each in found.items() if each.identity}
  if not known:
    return data
  return dataclasses.replace(data, manifest={**data.manifest, "graphs": known})


def expand(table, tokens):
  """Returns [tokens, ...]: a table of items 0..N with rows of zeros for what is no item."""
  return np.concatenate([table, np.zeros((tokens - len(table), *table.shape[1:]), table.dtype)])


def _graph(data_dir, name, where):
  if not name:
    raise errors.UserError(f"{where} is required: the name of a prepared graph")
  graph = kinds.load(data_dir, name)
  if graph.kind != graphs.KIND:
    raise errors.UserError(f"{where}: data set {name!r} is of kind {graph.kind}, not a graph")
  return graph


def _numbers(ids):
  return {name: number for number, name in enumerate(np.asarray(ids).tolist()) if number}


def _distinct(table):
  """Returns each row's distinct positive ids, in order, then zeros."""
  table = np.sort(table, axis=1)
  repeat = np.zeros(table.shape, bool)
  repeat[:, 1:] = table[:, 1:] == table[:, :-1]
  table = -np.sort(-np.where(repeat, 0, table), axis=1)
  return table[:, :max(int((table > 0).sum(1).max()), 1)]
