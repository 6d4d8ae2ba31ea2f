"""NextItNet and GRec: residual blocks of dilated convolutions over a user's items.

NextItNet (Yuan et al. 2019) is causal and learns the next item at every position; GRec (Yuan et al.
2020) reads both sides and fills in masked items. Both are backbones of PeterRec (Yuan et al. 2020),
which freezes them and trains patches (`patches`). Sequences are left-padded and padding is 0 before
every convolution: columns of padding change nothing.

The authors' code applies a ReLU before its full softmax; here the scores are of the last block's
output, as in their sampled one.

Letters: B batch, T positions, C channels, N items, S shards, K candidates.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import features as features_lib
from recjax.models import layers
from recjax.models import patches
from recjax.models import sequence_embed
from recjax.models import transformer

SIZES = dict(item_width=64, num_layers=8, dilations=(1, 4), max_len=100)
VARIANTS = {"nextitnet": dict(causal=True, **SIZES), "grec": dict(causal=False, **SIZES)}


class Block(nn.Module):
  """x + ReLU(LN(conv_2d(ReLU(LN(conv_d(x)))))), with patches before the norms.

  Serial patches add to what a convolution gives, z + MP(z) (PeterRec, Fig. 2: two of them, or one
  after the second), parallel ones what they make of its input, conv(x) + MP(x).
  """
  kernel: int
  dilation: int
  causal: bool
  patch: str
  patch_width: int
  legacy_inner_skip: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep):
    """Returns [B, T, C]; see `Encoder`."""
    y = x
    for index, dilation in enumerate((self.dilation, 2 * self.dilation)):
      y = y * keep
      reach = (self.kernel - 1) * dilation  # all of it in the past, or half
      z = layers.Convolution(
        self.kernel, reach if self.causal else reach // 2, layers.table_init("bert"), self.dtype,
        dilation, name=f"conv_{index}")(y)
      bottleneck = patches.Bottleneck(self.patch_width, self.dtype, name=f"patch_{index}")
      if self.patch == "parallel":
        z = z + bottleneck(y) + (y if self.legacy_inner_skip else 0)
      elif self.patch == "serial_two" or self.patch == "serial_one" and index == 1:
        z = z + bottleneck(z)
      y = nn.relu(nn.LayerNorm(epsilon=1e-8, dtype=self.dtype, name=f"norm_{index}")(z))
    return x + y


class Encoder(nn.Module):
  """Blocks on top of each other."""
  dilations: tuple
  block: dict

  @nn.compact
  def __call__(self, x, keep):
    """Returns ([B, T, C], {"block_i": [B, T, C]}).

    Args:
      x: [B, T, C].
      keep: bool [B, T], False at padding.
    """
    out, keep = {}, keep[..., None].astype(x.dtype)
    for index, dilation in enumerate(self.dilations):
      x = out[f"block_{index}"] = Block(dilation=dilation, **self.block, name=f"block_{index}")(
        x, keep)
    return x, out


class NextItNet(nn.Module):
  """Scores of every item at (selected) positions, from dilated convolutions.

  Parameters live under embed/, encoder/block_i/ and head/: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "concat"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  item_width: int = 64  # C, with the attributes and what `concat` adds
  num_layers: int = 8  # blocks
  dilations: tuple = (1, 4)  # of their first convolutions, over and over; the second's are twice it
  kernel: int = 3
  causal: bool = True
  max_len: int = 100
  output: str = "untied"  # untied, tied (bare dot product) or tied_transform
  labels: int = 0  # classes that are scored in place of items; 0: items
  patch: str = "none"
  patch_width: int = 0  # of a bottleneck; 0: C / 8
  legacy_inner_skip: bool = False  # parallel patches add their input, as in the authors' code
  dtype: str = "float32"
  user_width = 0
  extra_tokens = 0
  user_features = ()
  initializer = "peterrec"
  choices = {"output": layers.OUTPUTS, "patch": patches.CONVOLUTIONAL,
             "aggregate": features_lib.AGGREGATES, "dtype": ("float32", "bfloat16")}

  @property
  def objectives(self):
    """Returns the names of the objectives that fit: a causal network cannot fill in items."""
    own = ("causal_next_item",) if self.causal else ("masked_item", "next_item")
    return (*own, "contrast", *patches.USER_TASKS)

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               pool=False, train=False):
    """Returns (scores of ids 0..N, dict of intermediates).

    Args:
      items: int32 [B, T] left-padded ids; 0 padding, N + 1 MASK.
      users: unused.
      tables: {field: int32 [N + 2, slots]} attribute ids of every item id.
      positions: int32 [S, P], where to score: flat positions in each of S equal runs of rows. None
        scores all positions.
      candidates: tuple of int32 [S, P or 1, K], ids to score there; None scores all.
      readout: a function of `catalog.Scores` [S, P], whose answer comes back instead.
      pool: whether the vectors at a run's `positions` are added up and scored as one, P = 1.
      train: whether items lose their own vectors (`item_dropout`).

    Scores have shape [S, P, N + 1], or [B, T, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, P, K].
    """
    dtype = jnp.dtype(self.dtype)
    embed = sequence_embed.SequenceEmbed(
      num_items=self.num_items, num_users=self.num_users, max_len=self.max_len,
      item_width=self.item_width, user_width=0, fields=self.fields, places=False, dropout=0.0,
      initializer="bert", dtype=dtype, schema=self.features, aggregate=self.aggregate,
      item_dropout=self.item_dropout, name="embed")
    vectors, table = embed.vectors(items, tables, whole=self.output != "untied", train=train)
    x = embed(items, users, tables, vectors=vectors, train=train)
    out = {"embedded": x}
    block = dict(kernel=self.kernel, causal=self.causal, patch=self.patch,
                 patch_width=self.patch_width or max(x.shape[-1] // 8, 1),
                 legacy_inner_skip=self.legacy_inner_skip, dtype=dtype)
    x, out["encoder"] = Encoder(self.first_dilations(), block, name="encoder")(x, items > 0)
    out["encoded"] = x
    if positions is not None:
      x = layers.select(x, positions)
    return layers.score_items(
      x.sum(1, keepdims=True) if pool else x, table, output=self.output,
      num_items=self.num_items, labels=self.labels, initializer=self.initializer, dtype=dtype,
      candidates=candidates, readout=readout), out

  def first_dilations(self):
    """Returns the dilation of every block's first convolution."""
    return tuple(self.dilations[i % len(self.dilations)] for i in range(self.num_layers))

  def check(self):
    """Raises UserError where sizes do not fit together."""
    if self.num_layers < 1 or not self.dilations or min(self.dilations) < 1:
      raise errors.UserError("config.model: num_layers and all dilations must be at least 1, not "
                             f"{self.num_layers} and {self.dilations}")
    if not self.causal and self.kernel % 2 == 0:
      raise errors.UserError(f"config.model: kernel={self.kernel} has no middle; make it odd")
    features_lib.check(self)
    if self.output != "untied" and self.fields:
      raise errors.UserError(f"config.model: output={self.output} scores against items of "
                             "item_width alone; set output=untied, or leave out the attributes")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    return {"items": jnp.zeros((1, 1), jnp.int32), "users": jnp.zeros(1, jnp.int32)}

  row_tables = transformer.SequenceTransformer.row_tables
  transfer_rules = transformer.SequenceTransformer.transfer_rules
  optim_rules = transformer.SequenceTransformer.optim_rules
