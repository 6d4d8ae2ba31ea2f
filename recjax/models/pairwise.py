"""What the recommendation functions f(u, v) share: weights as arrays, and the scores of pairs.

Such a model reads no history: its inputs are users, and the items that it is asked to score. Its
networks run inside loops over blocks of the catalog (`Pairs`), where no linen module can be
called: modules here only own the weights.

Letters: B batch, W width, N items, U users, S shards, C scored rows a shard, K candidates.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import catalog
from recjax.models import features as features_lib
from recjax.models import layers

INITIALIZERS = ("he", "small")


@dataclasses.dataclass(frozen=True)
class Pairs(catalog.Scores):
  """Scores of a function of two sides that need be no inner product, such as a network over both.

    x         tree of [S, C, W], one side at every position
    describe  ids [...] -> tree of [..., W'], the other side of these ids
    function  (tree of [S, C, 1, W], tree of [S, C or 1, K, W'] or [V, W']) -> [S, C, K or V]
    cost      numbers that the function holds for one pair: what a block is as wide as
    product   (x, rows described) -> (vectors [S, C, W], table [V, W], bias [V] or None) whose inner
              products are the scores, but for what is the same for all items; None if it is no such
              function

  Blocks keep [S, C, N + 1] times that from ever being there.
  """
  table: None = None
  describe: object = None
  function: object = None
  cost: int = 1
  product: object = None

  def __len__(self):
    return self.count

  def without(self, barred):
    def function(x, described):
      rows, gone = described
      return jnp.where(gone, catalog.BARRED, self.function(x, rows))
    def product(x, described):
      rows, gone = described
      vectors, table, bias = self.product(x, rows)
      return vectors, table, jnp.where(gone, catalog.BARRED, 0 if bias is None else bias)
    describe = lambda ids: (self.describe(ids), jnp.take(barred, ids))
    return dataclasses.replace(self, describe=describe, function=function,
                               product=self.product and product)

  def all(self):
    def write(scores, found, ids, fresh):
      del fresh
      return jax.lax.dynamic_update_slice_in_dim(scores, found, ids[0], 2)
    return self.fold(jnp.zeros((*self._positions, len(self)), jnp.float32), write)

  def of(self, ids):
    return self._score(ids)

  def against_all(self, labels):
    # Each block's partition is computed once more for its gradient, so that only one is held.
    blocks = self._blocks()
    @jax.checkpoint
    def partition(index):
      _, ids, fresh = blocks.place(index)
      return jax.nn.logsumexp(jnp.where(fresh, self.block(blocks, None, ids), -jnp.inf), axis=-1)
    parts = jax.lax.map(partition, jnp.arange(blocks.count))
    return self.of(labels[..., None])[..., 0].astype(jnp.float32), jax.nn.logsumexp(parts, axis=0)

  def as_product(self):
    return self.product and self.product(self.x, self.describe(jnp.arange(len(self))))

  def width(self):
    size = catalog.BLOCK.get(jax.default_backend(), catalog.BLOCK_ELSEWHERE)
    shards, positions = self._positions
    return min(max(size // (shards * positions * self.cost), 64), len(self))

  def block(self, blocks, begin, ids):
    del blocks, begin
    return self._score(ids).astype(jnp.float32)

  def _blocks(self):
    return catalog.Blocks(len(self), self.width(), 0)

  def _score(self, ids):
    return self.function(jax.tree.map(lambda x: x[:, :, None], self.x), self.describe(ids))

  @property
  def _positions(self):
    return jax.tree.leaves(self.x)[0].shape[:2]


class Table(nn.Module):
  """A table of vectors [rows, W], started N(0, 0.01)."""
  rows: int
  width: int

  @nn.compact
  def __call__(self):
    return self.param("embedding", nn.initializers.normal(0.01), (self.rows, self.width))


class Tables(nn.Module):
  """Several tables by name: `rows` are (name, rows, W)."""
  rows: tuple

  @nn.compact
  def __call__(self):
    return {name: Table(rows, width, name=name)() for name, rows, width in self.rows}


class Affine(nn.Module):
  """The kernel [inputs, outputs] and bias [outputs] of a dense layer.

  "he" starts as the code of He et al. 2017: hidden kernels U(-b, b) with b^2 = 6 / (inputs +
  outputs), that of the output with b^2 = 3 / inputs. "small" is N(0, 0.01) (Hu et al. 2018).
  Biases start at 0 in either: beside such small kernels random ones decide which units ever live,
  and with all eight of a layer below 0 nothing is learned.
  """
  inputs: int
  outputs: int
  initializer: str
  is_output: bool = False

  @nn.compact
  def __call__(self):
    kernel = kernel_init(self.initializer, is_output=self.is_output)
    return (self.param("kernel", kernel, (self.inputs, self.outputs)),
            self.param("bias", nn.initializers.zeros_init(), (self.outputs,)))


def kernel_init(initializer, *, is_output=False):
  """Returns the initializer of a kernel; see `Affine`."""
  if initializer == "small":
    return nn.initializers.normal(0.01)
  return nn.initializers.lecun_uniform() if is_output else nn.initializers.glorot_uniform()


def of_users(table, users):
  """Returns rows [B, W] of a table of users 1..U; an unknown user, 0, gets zeros."""
  found = jnp.take(table, jnp.maximum(users - 1, 0), axis=0)
  return found * (users > 0)[:, None].astype(found.dtype)


def inner(x, rows):
  """Returns the inner products [S, C, K] of [S, C, 1, W] and [S, C or 1, K, W] or [V, W]."""
  if rows.ndim == 2:
    return jnp.einsum("scw,vw->scv", x[:, :, 0], rows)
  return jnp.sum(x * rows, axis=-1)


def score(x, describe, function, *, cost, num_items, columns, positions, candidates, readout,
          product=None):
  """Returns the scores of ids 0..N, or what `catalog.read` says.

  Args:
    x: tree of [B, W], the users' side.
    describe: see `Pairs`.
    function: likewise.
    cost: likewise.
    num_items: N.
    columns: T, of the (unread) history; `positions` count them.
    positions: int32 [S, C], or None for every row: then scores are [B, 1, N + 1].
    candidates: see `catalog.read`.
    readout: likewise.
    product: see `Pairs`.
  """
  def place(part):
    part = part[:, None]
    return part if positions is None else layers.select(part, positions // max(columns, 1))
  pairs = Pairs(jax.tree.map(place, x), describe=describe, function=function, cost=cost,
                product=product, count=num_items + 1)
  return catalog.read(pairs, candidates, readout)


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of items and users beside their own vectors; see `recjax.models.features`.

  Modules that call these hold the parameters, as features/ and user_features/.
  """
  features: tuple = ()  # `features.Spec`s of items
  aggregate: str = "sum"
  item_dropout: float = 0.0
  user_features: tuple = ()  # `features.Spec`s of users
  user_aggregate: str = "sum"

  def vectors(self, user, item, users, tables, *, train):
    """Returns (vectors of `users` [B, W], those of all items [N + 2, W]), with what is known.

    Args:
      user: [U, W], the users' own.
      item: [N + 2, W], the items' own.
      users: int32 [B].
      tables: see `features.Features`.
      train: likewise.
    """
    people = of_users(user, users)
    if self.user_features:
      people = features_lib.UserFeatures(
        self.user_features, self.user_aggregate, len(user), "bert", people.dtype,
        name="user_features")(users, people, tables)
    if self.features:
      _, item = features_lib.Features(
        self.features, self.aggregate, len(item) - 2, "bert", item.dtype, self.item_dropout,
        name="features")(jnp.zeros(0, jnp.int32), item, tables, whole=True, train=train)
    return people, item


class PairModel:
  """Defaults of the contract that `recjax.models` describes, for models of pairs."""
  max_len = 1  # an example is one interaction
  extra_tokens = 0
  objectives = ("pair",)
  costly = False
  known_choices = {"aggregate": features_lib.OF_USERS, "user_aggregate": features_lib.OF_USERS}

  @property
  def known(self):
    """Returns the `Known` of the model's fields of the same names."""
    return Known(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Known)})

  def check_known(self):
    """Raises UserError where the fields of `Known` do not fit together."""
    features_lib.check(self)
    features_lib.check_users(self, self.factors)

  def known_rules(self, under=""):
    """Returns the rules that carry what is made of what is known."""
    return tuple((leaf, r"\g<0>") for leaf in features_lib.known_leaves(self, under))

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    return {"items": jnp.zeros((1, 1), jnp.int32), "users": jnp.zeros(1, jnp.int32)}
