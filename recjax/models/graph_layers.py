"""What the models of knowledge graphs share: tables numbered from 0, norms, their contract.

Such a model answers queries: given an entity, a relation and which side is asked, it scores
candidates for that side. Letters: B queries, K candidates, E entities, R relations, D width.
"""

import flax.linen as nn
import jax.numpy as jnp



def uniform_start(key, shape, dtype=jnp.float32):
  """Returns U(-6 / sqrt(D), 6 / sqrt(D)) (Bordes et al. 2013)."""
  bound = 6 / shape[-1]**0.5
  return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound


class Table(nn.Module):
  """A table of vectors that is used whole."""
  rows: int
  width: int
  start: object  # initializer

  @nn.compact
  def __call__(self):
    """Returns [rows, width]."""
    return self.param("embedding", self.start, (self.rows, self.width))


def unit(x):
  """Returns x scaled to a norm of 1 over its last axis."""
  return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def within_ball(x):
  """Returns x, scaled to a norm of 1 over its last axis where it is larger."""
  return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1.0))


def dot(query, table, candidates):
  """Returns [B, K] products of queries [B, D] with rows of a table [E, D].

  Args:
    query: [B, D].
    table: [E, D].
    candidates: int32 [B, K], or None for all rows (K = E).
  """
  if candidates is None:
    return query @ table.T
  return jnp.einsum("bd,bkd->bk", query, jnp.take(table, candidates, axis=0))


class LinkModel(nn.Module):
  """The contract of a model of triples, with what most of them say.

  `__call__(given, relations, asks_head, mask, tables, *, candidates, penalize, train)` returns
  (scores, dict of intermediates):

    given       int32 [B]
    relations   int32 [B]
    asks_head   bool [B], whether `given` is the tail and the head is asked
    mask        bool [B], False at rows that fill up a batch
    tables      unused: a graph has no attributes
    candidates  int32 [B, K]; None scores all entities, K = E
    penalize    returns (scores, penalty [B]) in place of scores
    train       whether dropout is on and batch norm uses the batch
  """
  num_entities: int  # E
  num_relations: int  # R
  dtype: str = "float32"
  objectives = ("margin_ranking", "logistic", "candidate_softmax", "one_to_all")
  choices = {"dtype": ("float32",)}

  def check(self):
    """Raises UserError where sizes do not fit together; by default all do."""

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    one = jnp.zeros(1, jnp.int32)
    return {"given": one, "relations": one, "asks_head": jnp.zeros(1, bool),
            "mask": jnp.ones(1, bool), "candidates": one[:, None]}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {"entity/embedding": ("entity", 0), "relation/embedding": ("relation", 0)}

  def leaf_options(self):
    """Returns ((regex, options of `optim.plan`), ...): constraints and running averages."""
    return ()

  def transfer_rules(self, mode):
    """Returns rules: "embedding" carries vectors of entities and relations, "model" everything."""
    return {"none": (), "embedding": (("(entity|relation)/embedding", r"\g<0>"),),
            "model": ((".*", r"\g<0>"),)}.get(mode)
