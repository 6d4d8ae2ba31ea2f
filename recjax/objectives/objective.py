"""What every objective says of itself, with what most of them say."""

import jax.numpy as jnp


class Objective:
  """Defaults of the contract that `recjax.objectives` describes."""
  trains = True
  task = "ranking"
  min_length = 1
  extra_columns = 0  # the sampler's windows have as many columns as the model reads
  slide = False  # one window a user and epoch
  columns = ()
  popularity = None
  item_inputs = ()
  updates = 1

  def counts(self, batch):
    """Returns how many "examples" and "tokens" a batch holds."""
    return {"examples": jnp.sum(batch["users"] > 0), "tokens": jnp.sum(batch["items"] > 0)}

  def label_statistics(self, lengths):
    """Returns (mean, variance, most) of the labels in a row: exactly one."""
    del lengths
    return 1.0, 0.0, 1

  def room(self, max_len):
    """Returns how many past items fit `max_len` positions: all of them."""
    return max_len
