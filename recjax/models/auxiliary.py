"""What objectives learn beside a model of sequences: of its item rows, or of vectors that it made.

Such a module has parameters of its own, beside the model's, under its name (`models.AUXILIARY`).
Objectives call it as `apply_fn(params, inputs, rng, auxiliary=NAME)`, and it is given the model's
item table as it is, so that gradients reach its rows.

`__call__(rows, tables, ..., train)` takes [tokens, W], the table, and `tables` of
`data.auxiliary.read`; beside it a module has

    example_inputs()  inputs that start its parameters
    row_tables()      its leaves whose rows stand for named things

Letters: N items, W width of items, E entities, A attributes, D width of attributes, S shards, C
positions a shard.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax.models import graph_layers
from recjax.models import layers

# What a model of sequences can learn with their help (recjax/objectives/), by what is asked of it:
# item rows, a vector of a user, or one at a MASK from both sides.
OF_ITEMS = ("knowledge", "item_attribute")
OF_USERS = ("friends", "connected")
BIDIRECTIONAL = ("masked_attribute",)


class SharedLinks(nn.Module):
  """Scores of triples whose linked entities are items: the item's row is the entity's vector.

  Other entities and the relations have tables of their own. The scores are those of a model of
  graphs (`score`, its `apply`), which sees all vectors as one table.
  """
  score: object
  num_own: int  # entities that are no items
  num_relations: int
  width: int  # W
  initializer: str
  normalize: bool = False  # entities are seen with a norm of 1; the item rows stay free

  @nn.compact
  def __call__(self, rows, tables, *, train=False, **query):
    """Returns what `graph_layers.LinkModel` does of the same `query`."""
    start = layers.table_init(self.initializer)
    joined = rows.astype(jnp.float32)
    if self.num_own:
      own = graph_layers.Table(self.num_own, self.width, start, name="entity")()
      joined = jnp.concatenate([joined, own])
    # `data.auxiliary` numbers the i-th entity of its own -(i + 1).
    place = tables["knowledge/rows"]
    entities = jnp.take(joined, jnp.where(place > 0, place, len(rows) - 1 - place), axis=0)
    if self.normalize:
      entities = graph_layers.unit(entities)
    relations = graph_layers.Table(self.num_relations, self.width, start, name="relation")()
    params = {"entity": {"embedding": entities}, "relation": {"embedding": relations}}
    scores, _ = self.score({"params": params}, **query, tables={}, train=train)
    return scores

  def example_inputs(self):
    """Returns a query of one candidate."""
    one = jnp.zeros(1, jnp.int32)
    return {"given": one, "relations": one, "asks_head": jnp.zeros(1, bool),
            "mask": jnp.ones(1, bool), "candidates": one[:, None]}

  def row_tables(self):
    names = {"relation/embedding": ("knowledge/relation", 0)}
    return names | {"entity/embedding": ("knowledge/entity", 0)} if self.num_own else names


class AttributeScores(nn.Module):
  """How likely an item has each attribute: v M e_a + log odds of a (Zhou et al. 2020, S3-Rec).

  v is the vector at a MASK in the item's place ("masked") or the item's row ("item"), which have a
  matrix M each; vectors of attributes are the same for both. The log odds are those among items, a
  constant: what is learned is what v says beyond how frequent a is.
  """
  num_attributes: int  # A
  width: int  # D
  sides: tuple  # ((name, width of v), ...)

  @nn.compact
  def __call__(self, rows, tables, *, side, items, x=None, train=False):
    """Returns (float32 [..., A], ids of the attributes that the items have, int32 [..., slots]).

    Args:
      rows: [tokens, W].
      tables: {"attributes" int32 [tokens, slots] ids 1..A, 0 is none, "attributes/log_odds" [A]}.
      side: which v.
      items: int32 [...].
      x: v [..., width]; None takes the rows of `items`.
      train: unused.
    """
    del train
    start = nn.initializers.lecun_normal()
    values = graph_layers.Table(self.num_attributes, self.width, nn.initializers.normal(
      self.width**-0.5), name="values")()
    kernels = {name: self.param(f"{name}_kernel", start, (width, self.width))
               for name, width in self.sides}
    x = jnp.take(rows, items, axis=0) if x is None else x
    scores = x.astype(jnp.float32) @ kernels[side] @ values.T + tables["attributes/log_odds"]
    return scores, jnp.take(tables["attributes"], items, axis=0)

  def example_inputs(self):
    """Returns one item, and its vector where rows are not asked."""
    side, width = self.sides[0]
    return {"side": side, "items": jnp.zeros(1, jnp.int32), "x": jnp.zeros((1, width))}

  def row_tables(self):
    return {"values/embedding": ("attributes", 0)}


class UserVectors(nn.Module):
  """Linear layers over vectors of users: one each for what is asked of them ("sides")."""
  sides: tuple  # ((name, width of x, width of the answer), ...)
  initializer: str

  @nn.compact
  def __call__(self, rows, tables, *, side, x, train=False):
    """Returns float32 [..., width of the answer] of vectors x [..., width of x]."""
    del rows, tables, train
    found = {}
    for name, width, answer in self.sides:
      if name == side or self.is_initializing():
        layer = layers.dense(answer, initializer=self.initializer, fan_in=width, name=name,
                             dtype=jnp.float32)
        found[name] = layer(x.astype(jnp.float32))
    return found[side]

  def example_inputs(self):
    """Returns one vector."""
    side, width, _ = self.sides[0]
    return {"side": side, "x": jnp.zeros((1, width))}

  def row_tables(self):
    return {}
