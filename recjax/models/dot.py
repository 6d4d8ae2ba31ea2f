"""Matrix factorization: an inner product of a user's and an item's vector (Koren et al. 2009).

    dot        p_u . q_i
    bilinear   p_u . M q_i

With biases, p_u . q_i + b_u + b_i + b, it is `fm` without fields.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import pairwise

VARIANTS = {
  "dot": dict(),
  "bilinear": dict(bilinear=True),
}


class Dot(pairwise.PairModel, nn.Module):
  """Scores items for a user by an inner product.

  Parameters live under embed/user and embed/item, M in bilinear: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  factors: int = 8  # W
  bilinear: bool = False
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "sum"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  dtype: str = "float32"
  fields = ()
  choices = {"dtype": ("float32", "bfloat16"), **pairwise.PairModel.known_choices}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, {}); see `neumf.NeuMF` for arguments and shapes."""
    dtype = jnp.dtype(self.dtype)
    rows = (("user", self.num_users, self.factors), ("item", self.num_items + 2, self.factors))
    table = {name: x.astype(dtype) for name, x in pairwise.Tables(rows, name="embed")().items()}
    x, item = self.known.vectors(table["user"], table["item"], users, tables, train=train)
    if self.bilinear:
      # Started at the identity: where plain matrix factorization stays.
      identity = lambda key, size: jnp.eye(size, dtype=jnp.float32)
      x = x @ self.param("bilinear", identity, self.factors).astype(dtype)
    return pairwise.score(
      x, lambda ids: jnp.take(item, ids, axis=0), pairwise.inner, cost=1,
      num_items=self.num_items, columns=items.shape[1], positions=positions, candidates=candidates,
      readout=readout, product=lambda x, rows: (x, rows, None)), {}

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if self.factors < 1:
      raise errors.UserError(f"config.model: factors must be at least 1, not {self.factors}")
    self.check_known()

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {"embed/user/embedding": ("user", 0), "embed/item/embedding": ("item", 0),
            **features_lib.known_rows(self, "")}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the users' vectors and what is made of what is known of users and items,
    "model" everything.
    """
    return {"none": (), "embedding": (("embed/user/embedding", r"\g<0>"), *self.known_rules()),
            "model": ((".*", r"\g<0>"),)}.get(mode)
