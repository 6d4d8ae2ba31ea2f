"""Item vectors out of what is known of items: v = g(v~, v^) (Zeng et al. 2021, Eq. 1).

v~ is an item's own vector, v^ what providers say of it (see `recjax.data.providers`): attributes,
given vectors, texts. With a projection P_i of every provider, P v^ = sum_i P_i v^_i, and g is

    concat   [v~; v^_1; v^_2; ...]
    sum      v~ + P v^
    gate     a v~ + (1 - a) P v^, a = sigmoid(W [v~; P v^] + b)
    mlp      two layers over what concat has
    replace  P v^: what is known of an item is all that it is
    fusion   v~; P v^ is a second stream of a transformer's last blocks (`blocks.FusionBlock`)

Padding, MASK and other tokens are no items: of them nothing is known, and `replace` leaves them
their own vectors. Of an item of which nothing is known, a provider has a learned vector.

A tied head scores against the vectors of all rows: they are computed once for every part of a batch
that is differentiated (leave `micro_batch` unset where an encoder costs more than the model), and
once for every batch of an evaluation, and are held at once, as are, of texts, the vectors of all
their words. With drawn negatives and `optim.sparse_rows` only the rows that a step meets are
computed. Catalogs of millions of items can so be trained on; evaluated they are with as much memory
as [R, W] and, with texts, [R, words, D] need. An untied head (survey_code, Caser) has rows of its
own, of which features say nothing: such models cannot rank items that they were not trained on.

Users are aggregated with what is known of them likewise, by any g but concat (`UserFeatures`): so
that one without a single interaction is somebody. Of an unknown user nothing is known, either.

Letters: R rows (padding, items, MASK, tokens), n of them, N items, W width of items.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import layers
from recjax.models import text_encoders

AGGREGATES = ("concat", "sum", "gate", "mlp", "replace")
FUSION = "fusion"  # of transformers alone
ENCODERS = {
  "word_avg": text_encoders.WordAverage,
  "cnn": text_encoders.CNN,
  "bigru_attention": text_encoders.BiGRUAttention,
  "transformer_cls": text_encoders.TransformerCLS,
}
OF_USERS = tuple(name for name in AGGREGATES if name != "concat")
RESERVED = ("gate", "hidden", "out")  # what Features calls its own layers


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model must know of a provider; see `recjax.data.providers.OPTIONS`."""
  name: str
  kind: str  # attribute, given or text
  size: int  # columns of given vectors, or rows of the table of values or words
  width: int
  trained: bool = False
  encoder: str = "word_avg"
  remove_principal: bool = False
  length: int = 0  # words of the longest text

  @property
  def columns(self):
    """Returns the width of v^_i where it is not projected to that of items."""
    return self.width or self.size


def specs(features, sizes, *, field="model.features"):
  """Returns the `Spec`s of {NAME: options} and {NAME: size}, of the config's `field`.

  Raises:
    UserError: an encoder that there is not, or options that do not go together.
  """
  found = []
  known = [field.name for field in dataclasses.fields(Spec)]
  for name, options in features.items():
    spec = Spec(name=name, size=sizes[name], **{k: v for k, v in options.items() if k in known})
    where = f"{field}, {name}"
    errors.choose(ENCODERS, spec.encoder, f"{where}: encoder")
    if name in RESERVED:
      raise errors.UserError(f"{where}: choose another name, {', '.join(RESERVED)} are taken")
    if spec.kind != "given" and spec.width < 1:
      raise errors.UserError(f"{where}: width must be at least 1, not {spec.width}")
    if spec.encoder != "word_avg" and (spec.remove_principal or options.get("tfidf")):
      raise errors.UserError(f"{where}: tfidf and remove_principal are for word_avg")
    if spec.encoder == "transformer_cls" and spec.width % text_encoders.TransformerCLS.heads:
      raise errors.UserError(f"{where}: width {spec.width} must be even for transformer_cls")
    found.append(spec)
  return tuple(found)


def width(item_width, schema, aggregate):
  """Returns the width of an item's vector after g."""
  return item_width + sum(s.columns for s in schema) * (aggregate == "concat")


def check(model):
  """Raises UserError where a model's `features`, `aggregate` and `item_dropout` do not fit."""
  if not 0 <= model.item_dropout < 1:
    raise errors.UserError("config.model: item_dropout is a share below 1, not "
                           f"{model.item_dropout}")
  if model.item_dropout and (not model.features or model.aggregate == "replace"):
    raise errors.UserError("config.model: item_dropout takes items their own vectors and needs "
                           "features beside those; replace has none to take")


def leaves(schema, under):
  """Returns a regex each of the leaves of the providers: what means the same in any model."""
  return [rf"{under}/{re.escape(spec.name)}/.*" for spec in schema]


def row_tables(schema, under):
  """Returns the `row_tables` below `under`: copies of given vectors, values, words."""
  leaves = {"given": ("vectors", "item"), "attribute": ("values/embedding", None),
            "text": ("words/embedding", None)}
  out = {}
  for spec in schema:
    leaf, vocabulary = leaves[spec.kind]
    if spec.kind != "given" or spec.trained:
      out[f"{under}/{spec.name}/{leaf}"] = (vocabulary or f"feature/{spec.name}", 0)
  return out


def user_row_tables(schema, under):
  """Returns the `row_tables` of what is known of users, values of attributes, below `under`."""
  return {f"{under}/{spec.name}/values/embedding": (f"user/feature/{spec.name}", 0)
          for spec in schema if spec.kind == "attribute"}


def known_rows(model, under="embed/"):
  """Returns the `row_tables` of a model's features/ and user_features/, below `under`."""
  return {**row_tables(model.features, f"{under}features"),
          **user_row_tables(model.user_features, f"{under}user_features")}


def known_leaves(model, under="embed/"):
  """Returns `leaves` of a model's features/ and user_features/, below `under`."""
  return [*leaves(model.features, f"{under}features"),
          *leaves(model.user_features, f"{under}user_features")]


def check_users(model, width):
  """Raises UserError where a model's `user_features` do not fit the `width` of its users."""
  if not model.user_features:
    return
  if not width:
    raise errors.UserError("config.model: user_features are aggregated with users' vectors; set "
                           "user_width")
  for spec in model.user_features:
    if spec.trained:
      raise errors.UserError(f"model.user_features, {spec.name}: given vectors of users are "
                             "constants; set trained=False")


class Provided(nn.Module):
  """v^_i: what one provider says."""
  spec: Spec
  initializer: str
  dtype: jnp.dtype
  project_to: int = 0  # 0: no projection but that of `spec.width`

  @nn.compact
  def __call__(self, ids, tables):
    """Returns [n, columns], or [n, project_to], of rows `ids` int32 [n]; None are all rows."""
    spec, key = self.spec, f"feature/{self.spec.name}"
    take = lambda table: table if ids is None else jnp.take(table, ids, axis=0)
    if spec.kind == "given":
      given, known = tables[key], take(tables[f"{key}/known"])
      values = take(self.param("vectors", lambda key: given) if spec.trained else given)
    elif spec.kind == "attribute":
      chosen = take(tables[key])  # [n, slots]
      values = layers.RowTable(spec.size, spec.width, self.initializer, self.dtype, name="values")(
        chosen).sum(1) / jnp.maximum((chosen > 0).sum(1, keepdims=True), 1)
      known = (chosen > 0).any(1)
    else:
      weights = take(tables[f"{key}/weight"]) if f"{key}/weight" in tables else None
      values, known = self._text(take(tables[key]), weights)
    missing = self.param("missing", nn.initializers.zeros_init(), values.shape[-1:])
    values = jnp.where(known[:, None], values, missing).astype(self.dtype)
    to = self.project_to or (spec.width if spec.kind == "given" else 0)
    if not to:
      return values
    return nn.Dense(to, use_bias=False, dtype=self.dtype, name="project",
                    kernel_init=_kernel_init(self.initializer))(values)

  def _text(self, words, weights):
    """Returns ([n, D], bool [n] which texts have words)."""
    spec, keep = self.spec, words > 0
    x = layers.RowTable(spec.size, spec.width, self.initializer, self.dtype, name="words")(words)
    more = {"max_len": spec.length} if spec.encoder == "transformer_cls" else {}
    encode = ENCODERS[spec.encoder](dtype=self.dtype, name="encoder", **more)
    values = encode(x, keep, weights)
    if spec.remove_principal:
      values = text_encoders.without_principal(values, keep.any(1))
    return values, keep.any(1)


class Features(nn.Module):
  """g: the vectors of items from their own and from what is known of them.

  In training an item's own vector is zero with probability `item_dropout`, for a whole step and
  wherever it is read, so that the model learns to do without (Volkovs et al. 2017, DropoutNet).
  Where the tables say that an item is "unowned", it always is: it was never trained.
  """
  schema: tuple  # of Spec
  aggregate: str
  num_items: int  # N
  initializer: str
  dtype: jnp.dtype
  item_dropout: float = 0.0

  @nn.compact
  def __call__(self, items, table, tables, *, whole=False, train=False):
    """Returns (vectors of `items` [..., width], those of all rows [R, width] or None).

    All rows are computed, once, where they are asked for, or where that is less work.

    Args:
      items: int32 [...].
      table: [R, W], the items' own vectors.
      tables: {"feature/NAME": [R, ...], ...} of `providers.tables`; optionally "item/unowned", bool
        [R].
      whole: whether the vectors of all rows are asked for.
      train: whether items lose their own vectors.
    """
    rows, table = table.shape[0], table.astype(self.dtype)
    # Tables are constants of the compiled program. XLA would compute with them while it compiles,
    # seconds for a reduction over some thousand texts, that at run time takes no time.
    tables = jax.lax.optimization_barrier(
      {name: x for name, x in tables.items() if name.startswith(("feature/", "item/"))})
    whole = whole or items.size >= rows or any(s.remove_principal for s in self.schema)
    if whole:
      found = self._combine(table, None, tables, train)
      return jnp.take(found, items, axis=0), found
    own = jnp.take(table, items.ravel(), axis=0)
    found = self._combine(own, items.ravel(), tables, train)
    return found.reshape(*items.shape, found.shape[-1]), None

  def _combine(self, own, ids, tables, train):
    """Returns g of `own` [n, W] and of what is known of rows `ids` int32 [n]; None are all.

    With "fusion" that is P v^ alone: it meets `own` inside the model.
    """
    names = jnp.arange(len(own)) if ids is None else ids
    is_item = (names > 0) & (names <= self.num_items)
    if self.aggregate != "replace":
      own = jnp.where(self._without(names, tables, train) & is_item[:, None], 0, own)
    joined = self.aggregate in ("concat", "mlp")
    start = dict(initializer=self.initializer, dtype=self.dtype)
    said = [Provided(spec, **start, project_to=0 if joined else own.shape[-1], name=spec.name)(
      ids, tables) for spec in self.schema]
    dense = lambda size, x, name: layers.dense(size, fan_in=x.shape[-1], name=name, **start)(x)
    if joined:
      x = jnp.concatenate([own, *said], -1)
      if self.aggregate == "concat":
        return x
      return dense(own.shape[-1], nn.relu(dense(2 * own.shape[-1], x, "hidden")), "out")
    said = sum(said[1:], said[0])
    if self.aggregate == "sum":
      return own + said
    if self.aggregate == FUSION:
      return said
    if self.aggregate == "replace":
      return jnp.where(is_item[:, None], said, own)
    share = nn.sigmoid(dense(own.shape[-1], jnp.concatenate([own, said], -1), "gate"))
    return share * own + (1 - share) * said

  def _without(self, ids, tables, train):
    """Returns bool [n, 1]: which rows do without their own vectors."""
    gone = jnp.zeros(ids.shape, bool)
    if "item/unowned" in tables:
      gone = jnp.take(tables["item/unowned"], ids, axis=0)
    if train and self.item_dropout:
      seeds = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
      gone |= ~layers.kept_where(layers.odd_hash(ids, *seeds), jnp.uint32(1), self.item_dropout)
    return gone[:, None]


class UserFeatures(Features):
  """g of users 1..`num_items`; of 0, an unknown one, nothing is known."""

  @nn.compact
  def __call__(self, users, own, tables, *, train=False):
    """Returns [B, W], of users int32 [B] and their own vectors [B, W].

    Args:
      users: int32 [B].
      own: [B, W].
      tables: {"user/feature/NAME": [U + 2, ...], ...}, see `Features`.
      train: not looked at: users lose no vectors.
    """
    del train
    tables = jax.lax.optimization_barrier(
      {name.removeprefix("user/"): x for name, x in tables.items() if name.startswith("user/")})
    return self._combine(own.astype(self.dtype), users, tables, False)


def _kernel_init(initializer):
  if initializer == "torch":
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
  return layers.table_init("bert")
