"""Caser's task: several next items after a short window, against drawn items (Tang & Wang 2018)."""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import masked_item
from recjax.objectives import negatives
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class NextWindow(objective.Objective):
  """Predicts the `targets` items after every window of a user from the one vector of that window.

  As the authors' code: -mean log sigmoid(target) - mean log sigmoid(-negative), two means apart,
  however many of either there are. The last items of a user who is
  too short for a whole window have padding before them; targets that are padding do not count.
  """
  num_items: int
  targets: int = 3  # T
  num_negatives: int = 3  # a window, not a target
  pool: str = "domain"  # negatives from the items of the domain; "global": from all, as released
  window: str = "last"
  slide = True
  item_inputs = ("items", "targets", "negatives")

  def __post_init__(self):
    errors.choose(dict.fromkeys(("domain", "global")), self.pool, "objective.next_window.pool")
    if min(self.targets, self.num_negatives) < 1:
      raise errors.UserError("objective.next_window: targets and num_negatives must be at least 1, "
                             f"not {(self.targets, self.num_negatives)}")

  @property
  def extra_columns(self):
    return self.targets

  @property
  def columns(self):
    return ("seen",) if self.pool == "domain" else ("seen", "global")

  def prepare(self, rng, batch, resident):
    """Returns {"items" [B, L], "users", "targets" [B, T], "negatives" [B, num_negatives]}."""
    items = batch["items"]
    # Columns beyond the longest user are never sampled; one for the context there must be.
    missing = max(self.targets + 1 - items.shape[1], 0)
    items = jnp.pad(items, ((0, 0), (missing, 0)))
    return {"items": items[:, :-self.targets], "users": batch["users"],
            "targets": items[:, -self.targets:],
            "negatives": negatives.unseen(rng, batch["users"], resident, self.num_negatives)}

  def item_ids(self, inputs):
    """Returns arrays that hold the items of `item_inputs`."""
    return [inputs[name] for name in self.item_inputs]

  def labels(self, inputs):
    """Returns int32 [B]: how many targets each row has."""
    return jnp.sum(inputs["targets"] > 0, axis=1)

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, number of targets, {"dropped": 0}).

    Each row's negatives weigh as much as its targets do: where all windows are whole, sum / number
    is exactly the two means.
    """
    del capacity  # every row is scored
    rows, length = inputs["items"].shape
    runs = lambda x: x.reshape(shards, rows // shards, -1)
    targets, drawn = runs(inputs["targets"]), runs(inputs["negatives"])
    last = jnp.arange(1, rows // shards + 1, dtype=jnp.int32) * length - 1
    seen = {name: inputs[name] for name in ("items", "users")}
    scores, = apply_fn(params, seen, rng, positions=jnp.broadcast_to(last, targets.shape[:2]),
                       candidates=(jnp.concatenate([targets, drawn], -1),))
    scores = scores.astype(jnp.float32)
    real, valid = (targets > 0).astype(jnp.float32), (drawn > 0).astype(jnp.float32)
    count = jnp.sum(real, -1)  # [S, B / S]
    near = jnp.sum(real * jax.nn.log_sigmoid(scores[..., :self.targets]), -1)
    far = jnp.sum(valid * jax.nn.log_sigmoid(-scores[..., self.targets:]), -1)
    far = far / jnp.maximum(jnp.sum(valid, -1), 1)
    return -jnp.sum(near + count * far), jnp.sum(count), {"dropped": jnp.int32(0)}

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns scores [B, N + 1] after the last items of each history."""
    return masked_item.predict_at_end(apply_fn, params, users, histories, readout)
