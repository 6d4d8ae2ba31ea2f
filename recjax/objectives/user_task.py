"""Tasks whose input is a whole user: a label, or the first items in a domain new to them.

A token (MASK's id) is appended to what the user chose; its vector is the user's. With
`ends="both"`, as PeterRec reads a bidirectional backbone (Yuan et al. 2020), another stands before
the first item, and the two vectors are added up. No user embedding is read: what is learned of one
user must hold for others.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import losses
from recjax.objectives import objective

ENDS = ("last", "both")


@dataclasses.dataclass(frozen=True)
class UserTask(objective.Objective):
  """Softmax over what the model's head scores, of the vector of a user."""
  num_items: int
  ends: str = "last"
  window: str = "last"

  def __post_init__(self):
    errors.choose(dict.fromkeys(ENDS), self.ends, "config.objective: ends")

  @property
  def tokens(self):
    """Returns how many columns the tokens take."""
    return 1 + (self.ends == "both")

  @property
  def extra_columns(self):
    """Returns the columns of a sampled window beyond the model's positions: tokens take some."""
    return -self.tokens

  def room(self, max_len):
    """Returns how many past items fit `max_len` positions."""
    return max_len - self.tokens

  def with_tokens(self, items):
    """Returns int32 [B, T + tokens] of left-padded items [B, T]."""
    token = self.num_items + 1
    last = jnp.full_like(items[:, :1], token)
    if self.ends == "last":
      return jnp.concatenate([items, last], axis=1)
    items = jnp.concatenate([jnp.zeros_like(last), items, last], axis=1)
    first = jnp.argmax(items > 0, axis=1) - 1
    return items.at[jnp.arange(len(items)), first].set(token)

  def trim(self, inputs, columns):
    """Returns `inputs` without all but the last columns of "items"."""
    return {**inputs, "items": inputs["items"][:, -columns:]}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, weight, {"dropped": 0}) over the users with a label."""
    del shards, capacity  # A row is a run of its own: its vectors are added up.
    labels = inputs["labels"]
    picked, partition = self._ask(apply_fn, params, inputs["items"], rng,
                                  readout=lambda scores: scores.against_all(labels[:, None]))
    total, weight = losses.cross_entropy(picked, partition, (labels > 0)[:, None])
    return total, weight, {"dropped": jnp.int32(0)}

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns float32 [B, L + 1] or [B, N + 1], what the head scores; or what `readout` makes."""
    del users
    found = self._ask(apply_fn, params, self.with_tokens(histories), None, readout=readout)
    return found if readout is not None else found[:, 0].astype(jnp.float32)

  def _ask(self, apply_fn, params, items, rng, **what):
    last = jnp.full((len(items), 1), items.shape[1] - 1, jnp.int32)
    first = jnp.argmax(items > 0, axis=1).astype(jnp.int32)[:, None]
    positions = last if self.ends == "last" else jnp.concatenate([first, last], axis=1)
    inputs = {"items": items, "users": jnp.zeros(len(items), jnp.int32)}
    what = {name: value for name, value in what.items() if value is not None}
    return apply_fn(params, inputs, rng, positions=positions, pool=True, **what)


@dataclasses.dataclass(frozen=True)
class Profile(UserTask):
  """Predicts an attribute of the user, as gender or age (PeterRec's user profiles).

  Users are split, not what they chose: `test` and `val` of them, by a hash of `split_seed` and
  their external id, are never trained on.
  """
  attribute: str = "gender"
  val: float = 0.1
  test: float = 0.1
  split_seed: int = 0
  task = "classification"

  def __post_init__(self):
    super().__post_init__()
    if not (0 < self.val and 0 < self.test and self.val + self.test < 1):
      raise errors.UserError("config.objective: profile: val and test are shares of the users that "
                             f"leave some to train on, not {self.val} and {self.test}")

  @property
  def profile(self):
    """Returns what `data.profiles` must know."""
    return {"attribute": self.attribute, "val": self.val, "test": self.test,
            "seed": self.split_seed}

  def prepare(self, rng, batch, resident):
    """Returns {"items" [B, T], "labels" [B]}; label 0 is none."""
    del rng
    return {"items": self.with_tokens(batch["items"]),
            "labels": resident["labels"][batch["users"]]}


@dataclasses.dataclass(frozen=True)
class FirstItem(UserTask):
  """Predicts what a user chooses in a domain, from what they chose in another (PeterRec's task).

  For data sets with a history (`config.history`): a label is one of the user's training items
  there, another one in every step.
  """
  columns = ("targets",)

  def prepare(self, rng, batch, resident):
    """Returns {"items" [B, T], "labels" [B]}; label 0 is none."""
    begin, end = (resident[name][batch["users"]] for name in ("targets_begin", "targets_end"))
    place = begin + jax.random.randint(rng, begin.shape, 0, jnp.maximum(end - begin, 1))
    labels = jnp.where(end > begin, resident["items"][jnp.minimum(
      place, len(resident["items"]) - 1)], 0)
    return {"items": self.with_tokens(batch["items"]), "labels": labels}
