"""CoNet: two towers on shared users, with connections across (Hu et al. 2018).

Two domains share their users. A tower each scores the items of its domain, as the MLP of `neumf`
does; layer l of either also reads the other one's layer l - 1, by one matrix H_l for both ways:

    a_l = relu(W_l a_{l-1} + H_l c_{l-1} + b_l),   a_0 = [p_u; q_i]                      Eq. 5
    c_l = relu(V_l c_{l-1} + H_l a_{l-1} + d_l),   c_0 = [p_u; q_j]

    mlp++    without H: nothing is shared but the users
    conet    with H; SCoNet is the objective's `sparsity`, an L1 penalty on H

The other tower needs an item j beside the one that is scored. Here that is an item that the user
has chosen in the other domain: a random one in training, the latest one in prediction. It is the
same for the positive and its negatives, so that j tells nothing about which of them is i.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import pairwise

VARIANTS = {
  "mlp++": dict(cross=False),
  "conet": dict(cross=True),
}


class Tower(nn.Module):
  """The weights of an MLP: [(kernel, bias), ...] of its layers and (kernel, bias) of its output."""
  widths: tuple
  initializer: str

  @nn.compact
  def __call__(self):
    layers = [pairwise.Affine(inputs, outputs, self.initializer, name=f"dense_{index}")()
              for index, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:],
                                                            strict=False))]
    return layers, pairwise.Affine(self.widths[-1], 1, self.initializer, is_output=True,
                                   name="output")()


class Cross(nn.Module):
  """The matrices H_l, shaped as the towers' kernels."""
  widths: tuple
  initializer: str

  @nn.compact
  def __call__(self):
    start = pairwise.kernel_init(self.initializer)
    return [self.param(f"kernel_{index}", start, shape) for index, shape in enumerate(
      zip(self.widths, self.widths[1:], strict=False))]


class CoNet(pairwise.PairModel, nn.Module):
  """Scores items of two domains for a user; one of them is `other`, the data set beside the run's.

  Parameters live under embed/user, embed/item (of both domains), here/ and there/ (the towers of
  the run's domain and of `other`) and cross/: paths that checkpoints depend on.
  """
  num_items: int  # N, of both domains
  num_users: int  # U
  other: str = ""  # data set of the second domain, prepared together with the run's
  cross: bool = True
  factors: int = 8  # width of the last layer
  num_layers: int = 3  # the first is [p; q], 2^num_layers times as wide
  initializer: str = "small"
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "sum"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  dtype: str = "float32"
  fields = ()
  objectives = ("cross_pair",)
  choices = {"initializer": pairwise.INITIALIZERS, "dtype": ("float32", "bfloat16"),
             **pairwise.PairModel.known_choices}
  costly = True

  @nn.compact
  def __call__(self, items, users, tables, *, companions=None, there=False, positions=None,
               candidates=None, readout=None, train=False):
    """Returns (scores of ids 0..N, {}).

    Args:
      items: int32 [B, T]; only T counts, for `positions`.
      users: int32 [B]; 0 is an unknown user.
      tables: {"companion": int32 [U + 1]}, an item of the other domain for each user, 0 for none;
        and what is known of items and users, see `recjax.models.features`.
      companions: int32 [B], items to take instead.
      there: score items of the other domain; companions are then of the run's own.
      positions: see `neumf.NeuMF`, as for `candidates` and `readout`.
      train: whether items lose their own vectors (`item_dropout`).
    """
    cast = lambda tree: jax.tree.map(lambda x: x.astype(self.dtype), tree)
    widths = tuple(self.factors << (self.num_layers - i) for i in range(self.num_layers + 1))
    half = widths[0] // 2
    table = cast(pairwise.Tables((("user", self.num_users, half),
                                  ("item", self.num_items + 2, half)), name="embed")())
    towers = [cast(Tower(widths, self.initializer, name=name)()) for name in ("here", "there")]
    (mine, (out, shift)), (others, _) = towers[::-1] if there else towers
    cross = cast(Cross(widths, self.initializer, name="cross")()) if self.cross else None
    person, item = self.known.vectors(table["user"], table["item"], users, tables, train=train)
    if companions is None:
      companions = jnp.take(tables["companion"], users, axis=0)
    beside = jnp.take(item, companions, axis=0) * (companions > 0)[:, None]
    beside = jnp.concatenate([person, beside.astype(person.dtype)], -1)  # c_0, [B, widths[0]]

    # W [p; q] = W_p p + W_q q: what does not depend on i is computed once, not once a pair.
    x = {"mine": person @ mine[0][0][:half] + mine[0][1]}
    if cross is not None:
      x["mine"] = x["mine"] + beside @ cross[0]
      x["other"] = beside @ others[0][0] + others[0][1] + person @ cross[0][:half]

    def describe(ids):
      rows = jnp.take(item, ids, axis=0)
      found = {"mine": rows @ mine[0][0][half:]}
      return found if cross is None else {**found, "other": rows @ cross[0][half:]}

    def function(x, rows):
      state = {name: nn.relu(x[name] + rows[name]) for name in x}
      for level in range(1, self.num_layers):
        a, c = state["mine"], state.get("other")
        state = {"mine": _dense(mine[level], a, cross and cross[level], c)}
        if c is not None:
          state["other"] = _dense(others[level], c, cross[level], a)
      return (state["mine"] @ out)[..., 0] + shift
    return pairwise.score(
      x, describe, function, cost=widths[0] * (1 + self.cross), num_items=self.num_items,
      columns=items.shape[1], positions=positions, candidates=candidates, readout=readout), {}

  def check(self):
    """Raises UserError where something is missing or too small."""
    if not self.other:
      raise errors.UserError("config.model: conet needs model.other, the data set of the second "
                             "domain")
    if min(self.factors, self.num_layers) < 1:
      raise errors.UserError("config.model: factors and num_layers must be at least 1, not "
                             f"{(self.factors, self.num_layers)}")
    self.check_known()

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    own = {f"embed/{name}/embedding": (name, 0) for name in ("user", "item")}
    return own | features_lib.known_rows(self, "")

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries the users' vectors and what is made of what is known, "model" all but the
    output layers.
    """
    return {"none": (), "embedding": (("embed/user/embedding", r"\g<0>"), *self.known_rules()),
            "model": ((r".*/output/.*", None), (".*", r"\g<0>"))}.get(mode)


def _dense(weights, x, cross, other):
  """Returns relu(W x + H other + b), without H where there is no other tower."""
  kernel, bias = weights
  x = x @ kernel + bias
  return nn.relu(x if other is None else x + other @ cross)
