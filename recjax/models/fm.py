"""Factorization machine (Rendle 2010) of a user, an item and the item's attributes.

    y(x) = w_0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j                            Eq. 1

where x is 1 for the user, the item and each of its attributes, else 0. What the item's side
contributes is gathered first: with features F of the item,

    y = w_0 + w_u + <v_u, V> + sum_{F} w_i + (|V|^2 - sum_{F} |v_i|^2) / 2,   V = sum_{F} v_i

by Lemma 3.1, in O(|F| k) a pair. Without attributes that is matrix factorization with biases. With
`features` (texts, given vectors) v of the item, and with `user_features` v of the user, is
aggregated with what is known of it: it is no row of its own and adds no weight w.
"""

import functools
import re

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import layers
from recjax.models import pairwise

VARIANTS = {"fm": dict()}


class FM(pairwise.PairModel, nn.Module):
  """Scores items for a user by their pairwise interactions.

  The vectors v live under embed/user, embed/item and embed/FIELD, the weights w under linear/, and
  w_0 in bias: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes; their width is `factors`
  factors: int = 8  # k
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "sum"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  dtype: str = "float32"
  choices = {"dtype": ("float32", "bfloat16"), **pairwise.PairModel.known_choices}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, {}); see `neumf.NeuMF` for arguments and shapes.

    `tables` are {field: int32 [N + 2, slots]}, the attribute ids of every item id.
    """
    rows = {"user": self.num_users, "item": self.num_items + 2,
            **{name: size for name, size, _, _ in self.fields}}
    own = lambda name, width: {key: x.astype(self.dtype) for key, x in pairwise.Tables(
      tuple((key, size, width) for key, size in rows.items()), name=name)().items()}
    vectors, weights = own("embed", self.factors), own("linear", 1)
    bias = self.param("bias", nn.initializers.zeros_init(), ()).astype(self.dtype)
    person, vectors["item"] = self.known.vectors(vectors["user"], vectors["item"], users, tables,
                                                 train=train)
    x = {"vector": person,
         "constant": pairwise.of_users(weights["user"], users) + bias}

    def describe(ids):
      features = functools.partial(self._features, ids, tables)
      each = features(vectors)  # [..., F, k]
      total = jnp.sum(each, axis=-2)
      crossed = (jnp.sum(total**2, -1) - jnp.sum(each**2, (-2, -1))) / 2
      return {"vector": total, "constant": jnp.sum(features(weights), (-2, -1)) + crossed}

    def function(x, rows):
      return (pairwise.inner(x["vector"], rows["vector"]) + x["constant"][..., 0]
              + rows["constant"])
    return pairwise.score(
      x, describe, function, cost=1, num_items=self.num_items, columns=items.shape[1],
      positions=positions, candidates=candidates, readout=readout,
      product=lambda x, rows: (x["vector"], rows["vector"], rows["constant"])), {}

  def _features(self, ids, tables, values):
    """Returns [..., F, W]: the rows of `values` of each item and of its attributes."""
    found = [jnp.take(values["item"], ids, axis=0)[..., None, :]]
    for name, *_ in self.fields:
      chosen = jnp.take(tables[name], ids, axis=0)  # 0: no further value
      row = jnp.take(values[name], jnp.maximum(chosen - 1, 0), axis=0)
      found.append(jnp.where((chosen > 0)[..., None], row, 0))
    return jnp.concatenate(found, axis=-2)

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if self.factors < 1:
      raise errors.UserError(f"config.model: factors must be at least 1, not {self.factors}")
    self.check_known()
    for name, _, width, _ in self.fields:
      if width != self.factors:
        raise errors.UserError("config.model: fm multiplies vectors of all features, so that field "
                               f"{name!r} must be as wide as factors={self.factors}, not {width}")

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    vectors = layers.embed_rows(self.factors, self.fields)
    weights = {name.replace("embed/", "linear/"): row for name, row in vectors.items()}
    return vectors | weights | features_lib.known_rows(self, "")

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the vectors and weights of users and attributes, and what is made of what
    is known, "model" everything.
    """
    names = "|".join(["user", *(re.escape(field) for field, *_ in self.fields)])
    own = (rf"(embed|linear)/({names})/embedding", r"\g<0>")
    return {"none": (), "embedding": (own, *self.known_rules()),
            "model": ((".*", r"\g<0>"),)}.get(mode)
