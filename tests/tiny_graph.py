"""A prepared graph so small that a run takes seconds: numbers on a line, and how far they step."""

import functools

import numpy as np

import tiny
from configs import kge
from recjax.data import graphs

ENTITIES, STEPS = 40, (1, 3, 7)


def make(*, held_out=12, seed=0, reverse=False, name="line"):
  """Returns a Graph of all (i, "plus s", i + s) below ENTITIES; `reverse` numbers backwards."""
  triples = np.array([(i, r, i + s) for r, s in enumerate(STEPS) for i in range(ENTITIES - s)])
  triples = np.random.default_rng(seed).permutation(triples)
  ids = np.array([b"n%02d" % i for i in range(ENTITIES)])
  relations = np.array([b"plus %d" % s for s in STEPS])
  if reverse:
    ids, relations = ids[::-1], relations[::-1]
    triples = np.array([ENTITIES, len(STEPS), ENTITIES]) - 1 - triples
  return graph(name, ids, relations, triples, held_out)


def kinds(*, groups=6, each=8, relations=4, held_out=18, seed=0):
  """Returns a Graph of things whose kind decides on the tail of each relation: one of its own.

  What is held out of a thing follows from its other triples, as any model should learn.
  """
  count = groups * each
  triples = np.array([(i, r, count + groups * r + i // each)
                      for r in range(relations) for i in range(count)])
  triples = np.random.default_rng(seed).permutation(triples)
  ids = np.array([b"n%03d" % i for i in range(count + groups * relations)])
  return graph("kinds", ids, np.array([b"r%d" % r for r in range(relations)]), triples, held_out)


def graph(name, ids, relations, triples, held_out):
  train = len(triples) - 2 * held_out
  manifest = dict(name=name, title=name, generated=True, raw_sha256="0" * 64, symmetric=False,
                  entities=len(ids), relations=len(relations), triples=len(triples), train=train,
                  val=held_out, test=held_out, split={})
  return graphs.Graph(manifest, ids, relations, triples.astype(np.int32),
                      np.array([0, train, train + held_out, len(triples)]),
                      np.array([b"9", b"4"]), np.array([3, 5], np.int32))


@functools.cache
def root():
  """Returns a folder of this test process with the graphs `line`, `enil` and `kinds` in `data`."""
  folder = tiny.root() / "graphs"
  graphs.save(folder / "data/kinds", kinds())
  for name, reverse in (("line", False), ("enil", True)):
    graphs.save(folder / "data" / name, make(reverse=reverse, name=name))
  return folder


def config(model="transe", **fields):
  """Returns the config of a run of 12 steps; `fields` as "a.b": value."""
  config = kge.get_config(model)
  config.data_dir, config.dataset = str(root() / "data"), "line"
  config.batch_size, config.micro_batch = 32, 8
  config.total_epochs, config.total_steps = None, 12
  config.model.width = 8
  config.eval.update(every_epochs=None, every_steps=6, batch_size=8)
  config.checkpoint.every_steps = 4
  config.log.update(every_steps=5, tensorboard=False)
  with config.unlocked():
    for name, value in fields.items():
      *parents, last = name.split(".")
      node = config
      for parent in parents:
        node = node[parent]
      node[last] = value
  return config


def edges(pairs, size, *, held_out=0, name="town"):
  """Returns a symmetric Graph of nodes 0..size - 1 with these pairs, the last ones held out."""
  pairs = np.array([(min(p), 0, max(p)) for p in pairs], np.int32).reshape(-1, 3)
  train = pairs[:len(pairs) - 2 * held_out]
  both = np.concatenate([train, train[:, ::-1], pairs[len(train):]])
  manifest = dict(name=name, title=name, generated=True, raw_sha256="0" * 64, symmetric=True,
                  entities=size, relations=1, triples=len(both), train=2 * len(train),
                  val=held_out, test=held_out, split={})
  return graphs.Graph(manifest, np.array([b"u%03d" % i for i in range(size)]),
                      np.array([b"friend"]), both,
                      np.array([0, 2 * len(train), len(both) - held_out, len(both)]),
                      np.zeros(0, "S1"), np.zeros(0, np.int32))


def communities(*, groups=4, each=20, seed=0):
  """Returns a symmetric Graph of groups whose members are mostly joined to each other."""
  rng, size = np.random.default_rng(seed), groups * each
  pairs = [(a, b) for a in range(size) for b in range(a) if rng.random() < (
    0.4 if a // each == b // each else 0.01)]
  rng.shuffle(pairs)
  return edges(pairs, size, held_out=len(pairs) // 10)
