"""What every objective says of itself, with what most of them say."""

import jax.numpy as jnp
import numpy as np

from recjax.objectives import losses


class Objective:
  """Defaults of the contract that `recjax.objectives` describes."""
  trains = True
  task = "ranking"
  min_length = 1
  extra_columns = 0  # the sampler's windows have as many columns as the model reads
  slide = False  # one window a user and epoch
  columns = ()
  profile = None
  questions = ()
  popularity = None
  item_inputs = ()
  updates = 1
  trim = None
  fit = None
  rows_together = 1
  auxiliary = ()
  predicts = True

  def width(self, length):
    """Returns how many columns the inputs of windows of `length` columns have."""
    return length - self.extra_columns

  def labels(self, inputs):
    """Returns [B]: how many labels each row has; here one where there is anybody."""
    return jnp.asarray(inputs["users"] > 0, jnp.float32)

  def capacity(self, lengths, *, rows, columns=None):
    """Returns the room for labels in `rows` rows together, of windows of these lengths.

    With `columns` inputs are cut to so many, which all may be full.
    """
    if columns is not None:
      lengths = np.array([columns + self.extra_columns])
    return losses.capacity(*self.label_statistics(lengths), rows=rows)

  def filled(self, lengths, *, rows):
    """Returns the room for what is read of `rows` windows together, of which these are the lengths.

    That is their mean and 5 standard deviations: of a normal tail, 3e-7 a step need more.
    """
    read = np.maximum(lengths - self.extra_columns, 0)
    return losses.capacity(read.mean(), read.var(), read.max(), rows=rows, deviations=5,
                           multiple=128)

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


class OfRows(Objective):
  """Defaults of objectives whose batches are rows of what an epoch visits, with a mask."""

  def counts(self, batch):
    """Returns how many examples and "tokens" a batch holds: its rows."""
    real = jnp.sum(batch["mask"])
    return {"examples": real, "tokens": real}
