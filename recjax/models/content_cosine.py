"""Content cosine: items like those of a history in what is known of them, no training.

    score(u, i) = mean over features f of cos(sum over j of the history of w_j v_jf / |v_jf|, v_if)

v_if is what a provider says of an item (see `recjax.data.providers`): its values or its words, each
counted as often as it occurs (by tf-idf, where the provider weighs them), or the given vector; it
is 0 where nothing is known. What it scores need have no interactions: a baseline for cold items,
of which popularity and neighborhoods say nothing.

Letters: B batch, T positions, R rows (padding, items, MASK), N items, L values or words, D columns.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.models import untrained

VARIANTS = {"content_cosine": dict()}
EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class ContentCosine(untrained.Untrained):
  """Scores an item by its likeness to the items of the history.

  The one parameter, item/weight, says how much an item of a history counts: all alike.
  """
  num_items: int  # N
  num_users: int  # U
  features: tuple = ()  # `features.Spec`s
  max_len: int = 1000  # most recent items that count
  dtype: str = "float32"

  def fit(self, data):
    """Returns {"item": {"weight": float32 [N + 2]}}, w; nothing of `data` is needed."""
    del data
    return {"item": {"weight": np.ones(self.num_items + 2, np.float32)}}

  def init(self, key, items, users, tables):
    """Returns {"params": of the shape of `fit`}."""
    del key, items, users, tables
    return {"params": {"item": {"weight": jnp.zeros(self.num_items + 2, jnp.float32)}}}

  def apply(self, variables, items, users, tables, *, train=False, rngs=None):
    """Returns (scores float32 [B, N + 1], {}).

    Args:
      variables: {"params": of `fit`}.
      items: int32 [B, T] left-padded ids.
      users: not looked at, as are `train` and `rngs`.
      tables: {"feature/NAME": ...} of `providers.tables`.
    """
    del users, train, rngs
    # Constants of the program, which XLA would otherwise compute with while it compiles.
    tables = jax.lax.optimization_barrier(
      {name: x for name, x in tables.items() if name.startswith("feature/")})
    weights, total = jnp.take(variables["params"]["item"]["weight"], items), 0.0
    for spec in self.features:
      like = _given if spec.kind == "given" else _counted
      total += like(spec, items, weights, tables) / len(self.features)
    return total[:, :self.num_items + 1], {}

  def check(self):
    """Raises UserError without anything that is known of items."""
    if not self.features or self.max_len < 1:
      raise errors.UserError("config.model: content_cosine needs model.features, and max_len of at "
                             "least 1")

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return {"item/weight": ("item", 0)}


def _given(spec, items, weights, tables):
  """Returns float32 [B, R], cosines of histories [B, T] and rows by given vectors."""
  key = f"feature/{spec.name}"
  rows = jnp.where(tables[f"{key}/known"][:, None], tables[key], 0)  # [R, D]
  rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), EPSILON)
  asked = jnp.einsum("bt,btd->bd", weights, jnp.take(rows, items, axis=0))
  return asked @ rows.T / jnp.maximum(jnp.linalg.norm(asked, axis=1, keepdims=True), EPSILON)


def _counted(spec, items, weights, tables):
  """Returns float32 [B, R], cosines of histories [B, T] and rows by their values or words.

  One history at a time: all of them against all rows would be [B, R, L].
  """
  ids = tables[f"feature/{spec.name}"]  # [R, L]
  counts = tables.get(f"feature/{spec.name}/weight", ids > 0).astype(jnp.float32)
  counts = jnp.where(ids > 0, counts, 0)
  def square(row):  # |v|^2, in which what occurs twice counts twice as much
    ids, counts = row
    return jnp.sum(jnp.where(ids[:, None] == ids, counts[:, None] * counts, 0))
  norms = jnp.sqrt(jax.lax.map(square, (ids, counts), batch_size=256))
  counts = counts / jnp.maximum(norms, EPSILON)[:, None]

  def one(row):
    history, weights = row
    asked = jnp.zeros(spec.size + 1, jnp.float32)
    asked = asked.at[ids[history]].add(weights[:, None] * counts[history])
    found = jnp.sum(counts * asked[ids], axis=1)
    return found / jnp.maximum(jnp.linalg.norm(asked), EPSILON)
  return jax.lax.map(one, (items, weights))
