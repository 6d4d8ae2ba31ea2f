"""Predicts the ratings of each evaluated user's held-out items from the ratings before them.

"RMSE" has two meanings in the literature, and one ranks models differently from the other. Both are
reported: `rmse` and `mae` pool all held-out ratings, `user_rmse` and `user_mae` are means over
users of each user's own error. With few ratings a user the latter RMSE is much the smaller.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.data import ratings
from recjax.data import sequences
from recjax.evaluators import held_out
from recjax.evaluators import values as values_lib

PROTOCOLS = ("rating",)
METRICS = ("rmse", "mae", "user_rmse", "user_mae")


class Results(values_lib.Results):
  """Errors of every user: `mse`, `mae` and `count` of the held-out ratings, `user_rmse`."""

  def means(self):
    """Returns `METRICS` of every context; see the module's docstring."""
    return {context: {protocol: pooled(**table) for protocol, table in protocols.items()}
            for context, protocols in self.values.items()}


def pooled(*, mse, mae, count, user_rmse, user_mae):
  """Returns {metric: float} of per-user errors [n]: pooled by `count`, and per user."""
  mean = lambda value: float(np.mean(value, dtype=np.float64))
  over_ratings = lambda value: float(np.average(value.astype(np.float64), weights=count))
  return {"rmse": float(np.sqrt(over_ratings(mse))), "mae": over_ratings(mae),
          "user_rmse": mean(user_rmse), "user_mae": mean(user_mae)}


def user_errors(predicted, truth, mask):
  """Returns {metric: float32 [n]} of predictions against true ratings [n, P], where `mask`."""
  count = mask.sum(axis=1)
  error = np.where(mask, predicted.astype(np.float64) - truth, 0)
  mse, mae = (error**2).sum(axis=1) / count, np.abs(error).sum(axis=1) / count
  found = {"mse": mse, "mae": mae, "count": count, "user_rmse": np.sqrt(mse), "user_mae": mae}
  return {name: value.astype(np.float32) for name, value in found.items()}


class Rating:
  """Evaluates rating functions on the users who own at least one rating in `split`."""
  protocols = PROTOCOLS

  def __init__(self, data, *, split="test", contexts=None, protocols=PROTOCOLS, seed=0,
               batch_size=256, history_length=100, max_users=None, put=jnp.asarray):
    """Prepares users, held-out items and their ratings once.

    Args:
      data: `sequences.Dataset` with ratings.
      split: "val" or "test".
      contexts: what the model sees of a user, "train" or "train+val" (the latter for the test split
        only); all that the split allows by default.
      protocols: there is one, "rating".
      seed: fixes the choice of `max_users`; not the run's seed.
      batch_size: users per batch, always filled up; a multiple of the data-parallel devices.
      history_length: most recent ratings that a rating function gets.
      max_users: evaluate a fixed random subset of this size.
      put: places one host array, [batch_size, ...], on the devices.
    """
    self.contexts = held_out.choose_contexts(split, contexts)
    held_out.check("protocol", protocols, PROTOCOLS)
    if data.ratings is None:
      raise errors.UserError(f"data set {data.name!r} has no ratings")
    self._data, self._put = data, put
    self._batch_size, self._history_length = batch_size, history_length
    self.users = held_out.choose_users(data, split, max_users, seed)
    begin, end = (edge[self.users] for edge in data.span(split))
    take = lambda values: sequences.pad(
      values, begin, end, width=int((end - begin).max()), align="right")
    self._targets, self._truth = take(data.items), take(data.ratings)  # [n, P]
    self._spans = {context: held_out.history_span(data, self.users, split, context)
                   for context in self.contexts}
    self._predict = (None, None)

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of predict(params, users, histories, ratings, targets) -> [B, P].

    users int32 [B]; histories int32 and ratings float32 [B, T], left-padded with the most recent
    last; targets int32 [B, P] the items to be rated, left-padded. `predict` is compiled once per
    function object. Batches are filled up with user 0 and padding.

    Raises:
      FloatingPointError: a prediction is NaN.
    """
    if predict != self._predict[0]:  # Not `is`: each look-up of a method is a new object.
      self._predict = (predict, jax.jit(predict))
    contexts = contexts or self.contexts
    predicted = {context: np.zeros(self._targets.shape, np.float32) for context in contexts}
    places = itertools.product(held_out.pieces(len(self.users), self._batch_size), contexts)
    for (rows, context), batch in held_out.fetched(
        (place, self._predict[1](params, *self._batch(*place))) for place in places):
      predicted[context][rows] = batch[:len(self.users[rows])]
    return self._results(predicted)

  def references(self):
    """Returns {name: Results} of what needs no model, from the train split alone.

    Beside the global mean, item biases are mean residuals shrunk by 5 ratings and user biases those
    of what the items leave, shrunk by 3.
    """
    mean, item, user = ratings.biases(self._data)
    by_item = mean + item[self._targets]
    rows = {"global_mean": np.full_like(by_item, mean), "item_bias": by_item,
            "item_user_bias": by_item + user[self.users][:, None]}
    return {name: self._results(dict.fromkeys(self.contexts, predicted))
            for name, predicted in rows.items()}

  def _batch(self, rows, context):
    begin, end = (edge[rows] for edge in self._spans[context])
    history = lambda values: sequences.pad(values, begin, end, width=self._history_length,
                                           align="right")
    arrays = (self.users[rows], history(self._data.items), history(self._data.ratings),
              self._targets[rows])
    return [self._put(held_out.fill(array, self._batch_size)) for array in arrays]

  def _results(self, predicted):
    mask = self._targets > 0
    for context, values in predicted.items():
      bad = np.isnan(values) & mask
      if bad.any():
        raise FloatingPointError(f"NaN among the ratings predicted for user "
                                 f"{self.users[np.argmax(bad.any(axis=1))]} (context {context!r})")
    return Results(self.users, {
      context: {"rating": user_errors(values, self._truth, mask)}
      for context, values in predicted.items()})
