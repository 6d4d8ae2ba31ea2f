"""Caser: convolutions over the last few items as over an image (Tang & Wang 2018).

The L most recent items of a user are the rows of an image. Vertical filters [L, 1] weigh the rows,
horizontal filters [h, W] look at h items in a row, and what they find is joined with a vector of
the user to score every item. Sizes, starts and the order of things are those of the authors'
PyTorch repository.

Letters: B batch, T columns, L positions, W width, N items, S shards, C scored rows a shard,
K candidates, Z width of what is scored.
"""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import catalog
from recjax import errors
from recjax.models import features as features_lib
from recjax.models import layers

VARIANTS = {
  # The code behind the survey's Table 2.
  "survey": dict(item_width=100, user_width=100),
  # The authors' PyTorch repository.
  "repo": dict(item_width=50, user_width=50),
}


class Embed(nn.Module):
  """Concatenates the vectors of every position's item and of its attributes: the image's rows."""
  num_items: int
  num_users: int
  item_width: int
  user_width: int
  fields: tuple
  dtype: jnp.dtype
  schema: tuple = ()
  aggregate: str = "concat"
  item_dropout: float = 0.0
  user_schema: tuple = ()
  user_aggregate: str = "sum"

  @nn.compact
  def __call__(self, items, users, tables, *, train=False):
    """Returns ([B, T, W], [B, user_width] or None); padding has a vector of its own, trained."""
    start = dict(initializer="caser", dtype=self.dtype)
    item = layers.ItemTable(self.num_items + 2, self.item_width, **start, name="item")
    parts = [item(items)]
    if self.schema:
      parts[0], _ = features_lib.Features(
        self.schema, self.aggregate, self.num_items, item_dropout=self.item_dropout,
        name="features", **start)(items, item.embedding, tables, train=train)
    for field, rows, width, slots in self.fields:
      values = layers.RowTable(rows, width, **start, name=field)(jnp.take(tables[field], items, 0))
      parts.append(values.reshape(*items.shape, slots * width))
    x = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
    if not self.user_width:
      return x, None
    user = layers.RowTable(self.num_users, self.user_width, **start, name="user")(users)
    if self.user_schema:
      user = features_lib.UserFeatures(self.user_schema, self.user_aggregate, self.num_users,
                                       name="user_features", **start)(users, user, tables)
    return x, user


class Filters(nn.Module):
  """The kernel [filters, height, width] and bias of a convolution, started as torch.nn.Conv2d."""
  height: int
  width: int
  filters: int

  @nn.compact
  def __call__(self):
    bound = 1 / math.sqrt(self.height * self.width)
    uniform = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    return (self.param("kernel", uniform, (self.filters, self.height, self.width)),
            self.param("bias", uniform, (self.filters,)))


class Output(nn.Module):
  """Scores of ids 0..N, W2 x + b2, or what `catalog.read` says."""
  num_items: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, candidates=None, readout=None):
    count = self.num_items + 1
    table = layers.held(self, "W2", layers.table_init("caser"), (count, x.shape[-1]))
    bias = layers.held(self, "b2", nn.initializers.zeros_init(), (count,))
    return catalog.read(catalog.Scores(x, table, bias, count=count), candidates, readout)


class Caser(nn.Module):
  """Scores every item after the last L items of a user.

  Parameters live under embed/, conv_v, conv_h_1 .. conv_h_L, fc1 and out/: paths that checkpoints
  depend on. Beside the paper's N + 1 item vectors there is one for MASK, so that next-item and
  masked-item runs have the same parameters.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that widen the image
  features: tuple = ()  # `features.Spec`s of what is aggregated with the items' own vectors
  aggregate: str = "concat"
  item_dropout: float = 0.0  # how often an item has to do without its own vector
  user_features: tuple = ()  # likewise, of users
  user_aggregate: str = "sum"
  item_width: int = 100
  user_width: int = 100  # 0: no user embedding
  vertical: int = 4  # filters over one column of the image
  horizontal: int = 16  # filters of each height
  max_len: int = 5  # L
  dropout: float = 0.5  # of what the filters found
  transfer_items: bool = False  # "embedding" carries items as well, as the survey's released code
  dtype: str = "float32"
  objectives = ("next_window", "masked_window")
  extra_tokens = 0
  splits_items = True
  choices = {"aggregate": features_lib.AGGREGATES, "user_aggregate": features_lib.OF_USERS,
             "dtype": ("float32", "bfloat16")}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               train=False):
    """Returns (scores of ids 0..N, dict of intermediates).

    Args:
      items: int32 [B, T] left-padded ids, T <= L; 0 padding, N + 1 MASK.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 2, slots]} attribute ids of every item id.
      positions: int32 [S, C], which rows to score: flat positions in each of S equal runs of rows.
        All positions of a row have the same scores. None scores every row.
      candidates: tuple of int32 [S, C or 1, K], the ids to score; None scores all.
      readout: a function of `catalog.Scores` [S, C], whose answer comes back instead.
      train: whether dropout is on.

    Scores have shape [S, C, N + 1], or [B, 1, N + 1] without `positions`; with `candidates` they
    are a tuple of [S, C, K].
    """
    length, dtype = items.shape[1], jnp.dtype(self.dtype)
    assert length <= self.max_len, f"{length} columns, but Caser reads {self.max_len}"
    # Filters have places: an item must stand at the same one however many columns were cut.
    padded = jnp.pad(items, ((0, 0), (self.max_len - length, 0)))
    x, user = Embed(self.num_items, self.num_users, self.item_width, self.user_width, self.fields,
                    dtype, self.features, self.aggregate, self.item_dropout, self.user_features,
                    self.user_aggregate, name="embed")(padded, users, tables, train=train)
    out = {"embedded": x}
    found = []
    if self.vertical:
      kernel, bias = Filters(self.max_len, 1, self.vertical, name="conv_v")()
      columns = jnp.einsum("blw,fl->bfw", x, kernel[..., 0].astype(dtype))
      out["vertical"] = columns + bias[:, None].astype(dtype)  # [B, vertical, W], no activation
      found.append(out["vertical"].reshape(len(x), -1))
    if self.horizontal:
      out["horizontal"] = self._slide(x)
      found.append(out["horizontal"])
    joined = jnp.concatenate(found, -1)
    joined = layers.Dropout(self.dropout)(joined, train=train)
    z = nn.relu(layers.dense(x.shape[-1], initializer="torch", fan_in=joined.shape[-1], name="fc1",
                             dtype=dtype)(joined))
    z = z if user is None else jnp.concatenate([z, user], -1)  # [B, Z]
    out["scored"] = z
    z = z[:, None] if positions is None else layers.select(z[:, None], positions // max(length, 1))
    return Output(self.num_items, dtype, name="out")(z, candidates, readout), out

  def _slide(self, x):
    """Returns [B, L * horizontal]: the largest finding of every horizontal filter.

    All filters are laid out at all their places in one matrix, most of it zeros: one large product
    is faster than L small ones, on a CPU already.
    """
    batch, length, width = x.shape
    blocks, biases = [], []
    for height in range(1, length + 1):
      kernel, bias = Filters(height, width, self.horizontal, name=f"conv_h_{height}")()
      blocks += [jnp.pad(kernel, ((0, 0), (top, length - height - top), (0, 0)))
                 for top in range(length - height + 1)]
      biases.append(bias)
    layout = jnp.concatenate(blocks).reshape(-1, length * width).astype(x.dtype)
    slid = (x.reshape(batch, -1) @ layout.T).reshape(batch, -1, self.horizontal)
    ends = [0]
    for height in range(1, length + 1):
      ends.append(ends[-1] + length - height + 1)
    peaks = [slid[:, low:high].max(axis=1) for low, high in zip(ends[:-1], ends[1:], strict=True)]
    # The bias is the same at all places and ReLU is monotonic: both can wait until after the max.
    return nn.relu(jnp.concatenate(peaks, -1) + jnp.concatenate(biases).astype(x.dtype))

  def check(self):
    """Raises UserError where sizes do not fit together."""
    features_lib.check(self)
    features_lib.check_users(self, self.user_width)
    if min(self.vertical, self.horizontal) < 0 or not self.vertical + self.horizontal:
      raise errors.UserError(f"config.model: vertical={self.vertical} and horizontal="
                             f"{self.horizontal} leave Caser no filter")
    if self.max_len < 1:
      raise errors.UserError(f"config.model: max_len must be at least 1, not {self.max_len}")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    return {"items": jnp.zeros((1, 1), jnp.int32), "users": jnp.zeros(1, jnp.int32)}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {**layers.embed_rows(self.user_width, self.fields),
            **features_lib.known_rows(self),
            "out/W2": ("output", 0), "out/b2": ("output", 0)}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode (survey, Section 4.3), or None for an unknown mode.

    "embedding" carries user and attribute tables (and items with `transfer_items`), "model" all
    tables and convolutions; fc1 and out start fresh in either.
    """
    names = (["user"] * bool(self.user_width) + ["item"] * self.transfer_items
             + [re.escape(field) for field, *_ in self.fields])
    carried = [*[rf"embed/({'|'.join(names)})/embedding"] * bool(names),
               *features_lib.known_leaves(self)]
    return {
      "none": (),
      "embedding": tuple((leaf, r"\g<0>") for leaf in carried),
      "model": ((r"(embed|conv_v|conv_h_\d+)/.*", r"\g<0>"),),
    }.get(mode)
