"""How a user responds to what comes next: a click on an item, or preferences (Ni et al. 2018).

A window's last interaction is the next behavior, those before it are the history that models read.
Models answer each objective by a head of its name: `apply_fn(params, inputs, rng, head=NAME)` ->
[B, K] scores of K items, or [B, L] of L classes. The inputs are {"items" int32 [B, T], "users"
[B]}, of models that read `properties` also {"properties": {NAME: int32 [B, T]}}, and for clicks
{"targets" int32 [B, K]}. `recjax.data.responses` says what a question can be about.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import negatives
from recjax.objectives import objective

NO, YES = 1, 2


class Response(objective.Objective):
  """What clicks and preferences share. Their `name` is that of their head and their protocol."""
  task = "response"
  min_length = 2
  extra_columns = 1

  @property
  def questions(self):
    """Returns what `data.responses` must know, here of one question."""
    return ({"name": self.name, "of": self.of, "threshold": self.threshold},)

  def predict(self, apply_fn, params, users, histories, properties, targets):
    """Returns {name: [B, K] scores of its targets, or [B, L] of classes}, where it is asked.

    Args:
      apply_fn: of `step.make_apply`.
      params: the model's parameters.
      users: int32 [B].
      histories: int32 [B, T], left-padded.
      properties: {NAME: int32 [B, T]}.
      targets: {name of a question that is asked: int32 [B, K] items}.
    """
    if self.name not in targets:
      return {}
    inputs = _inputs(histories, users, properties)
    if self.about_items:
      inputs["targets"] = targets[self.name]
    return {self.name: apply_fn(params, inputs, None, head=self.name).astype(jnp.float32)}

  def _history(self, batch):
    """Returns the model's inputs from a batch: all but the last column."""
    properties = {name.removeprefix("property/"): x[:, :-1] for name, x in batch.items()
                  if name.startswith("property/")}
    return _inputs(batch["items"][:, :-1], batch["users"], properties)


@dataclasses.dataclass(frozen=True)
class Click(Response):
  """Whether the user clicks on an item: binary cross-entropy.

  `of="liked"` asks whether the next item is rated with at least `threshold`. `of="clicks"` tells
  the next item from `num_negatives` that the user has not trained on, drawn anew each time.
  """
  num_items: int
  of: str = "liked"
  threshold: float = 4.0
  num_negatives: int = 1
  window: str = "prefix"
  name = "click"
  about_items = True

  def __post_init__(self):
    errors.choose(dict.fromkeys(("liked", "clicks")), self.of, "config.objective: click: of")
    if self.num_negatives < 1:
      raise errors.UserError("config.objective: click: num_negatives must be at least 1, not "
                             f"{self.num_negatives}")

  @property
  def columns(self):
    """Returns what `batches.resident` adds."""
    return ("seen",) if self.of == "clicks" else ()

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs with "targets" and "labels" [B, K]: YES, NO or 0 for none."""
    inputs, target = self._history(batch), batch["items"][:, -1:]
    if self.of == "liked":
      return {**inputs, "targets": target, "labels": batch["label/click"][:, -1:]}
    drawn = negatives.unseen(rng, batch["users"], resident, self.num_negatives)
    targets = jnp.concatenate([target, drawn], axis=1)
    labels = jnp.where(jnp.arange(targets.shape[1]) == 0, YES, NO)
    return {**inputs, "targets": targets, "labels": jnp.where((targets > 0) & (target > 0),
                                                              labels, 0)}

  def labels(self, inputs):
    """Returns int32 [B]: how many labels each row has."""
    return jnp.sum(inputs["labels"] > 0, axis=1)

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row."""
    del lengths
    count = 1 if self.of == "liked" else 1 + self.num_negatives
    return float(count), 0.0, count

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of cross-entropies, labels, {"dropped": 0})."""
    del shards, capacity  # Every row has its labels: nothing is gained by gathering them.
    labels, seen = inputs["labels"], {n: x for n, x in inputs.items() if n != "labels"}
    scores = apply_fn(params, seen, rng, head=self.name).astype(jnp.float32)
    losses = jax.nn.softplus(jnp.where(labels == YES, -scores, scores))
    weights = (labels > 0).astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(weights), {"dropped": jnp.int32(0)}


@dataclasses.dataclass(frozen=True)
class Preference(Response):
  """Which value an attribute has of what the user chooses next: softmax over all values."""
  num_items: int
  attribute: str = ""
  window: str = "prefix"
  threshold = None
  about_items = False

  @property
  def of(self):
    return self.attribute

  def prepare(self, rng, batch, resident):
    """Returns the model's inputs with "labels" int32 [B]; 0 is none."""
    del rng, resident
    return {**self._history(batch), "labels": batch[f"label/{self.name}"][:, -1]}

  def labels(self, inputs):
    """Returns [B]: how many labels each row has."""
    return inputs["labels"] > 0

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum of cross-entropies, labels, {"dropped": 0})."""
    del shards, capacity
    labels, seen = inputs["labels"], {n: x for n, x in inputs.items() if n != "labels"}
    scores = apply_fn(params, seen, rng, head=self.name).astype(jnp.float32)
    picked = jnp.take_along_axis(scores, jnp.maximum(labels - 1, 0)[:, None], axis=1)[:, 0]
    weights = (labels > 0).astype(jnp.float32)
    total = jnp.sum((jax.nn.logsumexp(scores, axis=1) - picked) * weights)
    return total, jnp.sum(weights), {"dropped": jnp.int32(0)}


@dataclasses.dataclass(frozen=True)
class ShopPreference(Preference):
  """The next item's shop (DUPN's SPP). MovieLens has none: by default its director stands in."""
  attribute: str = "director"
  name = "shop_preference"


@dataclasses.dataclass(frozen=True)
class PricePreference(Preference):
  """The next item's price level (DUPN's PPP). MovieLens has none: by default the decade stands in.

  `attribute="rating"`, the level of the user's next rating, is another stand-in.
  """
  attribute: str = "decade"
  name = "price_preference"


def _inputs(items, users, properties):
  return {"items": items, "users": users, **({"properties": properties} if properties else {})}
