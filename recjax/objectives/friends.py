"""Pre-training with a social graph: friends should look alike (Zeng et al. 2021, Section 5).

Edges are drawn, not users, so that the two ends of one are always in a batch together. What is read
of a user are their last training items, as in a window of the sequence task beside.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import contrast
from recjax.objectives import objective
from recjax.objectives import walks

POOLS = ("mean", "mask")


@dataclasses.dataclass(frozen=True)
class OfEdges(objective.Objective):
  """What draws edges of a social `graph` among the users; without any edge the loss is 0."""
  num_items: int
  graph: str = ""  # the name of its data set
  predicts = False
  trim = None  # rows of other users than the batch's, with lengths of their own
  window = None

  def edges(self, rng, batch, resident):
    """Returns int32 [B, 2]: the ends of an edge a row; 0 where there is none, or nobody's row."""
    known = resident["social"]["edges"]
    place = jax.random.randint(rng, batch["users"].shape, 0, len(known))
    return jnp.where((batch["users"] > 0)[:, None], known[place], 0)


@dataclasses.dataclass(frozen=True)
class Friends(OfEdges):
  """Pulls the vectors of connected users together, and apart from those of others (InfoNCE).

  L = -log exp(z_u z_v / t) / (exp(z_u z_v / t) + sum_w exp(z_u z_w / t)) for both ends of an edge
  (u, v), where w are users of the same `group` of rows that are no neighbors of u. z is the mean of
  the encoder's vectors (or with pool="mask" the one at a MASK after the sequence), projected to
  `projection` and normed. Groups are those of `contrast.Contrast`.
  """
  projection: int = 32
  temperature: float = 0.1
  pool: str = "mean"
  group: int | None = None

  def __post_init__(self):
    errors.choose(dict.fromkeys(POOLS), self.pool, "objective.friends.pool")
    if not self.temperature > 0 or self.projection < 1 or self.group == 1:
      raise errors.UserError("objective.friends: temperature is above 0, projection at least 1 and "
                             f"group at least 2 rows or None, not {self.temperature}, "
                             f"{self.projection} and {self.group}")

  @property
  def auxiliary(self):
    """Returns the projection."""
    return (("social", {"graph": self.graph, "sides": {"projection": self.projection}}),)

  @property
  def rows_together(self):
    """Returns how many rows the loss must see at once, None for all."""
    return self.group

  def prepare(self, rng, batch, resident):
    """Returns {"items", "others" int32 [B, T], "users", "friends" [B], "near" bool [B, 2, 2 g]}."""
    pairs = self.edges(rng, batch, resident)
    length = batch["items"].shape[1]
    items, others = (latest(resident, users, length) for users in pairs.T)
    return {"items": items, "others": others, "users": pairs[:, 0], "friends": pairs[:, 1],
            "near": self._near(pairs, resident["social"])}

  def _near(self, pairs, graph):
    """Returns bool [B, 2, 2 g]: which ends of the edges of its group are neighbors of an end."""
    rows = len(pairs)
    grouped = pairs.reshape(rows // (self.group or rows), -1, 2)  # [G, g, 2]
    other = jnp.swapaxes(grouped, 1, 2).reshape(len(grouped), -1)  # all first ends, all second ones
    a, b = jnp.broadcast_arrays(grouped[..., None], other[:, None, None])
    return walks.is_edge(a.ravel(), b.ravel(), graph).reshape(rows, 2, -1)

  def labels(self, inputs):
    """Returns int32 [B]: two ends of each edge."""
    return 2 * (inputs["users"] > 0)

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum over ends, how many, {"dropped": 0})."""
    del shards, capacity
    rows = len(inputs["users"])
    group = self.group or rows
    users = jnp.concatenate([inputs["users"], inputs["friends"]])
    z = self.embed(apply_fn, params, jnp.concatenate([inputs["items"], inputs["others"]]), users,
                   rng)
    ends = lambda x: jnp.swapaxes(x.reshape(2, rows // group, group, -1), 0, 1).reshape(
      rows // group, 2 * group, -1)
    near = jnp.moveaxis(inputs["near"], 1, 0).reshape(2 * rows, -1)
    total = contrast.info_nce(ends(z), ends(users)[..., 0], self.temperature, ends(near))
    return total, jnp.sum(self.labels(inputs)).astype(jnp.float32), {"dropped": jnp.int32(0)}

  def embed(self, apply_fn, params, items, users, rng):
    """Returns z, float32 [B, projection], of sequences [B, T]."""
    if self.pool == "mask":
      last = jnp.where(items[:, -1:] > 0, self.num_items + 1, 0)
      items = jnp.concatenate([items[:, 1:], last], axis=1)
    rows, length = items.shape
    place = jnp.arange(rows * length, dtype=jnp.int32)
    if self.pool == "mask":
      place = place[length - 1::length]
    x = apply_fn(params, {"items": items, "users": users}, rng, positions=place[None],
                 readout=lambda scores: scores.x)[0].astype(jnp.float32)
    if self.pool == "mean":
      keep = (items > 0)[..., None]
      x = jnp.sum(jnp.where(keep, x.reshape(rows, length, -1), 0), 1) / jnp.maximum(keep.sum(1), 1)
    z = apply_fn(params, {"x": x}, None, auxiliary="social", side="projection")
    return z * jax.lax.rsqrt(jnp.sum(z * z, -1, keepdims=True) + 1e-12)


@dataclasses.dataclass(frozen=True)
class Connected(OfEdges):
  """Tells whether two users are connected, from one row: u's items, [SEP], v's, [CLS].

  Half of the rows are edges; in the others v is the end of another edge, so as popular as those of
  true ones, and no neighbor of u. MASK's id stands for both tokens, in places of their own. No user
  embedding is read.
  """

  @property
  def auxiliary(self):
    """Returns the layer that answers."""
    return (("social", {"graph": self.graph, "sides": {"connected": 1}}),)

  def prepare(self, rng, batch, resident):
    """Returns {"items" int32 [B, T], "users" zeros [B], "connected" [B]}: 1, 0, or -1: no pair.
    """
    which, whose, how = jax.random.split(rng, 3)
    pairs, other = (self.edges(key, batch, resident) for key in (which, whose))
    first, true = pairs[:, 0], jax.random.bernoulli(how, 0.5, pairs.shape[:1])
    second = jnp.where(true, pairs[:, 1], other[:, 1])
    friends = walks.is_edge(first, second, resident["social"]) | (first == second)
    real = (first > 0) & (true | ~friends)
    row = self.row(*(latest(resident, users, (batch["items"].shape[1] - 2) // 2)
                     for users in (first, second)), width=batch["items"].shape[1])
    return {"items": jnp.where(real[:, None], row, 0), "users": jnp.zeros_like(first),
            "connected": jnp.where(real, true, -1).astype(jnp.int32)}

  def row(self, first, second, *, width):
    """Returns int32 [B, width]: two left-padded sequences and the tokens as one."""
    token = jnp.full_like(first[:, :1], self.num_items + 1)
    row = jnp.concatenate([first, token, second, token], axis=1)
    row = jnp.take_along_axis(row, jnp.argsort(row > 0, axis=1, stable=True), axis=1)
    return jnp.pad(row, ((0, 0), (width - row.shape[1], 0)))

  def labels(self, inputs):
    """Returns bool [B]: whether a row is a pair."""
    return inputs["connected"] >= 0

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of cross-entropies, pairs, {"dropped": 0, "right": pairs told right})."""
    del shards, capacity
    rows, length = inputs["items"].shape
    ends = jnp.arange(1, rows + 1, dtype=jnp.int32)[None] * length - 1
    seen = {name: inputs[name] for name in ("items", "users")}
    x = apply_fn(params, seen, rng, positions=ends, readout=lambda scores: scores.x)[0]
    logits = apply_fn(params, {"x": x}, None, auxiliary="social", side="connected")[:, 0]
    real, true = self.labels(inputs), inputs["connected"] > 0
    losses = jax.nn.softplus(jnp.where(true, -logits, logits))
    right = jnp.sum(real & ((logits > 0) == true)).astype(jnp.float32)
    return (jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real.astype(jnp.float32)),
            {"dropped": jnp.int32(0), "right": right})


def latest(resident, users, length):
  """Returns int32 [B, length]: the last training items of `users` [B], left-padded."""
  begin, end = (resident["social"][name][users] for name in ("begin", "end"))
  index = end[:, None] - length + jnp.arange(length)
  return jnp.where(index >= begin[:, None], resident["items"][jnp.maximum(index, 0)], 0)
