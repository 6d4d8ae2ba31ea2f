"""Ranking by what is computed from the data at once, without training."""

import dataclasses

from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class Untrained(objective.Objective):
  """Predicts with a model that scores a history as a whole."""
  num_items: int
  trains = False

  def predict(self, apply_fn, params, users, histories):
    """Returns float32 [B, N + 1]: scores of the item after each history [B, T]."""
    return apply_fn(params, {"items": histories, "users": users}, None)
