"""Rating prediction: filling in hidden ratings, or reconstructing all that a user gave.

Models of these objectives return the rating of every column, `apply_fn(params, inputs, rng)` ->
[B, T]; the inputs are {"items" int32, "ratings" float32, "hidden" bool, each [B, T], "users" [B]}.
What is hidden from the model is zero in "ratings": it cannot leak.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class MaskedRating(objective.Objective):
  """Hides ratings, not items, at random and regresses them, as the survey's BERT4Rec does.

  At test the held-out items stand at the end with hidden ratings, all predicted at once.
  """
  num_items: int
  rate: float = 0.15
  held_out: int = 3  # positions that the history leaves to the items to be rated
  window: str = "last"
  task = "rating"
  columns = ("ratings",)

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs and "labels" [B, T], the hidden ratings.

    Args:
      rng: key of this step.
      batch: {"items" int32 [B, T], "ratings" float32 [B, T], "users" int32 [B]}.
      resident: unused.
    """
    del resident
    items, ratings = batch["items"], batch["ratings"]
    hidden = (jax.random.uniform(rng, items.shape) < self.rate) & (items > 0)
    return {"items": items, "users": batch["users"], "hidden": hidden,
            "ratings": jnp.where(hidden, 0, ratings), "labels": jnp.where(hidden, ratings, 0)}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of squared errors, hidden ratings, {"dropped": 0})."""
    del shards, capacity  # One number a position: nothing is gained by gathering labels.
    seen = {name: inputs[name] for name in ("items", "ratings", "users", "hidden")}
    return squared_error(apply_fn(params, seen, rng), inputs["labels"], inputs["hidden"])

  def labels(self, inputs):
    """Returns int32 [B]: how many ratings each row hides."""
    return jnp.sum(inputs["hidden"], axis=1)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row."""
    mean = self.rate * lengths.mean()
    return mean, (1 - self.rate) * mean + self.rate**2 * lengths.var(), lengths.max()

  def room(self, max_len):
    """Returns how many past ratings fit `max_len` positions, beside the items to be rated."""
    return max_len - self.held_out

  def predict(self, apply_fn, params, users, histories, ratings, targets):
    """Returns float32 [B, P]; see `predict_ratings`."""
    if targets.shape[1] > self.held_out:
      raise errors.UserError(f"objective.masked_rating.held_out={self.held_out} is less than the "
                             f"{targets.shape[1]} items that a user has to rate; raise it")
    return predict_ratings(apply_fn, params, users, histories, ratings, targets)


@dataclasses.dataclass(frozen=True)
class Autoencode(objective.Objective):
  """Reconstructs the ratings that a user gave, from all of them.

  With `refeed`, each step goes on with further updates of the optimizer, in which the output
  y = f(x) is a dense input that is to be reconstructed, MSE(f(y), y) over all items of the domain:
  the dense re-feeding of Kuchaiev & Ginsburg 2017. As in their code, y is the output that the
  update before started from, with its dropout.
  """
  num_items: int
  refeed: int = 0  # further updates of a step
  window: str = "last"
  task = "rating"
  columns = ("ratings",)

  @property
  def updates(self):
    """Returns the number of updates of the optimizer in a step."""
    return 1 + self.refeed

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs, nothing hidden, and where re-feeding looks: "domain" [B, N]."""
    del rng
    inputs = {name: batch[name] for name in ("items", "ratings", "users")}
    if not self.refeed:
      return inputs
    domain = jnp.zeros(self.num_items + 1, bool).at[resident["pool"]].set(True)[1:]
    return {**inputs, "domain": (batch["users"] > 0)[:, None] & domain}

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of squared errors, ratings, {"dropped": 0}): unrated items count nothing."""
    del shards, capacity
    seen = {name: x for name, x in inputs.items() if name != "domain"}
    if "dense" in inputs:
      predicted = apply_fn(params, seen, rng, full=True)
      return squared_error(predicted, inputs["dense"], inputs["rated"])
    return squared_error(apply_fn(params, seen, rng), inputs["ratings"], inputs["items"] > 0)

  def again(self, apply_fn, params, inputs, rng):
    """Returns the inputs of the next update: what `params` make of these."""
    seen = {name: x for name, x in inputs.items() if name != "domain"}
    found = jax.lax.stop_gradient(apply_fn(params, seen, rng, full=True))
    rated = inputs["domain"]
    return {"users": inputs["users"], "domain": rated, "rated": rated,
            "dense": jnp.where(rated, found, 0)}

  def labels(self, inputs):
    """Returns int32 [B]: how many ratings each row has."""
    return jnp.sum(inputs["items"] > 0, axis=1)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row: all ratings."""
    return lengths.mean(), lengths.var(), lengths.max()

  def predict(self, apply_fn, params, users, histories, ratings, targets):
    """Returns float32 [B, P]; see `predict_ratings`."""
    return predict_ratings(apply_fn, params, users, histories, ratings, targets)


def squared_error(predicted, truth, mask):
  """Returns (sum of squared errors where `mask`, how many, {"dropped": 0})."""
  error = jnp.where(mask, predicted.astype(jnp.float32) - truth, 0)
  return jnp.sum(jnp.square(error)), jnp.sum(mask.astype(jnp.float32)), {"dropped": jnp.int32(0)}


def predict_ratings(apply_fn, params, users, histories, ratings, targets):
  """Returns float32 [B, P]: the ratings of `targets` after each history.

  Padding may stand anywhere: columns are moved so that it comes first, as the models read it.

  Args:
    apply_fn: of `step.make_apply`.
    params: the model's parameters.
    users: int32 [B].
    histories: int32 [B, T] items, oldest first.
    ratings: float32 [B, T] of the histories.
    targets: int32 [B, P] items to be rated.
  """
  items = jnp.concatenate([histories, targets], axis=1)
  hidden = jnp.arange(items.shape[1]) >= histories.shape[1]
  order = jnp.argsort(items > 0, axis=1, stable=True)
  move = lambda x: jnp.take_along_axis(jnp.broadcast_to(x, items.shape), order, axis=1)
  inputs = {"users": users, "items": move(items), "hidden": move(hidden) & (move(items) > 0),
            "ratings": move(jnp.concatenate([ratings, jnp.zeros(targets.shape)], axis=1))}
  predicted = apply_fn(params, inputs, None)
  back = jnp.argsort(order, axis=1)[:, histories.shape[1]:]
  return jnp.take_along_axis(predicted, back, axis=1).astype(jnp.float32)
