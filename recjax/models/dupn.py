"""DUPN: one user representation for many tasks (Ni et al. 2018, equations from memory).

A property-gated LSTM reads behaviors, an attention over its states that knows what is asked for
sums them up, and every task has a head on that and on the user.

Letters: B batch, T positions, K items asked about, W width of items, P of properties, U of users,
D of states.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import layers

VARIANTS = {
  "dupn": dict(item_width=64, user_width=32, properties=(("rating", 8), ("gap", 8), ("hour", 8)),
               hidden=128, attention=64, widths=(256, 128), max_len=100, dropout=0.2),
}
RESPONSES = ("click", "shop_preference", "price_preference")
SHARED = "embed|lstm|attention"  # what tasks have in common, and transfers carry


class PropertyLSTM(nn.Module):
  """An LSTM whose gates see how an item was met, and whose cell only what it is.

  i, f, o = sigmoid(W_e e + W_p p + W_h h + b), c' = f c + i tanh(W_ec e + W_hc h + b_c),
  h' = o tanh(c'). Without properties, or with W_p = 0, it is the LSTM of Hochreiter & Schmidhuber
  1997 with forget gates. It stands still at padding.
  """
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, properties, keep):
    """Returns the state after every position, [B, T, D].

    Args:
      x: [B, T, W], items.
      properties: [B, T, P], or None.
      keep: bool [B, T], False at padding: the state is carried on.
    """
    def matrix(name, gates, rows):
      start = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=0)
      return self.param(name, start, (gates, rows, self.width)).astype(self.dtype)
    kernel, recurrent = matrix("kernel", 4, x.shape[-1]), matrix("recurrent", 4, self.width)
    bias = self.param("bias", nn.initializers.zeros_init(), (4, self.width)).astype(self.dtype)
    # What the input contributes is known beforehand: one large product. Order: i, f, o, cell.
    given = jnp.einsum("btw,gwd->tbgd", x, kernel) + bias  # [T, B, 4, D]
    if properties is not None:
      opened = jnp.einsum("btp,gpd->tbgd", properties,
                          matrix("property", 3, properties.shape[-1]))
      given = given.at[:, :, :3].add(opened)
    held = jnp.moveaxis(recurrent, 0, 1).reshape(self.width, -1)  # [D, 4 D]

    def step(carry, now):
      (state, cell), (given, keep) = carry, now
      joined = given + (state @ held).reshape(given.shape)
      gates = nn.sigmoid(joined[:, :3])
      new = gates[:, 1] * cell + gates[:, 0] * jnp.tanh(joined[:, 3])
      keep = keep[:, None]
      state = jnp.where(keep, gates[:, 2] * jnp.tanh(new), state)
      return (state, jnp.where(keep, new, cell)), state
    start = jnp.zeros((x.shape[0], self.width), given.dtype)
    _, states = jax.lax.scan(step, (start, start), (given, keep.T))
    return states.swapaxes(0, 1)


class Attention(nn.Module):
  """a_t = softmax_t(MLP([h_t; q; u; p_t])): what of the history matters to the query."""
  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, states, query, user, properties, keep):
    """Returns weights [B, K, T] that add up to 1 over what is no padding, or all 0.

    Args:
      states: [B, T, D].
      query: [B, K, W]; zeros where nothing is asked for by name.
      user: [B, U], or None.
      properties: [B, T, P], or None.
      keep: bool [B, T], False at padding.
    """
    # The first layer over the concatenation, part by part: [B, K, T, D + W + U + P] never is.
    dense = functools.partial(nn.Dense, self.width, use_bias=False, dtype=self.dtype)
    hidden = dense(name="state")(states)[:, None] + dense(name="query")(query)[:, :, None]
    if user is not None:
      hidden = hidden + dense(name="user")(user)[:, None, None]
    if properties is not None:
      hidden = hidden + dense(name="property")(properties)[:, None]
    bias = self.param("bias", nn.initializers.zeros_init(), (self.width,)).astype(self.dtype)
    scores = nn.Dense(1, dtype=self.dtype, name="score")(nn.relu(hidden + bias))[..., 0]
    keep = keep[:, None]
    scores = jnp.where(keep, scores.astype(jnp.float32), layers.MASKED_SCORE)
    return (jax.nn.softmax(scores, axis=-1) * keep).astype(states.dtype)


class Embed(nn.Module):
  """Tables of items and their attributes, properties of behaviors, users and what is known of them.
  """
  num_items: int
  num_users: int
  item_width: int
  user_width: int  # 0: no vector of each user
  fields: tuple  # (name, rows, width, slots)
  properties: tuple  # (name, rows, width)
  profile: tuple  # (name, rows, width)
  dropout: float
  dtype: jnp.dtype

  def setup(self):
    row = lambda rows, width: layers.RowTable(rows, width, "glorot", self.dtype)
    self.item = layers.ItemTable(self.num_items + 2, self.item_width, "glorot", self.dtype)
    for name, rows, width, _ in self.fields:
      setattr(self, name, row(rows, width))
    for kind in ("property", "profile"):
      for name, rows, width in (self.properties if kind == "property" else self.profile):
        setattr(self, f"{kind}_{name}", row(rows, width))
    if self.user_width:
      self.user = row(self.num_users, self.user_width)
    self.drop = layers.Dropout(self.dropout)

  def of_items(self, items, tables, *, train):
    """Returns [B, T, W] of ids and attributes."""
    parts = [self.item(items)]
    for name, _, width, slots in self.fields:
      values = getattr(self, name)(jnp.take(tables[name], items, axis=0))
      parts.append(values.reshape(*items.shape, slots * width))
    return self.drop(jnp.concatenate(parts, -1), train=train)

  def of_properties(self, properties):
    """Returns [B, T, P], or None."""
    parts = [getattr(self, f"property_{name}")(properties[name]) for name, *_ in self.properties]
    return jnp.concatenate(parts, -1) if parts else None

  def of_users(self, users, tables, *, train):
    """Returns [B, U], or None."""
    parts = [self.user(users)] * bool(self.user_width)
    parts += [getattr(self, f"profile_{name}")(jnp.take(tables[f"profile/{name}"], users))
              for name, *_ in self.profile]
    return self.drop(jnp.concatenate(parts, -1), train=train) if parts else None


class DUPN(nn.Module):
  """Answers questions about a user's next behavior, all from one representation of the user.

  Parameters live under embed/, lstm/, attention/ and head/TASK/: paths that checkpoints depend on.
  """
  num_items: int  # N
  num_users: int  # U
  fields: tuple = ()  # (name, rows, width, slots) of item attributes that are concatenated
  properties: tuple = ()  # (name, width), see `recjax.data.behaviors`
  property_rows: tuple = ()  # (name, rows), found in the data
  profile: tuple = ()  # (attribute of users, width)
  profile_rows: tuple = ()  # (attribute, rows), found in the data
  responses: tuple = ()  # (name, classes) of the heads, found in the data; 0: an item is scored
  item_width: int = 64
  user_width: int = 32
  hidden: int = 128  # D, width of the states
  attention: int = 64  # width inside the attention's MLP
  widths: tuple = (256, 128)  # inside the heads
  max_len: int = 100
  dropout: float = 0.2
  dtype: str = "float32"
  extra_tokens = 0
  objectives = RESPONSES
  choices = {"dtype": ("float32", "bfloat16")}

  @nn.compact
  def __call__(self, items, users, tables, *, properties=None, targets=None, head=None,
               train=False):
    """Returns (answers, dict of intermediates).

    Args:
      items: int32 [B, T] left-padded ids; 0 padding.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 2, slots], "profile/ATTRIBUTE": int32 [U + 1]}.
      properties: {name: int32 [B, T]} of those that the model reads.
      targets: int32 [B, K], items that a click is asked about.
      head: whose answer comes back; None is {name: answer} of all.
      train: whether dropout is on.

    Answers are float [B, K] of clicks, [B, L] of preferences.
    """
    dtype = jnp.dtype(self.dtype)
    embed = Embed(
      self.num_items, self.num_users, self.item_width, self.user_width, self.fields,
      _sized(self.properties, self.property_rows), _sized(self.profile, self.profile_rows),
      self.dropout, dtype, name="embed")
    keep = items > 0
    behaviors, user = embed.of_properties(properties), embed.of_users(users, tables, train=train)
    x = embed.of_items(items, tables, train=train)
    out = {"embedded": x}
    states = out["states"] = PropertyLSTM(self.hidden, dtype, name="lstm")(x, behaviors, keep)
    attention = Attention(self.attention, dtype, name="attention")
    heads = layers.Heads(self.responses, self.widths, self.dropout, dtype, name="head")

    def answer(name, classes):
      query = jnp.zeros((len(items), 1, x.shape[-1]), x.dtype)  # no item is asked about
      if not classes:
        query = embed.of_items(targets, tables, train=train)
      weights = out[f"attention/{name}"] = attention(states, query, user, behaviors, keep)
      parts = [jnp.einsum("bkt,btd->bkd", weights, states)]
      if user is not None:
        parts.append(jnp.broadcast_to(user[:, None], (*query.shape[:2], user.shape[-1])))
      if not classes:
        parts.append(query)
      found = heads(name, jnp.concatenate(parts, -1), train=train)
      return found[:, 0] if classes else found
    found = {name: answer(name, classes) for name, classes in self.responses
             if head in (None, name)}
    return (found if head is None else found[head]), out

  def check(self):
    """Raises UserError where sizes do not fit together."""
    for name in ("item_width", "hidden", "attention", "max_len"):
      if getattr(self, name) < 1:
        raise errors.UserError(f"config.model: {name} must be at least 1, not "
                               f"{getattr(self, name)}")
    for name, _ in self.profile:
      errors.choose(dict(self.profile_rows), name, "model.profile")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    one = jnp.zeros((1, 1), jnp.int32)
    return {"items": one, "users": one[0], "targets": one,
            "properties": {name: one for name, _ in self.properties}}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return layers.embed_rows(self.user_width, self.fields) | {
      f"embed/profile_{name}/embedding": (f"profile/{name}", 0) for name, _ in self.profile}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "embedding" carries all tables, "model" the LSTM and the attention as well. Heads are fresh.
    """
    return {"none": (), "embedding": (("embed/.*", r"\g<0>"),),
            "model": ((f"({SHARED})/.*", r"\g<0>"),)}.get(mode)


def _sized(widths, rows):
  """Returns ((name, rows, width), ...) of ((name, width), ...) and ((name, rows), ...)."""
  return tuple((name, dict(rows)[name], width) for name, width in widths)
