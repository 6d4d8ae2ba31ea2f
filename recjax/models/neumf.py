"""Neural collaborative filtering: GMF, MLP and their sum, NeuMF (He et al. 2017).

    GMF     h . (p_u * q_i) + b                                            Eq. 9
    MLP     h . z_L + b, z_l = relu(W_l z_{l-1} + b_l), z_0 = [p_u; q_i]   Eq. 10
    NeuMF   the sum of both, each with tables of its own                   Eq. 12

The paper puts one output layer on [p_u * q_i; z_L]; that is the sum of two, and NeuMF has the
parameters of GMF below gmf/ and of MLP below mlp/ (one bias more than the paper's). With f
`factors` GMF's tables are f wide, and MLP's L layers halve the width down to f: the tower 64, 32,
16, 8 of f = 8 and L = 3, on tables of 32.

Pre-trained (Section 3.4.1), NeuMF starts from the two models trained alone, their outputs halved:
its logits are then the average of theirs. That is the transfer mode "fusion", from two checkpoints,
a GMF and an MLP.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import pairwise

VARIANTS = {
  "gmf": dict(parts=("gmf",)),
  "mlp": dict(parts=("mlp",)),
  "neumf": dict(parts=("gmf", "mlp")),
}


class GMF(nn.Module):
  """Generalized matrix factorization: the weights, and what they do."""
  num_items: int
  num_users: int
  factors: int
  initializer: str
  known: pairwise.Known
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, users, tables, *, train=False):
    """Returns (users' side [B, W], describe, function) of `pairwise.Pairs`."""
    cast = lambda x: x.astype(self.dtype)
    user = cast(pairwise.Table(self.num_users, self.factors, name="user")())
    item = cast(pairwise.Table(self.num_items + 2, self.factors, name="item")())
    person, item = self.known.vectors(user, item, users, tables, train=train)
    kernel, bias = map(cast, pairwise.Affine(self.factors, 1, self.initializer, is_output=True,
                                             name="output")())
    # h . (p * q) = (h * p) . q: an inner product.
    return (person * kernel[:, 0], lambda ids: jnp.take(item, ids, axis=0),
            lambda x, rows: pairwise.inner(x, rows) + bias)


class MLP(nn.Module):
  """A tower over the vectors of user and item: the weights, and what they do."""
  num_items: int
  num_users: int
  factors: int
  num_layers: int
  initializer: str
  known: pairwise.Known
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, users, tables, *, train=False):
    """Returns (users' side [B, W], describe, function) of `pairwise.Pairs`."""
    cast = lambda x: x.astype(self.dtype)
    widths = [self.factors << (self.num_layers - 1 - i) for i in range(self.num_layers)]
    user = cast(pairwise.Table(self.num_users, widths[0], name="user")())
    item = cast(pairwise.Table(self.num_items + 2, widths[0], name="item")())
    person, item = self.known.vectors(user, item, users, tables, train=train)
    inputs, dense = 2 * widths[0], []
    for index, width in enumerate(widths):
      weights = pairwise.Affine(inputs, width, self.initializer, name=f"dense_{index}")()
      dense.append(tuple(map(cast, weights)))
      inputs = width
    out, shift = map(cast, pairwise.Affine(inputs, 1, self.initializer, is_output=True,
                                           name="output")())
    # W [p; q] = W_p p + W_q q: each side passes its half of the first layer once, not once a pair.
    (first, bias), rest = dense[0], dense[1:]
    mine, theirs = jnp.split(first, 2)

    def function(x, rows):
      z = nn.relu(x + rows)
      for kernel, bias in rest:
        z = nn.relu(z @ kernel + bias)
      return (z @ out)[..., 0] + shift
    return person @ mine + bias, lambda ids: jnp.take(item, ids, axis=0) @ theirs, function


class NeuMF(pairwise.PairModel, nn.Module):
  """Scores items for a user by GMF, MLP or both.

  Parameters live under gmf/ and mlp/, each with user, item, output and for mlp dense_i: paths that
  checkpoints depend on. Tables of items have rows for PAD and MASK, as those of all models.
  """
  num_items: int  # N
  num_users: int  # U
  parts: tuple = ("gmf", "mlp")
  factors: int = 8  # f, "predictive factors"
  num_layers: int = 3  # L of MLP
  initializer: str = "he"
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "sum"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  dtype: str = "float32"
  fields = ()
  choices = {"initializer": pairwise.INITIALIZERS, "dtype": ("float32", "bfloat16"),
             **pairwise.PairModel.known_choices}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, {}).

    Args:
      items: int32 [B, T]; only T counts, for `positions`.
      users: int32 [B]; 0 is an unknown user.
      tables: what is known of items and users, see `recjax.models.features`.
      positions: int32 [S, C], which rows to score: flat positions in each of S equal runs of rows.
        None scores every row.
      candidates: tuple of int32 [S, C or 1, K], the ids to score; None scores all.
      readout: a function of `pairwise.Pairs` [S, C], whose answer comes back instead.
      train: whether items lose their own vectors (`item_dropout`).

    Scores have shape [S, C, N + 1], or [B, 1, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, C, K].
    """
    common = dict(num_items=self.num_items, num_users=self.num_users, factors=self.factors,
                  initializer=self.initializer, known=self.known, dtype=jnp.dtype(self.dtype))
    found = {}
    if "gmf" in self.parts:
      found["gmf"] = GMF(**common, name="gmf")(users, tables, train=train)
    if "mlp" in self.parts:
      found["mlp"] = MLP(**common, num_layers=self.num_layers, name="mlp")(
        users, tables, train=train)

    def function(x, rows):
      return sum(part(x[name], rows[name]) for name, (_, _, part) in found.items())
    return pairwise.score(
      {name: x for name, (x, _, _) in found.items()},
      lambda ids: {name: describe(ids) for name, (_, describe, _) in found.items()}, function,
      cost=self.factors << self.num_layers if self.costly else 1, num_items=self.num_items,
      columns=items.shape[1], positions=positions, candidates=candidates, readout=readout,
      product=None if self.costly else lambda x, rows: (x["gmf"], rows["gmf"], None)), {}

  @property
  def costly(self):
    """Returns whether a score costs more than an inner product."""
    return "mlp" in self.parts

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if not self.parts or set(self.parts) - {"gmf", "mlp"}:
      raise errors.UserError(f"config.model: parts are gmf, mlp or both, not {self.parts}")
    if min(self.factors, self.num_layers) < 1:
      raise errors.UserError("config.model: factors and num_layers must be at least 1, not "
                             f"{(self.factors, self.num_layers)}")
    self.check_known()

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    own = {f"{part}/{name}/embedding": (name, 0) for part in self.parts
           for name in ("user", "item")}
    for part in self.parts:
      own |= features_lib.known_rows(self, f"{part}/")
    return own

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the users' vectors and what is made of what is known, "model" all but the
    output layers, "fusion" a GMF and an MLP, the two sources, into a NeuMF that averages their
    logits.
    """
    rules = {
      "none": (),
      "embedding": ((r".*/user/embedding", r"\g<0>"), *self.known_rules("(gmf|mlp)/")),
      "model": ((r".*/output/.*", None), (".*", r"\g<0>")),
      "fusion": ((r"gmf/output/.*", r"\g<0>", {"scale": 0.5}), (r"gmf/.*", r"\g<0>"),
                 (r"mlp/output/.*", r"\g<0>", {"source": 1, "scale": 0.5}),
                 (r"mlp/.*", r"\g<0>", {"source": 1}))}
    return None if mode == "fusion" and len(self.parts) < 2 else rules.get(mode)
