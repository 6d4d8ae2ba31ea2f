"""Predicts a label of each user who was kept out of training, from what they have chosen.

`accuracy` is the share of users whose label scores highest; `macro_f1` the mean of the labels' F1,
each of which counts alike, however rare it is among the users (labels that no user has and that are
never predicted are left out). Accuracy is a mean over users and can be tested in pairs; F1 is not.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.data import profiles
from recjax.data import sequences
from recjax.evaluators import held_out
from recjax.evaluators import values as values_lib

PROTOCOLS = ("profile",)
METRICS = ("accuracy", "macro_f1")


class Results(values_lib.Results):
  """Of every user `accuracy` (1 or 0) and the places of the `label` and the `predicted` one."""

  def means(self):
    """Returns `METRICS` of every context."""
    return {context: {protocol: {"accuracy": float(np.mean(table["accuracy"], dtype=np.float64)),
                                 "macro_f1": macro_f1(table["label"], table["predicted"])}
                      for protocol, table in protocols.items()}
            for context, protocols in self.values.items()}


def macro_f1(truth, predicted):
  """Returns the mean over labels of 2 tp / (2 tp + fp + fn), of the labels that occur at all."""
  found = []
  for label in np.union1d(truth, predicted):
    hit = np.sum((truth == label) & (predicted == label))
    found.append(2 * hit / (np.sum(truth == label) + np.sum(predicted == label)))
  return float(np.mean(found))


class Classification:
  """Evaluates functions that score labels on the users of `split` who have a label."""
  protocols = PROTOCOLS

  def __init__(self, data, *, profile, split="test", contexts=None, protocols=PROTOCOLS, seed=0,
               batch_size=256, history_length=100, max_users=None, put=jnp.asarray):
    """Prepares users and labels once.

    Args:
      data: `sequences.Dataset` with profiles.
      profile: what `profiles.trained` takes.
      split: "val" or "test": which users are judged.
      contexts: what the model sees of a user, "train" or "train+val" of what they chose (the latter
        for the test split only); all that the split allows by default.
      protocols: there is one, "profile".
      seed: fixes the choice of `max_users`; not the run's seed.
      batch_size: users per batch, always filled up; a multiple of the data-parallel devices.
      history_length: most recent items that a function gets.
      max_users: evaluate a fixed random subset of this size.
      put: places one host array, [batch_size, ...], on the devices.
    """
    self.contexts = held_out.choose_contexts(split, contexts)
    held_out.check("protocol", protocols, PROTOCOLS)
    self._data, self._put, self._profile = data, put, profile
    self._batch_size, self._history_length = batch_size, history_length
    labels, self._names = profiles.labels(data, profile["attribute"])
    part = profiles.parts(data, **{key: profile[key] for key in ("val", "test", "seed")})
    usable = (labels > 0) & (data.lengths("train") > 0)
    self._members = {name: np.flatnonzero(usable & (part == place)).astype(np.int32)
                     for place, name in enumerate(profiles.PARTS)}
    self.users = self._members[split]
    if not (len(self.users) and len(self._members["train"])):
      raise errors.UserError(f"data set {data.name!r} has no users with {profile['attribute']!r} "
                             f"to train on, or none for {split}; change objective.profile's val "
                             "and test")
    self.users = held_out.subset(self.users, max_users, seed)
    self._labels = labels[self.users]
    self._majority = int(np.bincount(labels[self._members["train"]]).argmax())
    self._spans = {context: held_out.history_span(data, self.users, "test", context)
                   for context in self.contexts}
    self._predict = (None, None)

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of predict(params, users [B], histories [B, T]) -> scores [B, L + 1].

    Histories are left-padded with the most recent item last; column 0 of the scores is ignored.
    `predict` is compiled once per function object. Batches are filled up with user 0 and padding.

    Raises:
      FloatingPointError: a score is NaN.
    """
    if predict != self._predict[0]:  # Not `is`: each look-up of a method is a new object.
      self._predict = (predict, jax.jit(predict))
    contexts = contexts or self.contexts
    found = {context: np.zeros(len(self.users), np.int32) for context in contexts}
    places = itertools.product(held_out.pieces(len(self.users), self._batch_size), contexts)
    for (rows, context), batch in held_out.fetched(
        (place, self._predict[1](params, *self._batch(*place))) for place in places):
      scores = batch[:len(self.users[rows]), 1:]
      if np.isnan(scores).any():
        raise FloatingPointError("NaN among the scores of labels for user "
                                 f"{self.users[rows][np.argmax(np.isnan(scores).any(axis=1))]}")
      found[context][rows] = scores.argmax(axis=1) + 1
    return self._results(found)

  def references(self):
    """Returns {"majority": Results}: the label that most users in training have, for everyone."""
    everyone = np.full(len(self.users), self._majority, np.int32)
    return {"majority": self._results(dict.fromkeys(self.contexts, everyone))}

  def facts(self):
    """Returns what a report says of labels and split, as a JSON-able dict."""
    name = lambda label: self._names[label].decode()
    return {**self._profile, "labels": len(self._names) - 1, "majority": name(self._majority),
            "users": {part: len(users) for part, users in self._members.items()}}

  def _batch(self, rows, context):
    begin, end = (edge[rows] for edge in self._spans[context])
    histories = sequences.pad(self._data.items, begin, end, width=self._history_length,
                              align="right")
    return [self._put(held_out.fill(array, self._batch_size))
            for array in (self.users[rows], histories)]

  def _results(self, found):
    table = lambda predicted: {"accuracy": (predicted == self._labels).astype(np.float32),
                               "label": self._labels.astype(np.float32),
                               "predicted": predicted.astype(np.float32)}
    return Results(self.users, {context: {"profile": table(predicted)}
                                for context, predicted in found.items()})
