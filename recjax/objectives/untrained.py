"""Ranking by what is computed from the data at once, without training."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Untrained:
  """Predicts with a model that scores a history as a whole."""
  num_items: int
  trains = False
  task = "ranking"

  def room(self, max_len):
    """Returns how many past items fit `max_len` positions: all of them."""
    return max_len

  def predict(self, apply_fn, params, users, histories):
    """Returns float32 [B, N + 1]: scores of the item after each history [B, T]."""
    return apply_fn(params, {"items": histories, "users": users}, None)
