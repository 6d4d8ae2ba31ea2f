"""GRU4Rec: a recurrent network over a user's items (Hidasi et al. 2016, Hidasi & Karatzoglou 2018).

Letters: B batch, T positions, W width of the input, D width of the state, N items, S shards,
C labeled positions a shard, K candidates.
"""


import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import layers
from recjax.models import sequence_embed
from recjax.models import transformer

VARIANTS = {
  # One table for input and output ("constrained embedding" in the authors' code), in the sizes of
  # the other leaderboard models.
  "gru4rec": dict(item_width=128, hidden=128, num_layers=1, max_len=200, dropout=0.2,
                  output="tied", initializer="glorot"),
  # As the 2016 paper: 100 units, an output matrix of its own.
  "untied": dict(item_width=100, hidden=100, num_layers=1, max_len=200, dropout=0.2,
                 output="untied", initializer="glorot"),
}


class GRU(nn.Module):
  """A gated recurrent unit that stands still at padding.

  z, r = sigmoid(x W_zr + h U_zr + b_zr), c = tanh(x W_c + (r h) U_c + b_c), h' = (1 - z) h + z c
  (Hidasi et al. 2016, Eq. 1-4, with biases).
  """
  width: int
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep):
    """Returns the state after every position, [B, T, D].

    Args:
      x: [B, T, W].
      keep: bool [B, T], False at padding: the state is carried on.
    """
    def matrix(name, rows):  # [3, rows, D]: update gate z, reset gate r, candidate c
      start = nn.initializers.variance_scaling(*{
        "torch": (1 / 3, "fan_in", "uniform"), "bert": (0.02**2 * rows, "fan_in", "normal"),
        "glorot": (1.0, "fan_avg", "uniform")}[self.initializer], batch_axis=0)
      return self.param(name, start, (3, rows, self.width)).astype(self.dtype)
    kernel, recurrent = matrix("kernel", x.shape[-1]), matrix("recurrent", self.width)
    bias = self.param("bias", nn.initializers.zeros_init(), (3, self.width)).astype(self.dtype)
    # What the input contributes to all gates is known beforehand: one large product.
    given = jnp.einsum("btw,gwd->tbgd", x, kernel) + bias  # [T, B, 3, D]
    gates = jnp.concatenate([recurrent[0], recurrent[1]], axis=1)  # [D, 2 D]

    def step(state, now):
      given, keep = now
      held = state @ gates
      z = nn.sigmoid(given[:, 0] + held[:, :self.width])
      r = nn.sigmoid(given[:, 1] + held[:, self.width:])
      c = jnp.tanh(given[:, 2] + (r * state) @ recurrent[2])
      state = jnp.where(keep[:, None], (1 - z) * state + z * c, state)
      return state, state
    start = jnp.zeros((x.shape[0], self.width), given.dtype)
    _, states = jax.lax.scan(step, start, (given, keep.T))
    return states.swapaxes(0, 1)


class Encoder(nn.Module):
  """GRUs on top of each other, with dropout after each."""
  num_layers: int
  width: int
  dropout: float
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep, *, train):
    """Returns ([B, T, D], {"gru_i": [B, T, D]}); see `GRU` for `x` and `keep`."""
    out = {}
    for index in range(self.num_layers):
      x = GRU(self.width, self.initializer, self.dtype, name=f"gru_{index}")(x, keep)
      x = out[f"gru_{index}"] = layers.Dropout(self.dropout)(x, train=train)
    return x, out


class GRU4Rec(nn.Module):
  """Scores the item after every position from the state of a GRU.

  Parameters live under embed/, encoder/gru_i/ and head/: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "concat"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  item_width: int = 128
  user_width: int = 0  # 0: no user embedding
  num_layers: int = 1
  hidden: int = 128  # D, width of the states
  max_len: int = 200
  dropout: float = 0.2
  output: str = "tied"  # untied, tied (bare dot product) or tied_transform
  initializer: str = "glorot"
  dtype: str = "float32"
  extra_tokens = 0
  labels, patch = 0, "none"
  splits_items = True
  objectives = ("causal_next_item",)
  choices = {"output": layers.OUTPUTS, "initializer": layers.INITIALIZERS,
             "aggregate": features_lib.AGGREGATES,
             "user_aggregate": features_lib.OF_USERS, "dtype": ("float32", "bfloat16")}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, dict of intermediates).

    Args:
      items: int32 [B, T] left-padded ids; 0 padding, N + 1 MASK.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 2, slots]} attribute ids of every item id.
      positions: int32 [S, C], where to score: flat positions in each of S equal runs of rows. None
        scores all positions.
      candidates: tuple of int32 [S, C or 1, K], ids to score there; None scores all.
      readout: a function of `catalog.Scores` [S, C], whose answer comes back instead.
      train: whether dropout is on.

    Scores have shape [S, C, N + 1], or [B, T, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, C, K].
    """
    common = dict(initializer=self.initializer, dtype=jnp.dtype(self.dtype))
    embed = sequence_embed.SequenceEmbed(
      num_items=self.num_items, num_users=self.num_users, max_len=self.max_len,
      item_width=self.item_width, user_width=self.user_width, fields=self.fields, places=False,
      dropout=self.dropout, schema=self.features, aggregate=self.aggregate,
      item_dropout=self.item_dropout, user_schema=self.user_features,
      user_aggregate=self.user_aggregate, **common, name="embed")
    vectors, table = embed.vectors(items, tables, whole=self.output != "untied", train=train)
    x = embed(items, users, tables, vectors=vectors, train=train)
    out = {"embedded": x}
    x, out["encoder"] = Encoder(self.num_layers, self.hidden, self.dropout, **common,
                                name="encoder")(x, items > 0, train=train)
    out["encoded"] = x
    if positions is not None:
      x = layers.select(x, positions)
    return layers.score_items(x, table, output=self.output, num_items=self.num_items,
                              candidates=candidates, readout=readout, **common), out

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if self.num_layers < 1:
      raise errors.UserError(f"config.model: num_layers must be at least 1, not {self.num_layers}")
    features_lib.check(self)
    features_lib.check_users(self, self.user_width)
    width = features_lib.width(self.item_width, self.features, self.aggregate)
    if self.output == "tied" and self.hidden != width:
      joined = "" if width == self.item_width else f" with features, {width} in all"
      raise errors.UserError(f"config.model: hidden={self.hidden} states cannot be scored against "
                             f"items of item_width={self.item_width}{joined}; make them equal, or "
                             "set output=untied")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    return {"items": jnp.zeros((1, 1), jnp.int32), "users": jnp.zeros(1, jnp.int32)}

  row_tables = transformer.SequenceTransformer.row_tables
  transfer_rules = transformer.SequenceTransformer.transfer_rules
  optim_rules = transformer.SequenceTransformer.optim_rules
