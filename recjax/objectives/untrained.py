"""Ranking by what is computed from the data at once, without training."""

import dataclasses

from recjax import catalog
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class Untrained(objective.Objective):
  """Predicts with a model that scores a history as a whole."""
  num_items: int
  trains = False

  def predict(self, apply_fn, params, users, histories, readout=None):
    """Returns float32 [B, N + 1]: scores of the item after each history [B, T]; or a readout."""
    scores = apply_fn(params, {"items": histories, "users": users}, None)
    return scores if readout is None else readout(catalog.Given(scores[:, None]))
