"""A knowledge graph and friends for the users and items of tests/tiny.py."""

import dataclasses
import functools

import numpy as np

import tiny
import tiny_graph
from recjax.data import graphs

ENTITIES, RELATIONS = 50, 3
LINKED = [b"i%02d" % n for n in range(1, tiny.ITEMS + 1, 2)]  # every other item, of both domains


@functools.cache
def root():
  """Returns the folder of data sets of `tiny`, with the graphs `kg`, `town` and `desert`."""
  folder, rng = tiny.root() / "data", np.random.default_rng(0)
  triples = np.unique(np.stack([rng.integers(0, high, 220) for high in (
    ENTITIES, RELATIONS, ENTITIES)], axis=1), axis=0)
  triples = rng.permutation(triples[triples[:, 0] != triples[:, 2]])
  kg = tiny_graph.graph("kg", np.array([b"e%02d" % n for n in range(ENTITIES)]),
                         np.array([b"r%d" % n for n in range(RELATIONS)]), triples, 5)
  graphs.save(folder / "kg", dataclasses.replace(
    kg, item_ids=np.array(LINKED), item_entities=np.arange(len(LINKED), dtype=np.int32) + 7))
  users = np.array([b"u%02d" % n for n in range(tiny.USERS + 1)])  # u00 chose nothing
  # Who is in the same third is a friend with a chance of a third.
  pairs = [(a, b) for a in range(tiny.USERS + 1) for b in range(a)
           if a % 3 == b % 3 and rng.random() < 1 / 3]
  for name, found in (("town", pairs), ("desert", [(0, 1)])):
    town = tiny_graph.edges(found, tiny.USERS + 1, name=name)
    graphs.save(folder / name, dataclasses.replace(town, entity_ids=users))
  return folder


def config(*parts, dataset="src", **fields):
  """Returns `tiny.config` of a mix of `parts` ((name, weight), ...), with options that fit."""
  root()
  config = tiny.config(dataset, **fields)
  attributes = dict(attributes=("genre",), min_count=1, value_width=4, rate=0.5)
  config.objective.update(
    name="mix", knowledge=dict(graph="kg", triples=3), masked_attribute=attributes,
    item_attribute=attributes, friends=dict(graph="town", projection=4, group=3),
    connected=dict(graph="town"))
  config.objective.mix.parts = parts
  return config
