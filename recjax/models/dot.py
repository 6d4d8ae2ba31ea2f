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
  user_features: tuple = ()  # `features.Spec`s of what is aggregated with the users' own vectors
  user_aggregate: str = "sum"
  dtype: str = "float32"
  fields = ()
  choices = {"dtype": ("float32", "bfloat16"), "user_aggregate": features_lib.OF_USERS}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, {}); see `neumf.NeuMF` for arguments and shapes."""
    del train
    dtype = jnp.dtype(self.dtype)
    rows = (("user", self.num_users, self.factors), ("item", self.num_items + 2, self.factors))
    table = {name: x.astype(dtype) for name, x in pairwise.Tables(rows, name="embed")().items()}
    x = pairwise.of_users(table["user"], users)
    if self.user_features:
      x = features_lib.UserFeatures(self.user_features, self.user_aggregate, self.num_users, "bert",
                                    dtype, name="user_features")(users, x, tables)
    if self.bilinear:
      # Started at the identity: where plain matrix factorization stays.
      identity = lambda key, size: jnp.eye(size, dtype=jnp.float32)
      x = x @ self.param("bilinear", identity, self.factors).astype(dtype)
    return pairwise.score(
      x, lambda ids: jnp.take(table["item"], ids, axis=0), pairwise.inner, cost=1,
      num_items=self.num_items, columns=items.shape[1], positions=positions, candidates=candidates,
      readout=readout), {}

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if self.factors < 1:
      raise errors.UserError(f"config.model: factors must be at least 1, not {self.factors}")
    features_lib.check_users(self, self.factors)

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {"embed/user/embedding": ("user", 0), "embed/item/embedding": ("item", 0),
            **features_lib.user_row_tables(self.user_features, "user_features")}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the users' vectors and what is made of what is known of them, "model"
    everything.
    """
    carried = ("embed/user/embedding", *features_lib.leaves(self.user_features, "user_features"))
    return {"none": (), "embedding": tuple((leaf, r"\g<0>") for leaf in carried),
            "model": ((".*", r"\g<0>"),)}.get(mode)
