"""How well a user's response to the held-out interactions is foreseen: clicks and preferences.

A question (see `recjax.data.responses`) is a protocol of its own. All are about the interactions
of a split, asked after the same history.

Clicks are judged by `auc`: the chance that what was clicked scores higher than what was not, ties
counting half. Where ratings are the clicks, all interactions of one label are compared with all of
the other; the value of one is the share of the others that it is on the right side of, so that the
mean of all is the AUC. Where every interaction is a click, each is compared with items drawn for it
that its user has never met: cold ones (`held_out_items`) with cold ones, others with others, since
to tell these apart would be to know what is popular.

Preferences are judged by `accuracy` and by `mrr`, the mean of 1 / rank of the true class; of tied
classes it is the exact expectation over their orders.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.data import behaviors
from recjax.data import ratings
from recjax.data import responses
from recjax.data import sequences
from recjax.evaluators import candidates
from recjax.evaluators import held_out
from recjax.evaluators import metrics
from recjax.evaluators import values as values_lib

CLICK_METRICS = ("auc",)
PREFERENCE_METRICS = ("accuracy", "mrr")


def metric_names(questions):
  """Returns {protocol: metrics} of questions."""
  return {q["name"]: CLICK_METRICS if responses.is_click(q) else PREFERENCE_METRICS
          for q in questions}


class Results(values_lib.Results):
  """Means over a user's interactions, and their `count`: how much the user counts."""

  def means(self):
    """Returns the same nesting with one float per metric: interactions count alike."""
    mean = lambda table, name: float(np.average(table[name].astype(np.float64),
                                                weights=table["count"]))
    return {context: {protocol: {name: mean(table, name) for name in table if name != "count"}
                      for protocol, table in protocols.items()}
            for context, protocols in self.values.items()}


def placements(scores, clicked):
  """Returns float64 like `scores`: the share of the other class that each is right about.

  Their mean is the AUC, whether over what was clicked, what was not, or all.

  Args:
    scores: float [n].
    clicked: bool [n], neither all nor none.
  """
  out = np.zeros(len(scores))
  for side, sign in ((clicked, 1.0), (~clicked, -1.0)):
    others = np.sort(sign * scores[~side])
    mine = sign * scores[side]
    below = np.searchsorted(others, mine, side="left") + np.searchsorted(others, mine, side="right")
    out[side] = below / (2 * len(others))
  return out


class Responses:
  """Evaluates functions that answer questions on the users who own an interaction in `split`."""

  def __init__(self, data, *, questions, properties=(), split="test", contexts=None,
               protocols=None, seed=0, num_negatives=100, batch_size=256, history_length=100,
               max_users=None, put=jnp.asarray):
    """Prepares users, held-out interactions, their labels and what they are compared with once.

    Args:
      data: `sequences.Dataset`, not sharded.
      questions: see `recjax.data.responses`.
      properties: names of those that the model reads, see `recjax.data.behaviors`.
      split: "val" or "test".
      contexts: what the model sees of a user, "train" or "train+val" (the latter for the test split
        only); all that the split allows by default.
      protocols: names of the questions that are asked; all by default.
      seed: fixes the drawn items and the choice of `max_users`; not the run's seed.
      num_negatives: items that a click is compared with, where all are clicks.
      batch_size: users per batch, always filled up; a multiple of the data-parallel devices.
      history_length: most recent interactions that a function gets.
      max_users: evaluate a fixed random subset of this size.
      put: places one host array, [batch_size, ...], on the devices.
    """
    self.contexts = held_out.choose_contexts(split, contexts)
    known = {q["name"]: q for q in questions}
    self.protocols = tuple(known if protocols is None else protocols)
    held_out.check("protocol", self.protocols, known)
    self._asked = {name: known[name] for name in self.protocols}
    self._data, self._put, self._split = data, put, split
    self._batch_size, self._history_length = batch_size, history_length
    self._properties = {name.removeprefix("property/"): column
                        for name, column in behaviors.columns(data, properties).items()}
    self._rows = {name: _row_labels(data, q) for name, q in self._asked.items()}
    self.users = self._labeled(held_out.choose_users(data, split, max_users, seed))
    self._items = self._held_out(np.asarray(data.items))  # [n, P]
    self._labels = {name: self._held_out(rows) for name, rows in self._rows.items()}
    self._negatives = {}
    for name, question in self._asked.items():
      if question["of"] == "clicks":
        self._negatives[name] = _drawn(data, self.users, self._items, split, num_negatives, seed)
      elif responses.is_click(question):
        self._check_classes(name)
    self._spans = {context: held_out.history_span(data, self.users, split, context)
                   for context in self.contexts}
    self._predict = (None, None)

  def run(self, predict, params, *, contexts=None):
    """Returns the `Results` of predict(params, users, histories, properties, targets) -> answers.

    users int32 [B]; histories int32 [B, T], left-padded with the most recent last; properties
    {NAME: int32 [B, T]}; targets {name: int32 [B, K]}, of every question that is asked; answers
    {name: [B, K] scores of its targets, or [B, L] of classes}. `predict` is compiled once per
    function object. Batches are filled up with user 0 and padding.

    Raises:
      FloatingPointError: a score is NaN.
    """
    if predict != self._predict[0]:  # Not `is`: each look-up of a method is a new object.
      self._predict = (predict, jax.jit(predict))
    contexts = contexts or self.contexts
    found = {context: {name: [] for name in self._asked} for context in contexts}
    places = itertools.product(held_out.pieces(len(self.users), self._batch_size), contexts)
    for (rows, context), batch in held_out.fetched(
        (place, self._predict[1](params, *self._batch(*place))) for place in places):
      for name, scores in batch.items():
        scores = scores[:len(self.users[rows])]
        if np.isnan(scores).any():
          raise FloatingPointError(f"NaN among the answers to {name} for user "
                                   f"{self.users[rows][np.argmax(np.isnan(scores).any(axis=1))]}")
        found[context][name].append(self._kept(name, rows, scores))
    return self._results({context: {name: self._judged(name, np.concatenate(parts))
                                    for name, parts in answers.items()}
                          for context, answers in found.items()})

  def references(self):
    """Returns {name: Results} of what needs no model, each of the questions that it answers.

    Ratings as clicks: the item's bias, and that with the user's. Clicks: popularity in train.
    Preferences: the class that most train interactions have, and the user's own most frequent one.
    """
    found = {}
    for name, question in self._asked.items():
      if question["of"] == "clicks":
        counts = self._data.item_counts("train").astype(np.float64)
        guesses = {"popularity": counts[self._targets(name, slice(None))]}
      elif responses.is_click(question):
        _, item, user = ratings.biases(self._data)
        guesses = {"item_bias": item[self._items],
                   "item_user_bias": item[self._items] + user[self.users][:, None]}
      else:
        guesses = self._frequent(name)
      for reference, scores in guesses.items():
        found.setdefault(reference, {})[name] = self._judged(name, scores)
    return {reference: self._results(dict.fromkeys(self.contexts, tables))
            for reference, tables in found.items()}

  def _frequent(self, name):
    """Returns {reference: ranks [n, P, 2]} of a preference by counts in train."""
    begin, end = self._data.span("train")
    labels = sequences.take_ranges(self._rows[name], begin, end)
    size = int(self._rows[name].max()) + 1
    overall = np.bincount(labels, minlength=size)[1:].astype(np.float64)
    own, everyone = [], []
    for rows in held_out.pieces(len(self.users), self._batch_size):
      users = self.users[rows]
      lengths = (end - begin)[users]
      cells = np.repeat(np.arange(len(users)), lengths) * size + sequences.take_ranges(
        self._rows[name], begin[users], end[users])
      counts = np.bincount(cells, minlength=len(users) * size).reshape(-1, size)[:, 1:]
      own.append(self._kept(name, rows, counts + overall / (overall.sum() + 1)))
      everyone.append(self._kept(name, rows, np.broadcast_to(overall, counts.shape)))
    return {"majority": np.concatenate(everyone), "personal_frequency": np.concatenate(own)}

  def _labeled(self, users):
    """Returns those of `users` who have a labeled interaction for every question."""
    begin, end = (edge[users] for edge in self._data.span(self._split))
    for name, rows in self._rows.items():
      count = np.concatenate([[0], np.cumsum(rows > 0)])
      some = count[end] > count[begin]
      users, begin, end = users[some], begin[some], end[some]
      if not len(users):
        raise errors.UserError(f"data set {self._data.name!r}: no {self._split} interaction has a "
                               f"label for {name}")
    return users

  def _held_out(self, rows):
    begin, end = (edge[self.users] for edge in self._data.span(self._split))
    return sequences.pad(rows, begin, end, width=int((end - begin).max()), align="left")

  def _check_classes(self, name):
    if len(np.unique(self._labels[name][self._labels[name] > 0])) < 2:
      raise errors.UserError(f"objective.{name}: all {self._split} interactions of data set "
                             f"{self._data.name!r} have the same label, which no AUC can judge")

  def _batch(self, rows, context):
    begin, end = (edge[rows] for edge in self._spans[context])
    history = lambda column: held_out.fill(sequences.pad(
      column, begin, end, width=self._history_length, align="right"), self._batch_size)
    fill = lambda array: held_out.fill(array, self._batch_size)
    arrays = (fill(self.users[rows]), history(self._data.items),
              {name: history(column) for name, column in self._properties.items()},
              {name: fill(self._targets(name, rows)) for name in self._asked})
    return jax.tree.map(self._put, arrays)

  def _targets(self, name, rows):
    """Returns int32 [n, P], or of clicks [n, P (1 + K)]: what each is compared with beside it."""
    items = self._items[rows]
    if name not in self._negatives:
      return items
    joined = np.concatenate([items[..., None], self._negatives[name][rows]], axis=2)
    return joined.reshape(len(items), -1)

  def _kept(self, name, rows, scores):
    """Returns what is kept of a batch's answers: scores, or of classes [n, P, 2] counts.

    These are how many classes score above the true one, and how many others just as much.
    """
    if responses.is_click(self._asked[name]):
      return scores
    truth = np.maximum(self._labels[name][rows] - 1, 0)
    true = np.take_along_axis(scores, truth, axis=1)
    above = [(scores > true[:, [p]]).sum(axis=1) for p in range(truth.shape[1])]
    level = [(scores == true[:, [p]]).sum(axis=1) - 1 for p in range(truth.shape[1])]
    return np.stack([np.stack(above, 1), np.stack(level, 1)], axis=2)

  def _judged(self, name, kept):
    """Returns {metric: float64 [n, P]} of what `_kept` kept."""
    labels = self._labels[name]
    if name in self._negatives:
      scores = kept.reshape(*self._items.shape, -1)
      mine, others, real = scores[..., :1], scores[..., 1:], self._negatives[name] > 0
      right = ((mine > others) + (mine == others) / 2) * real
      number = real.sum(2)
      return {"auc": np.where(number > 0, right.sum(2) / np.maximum(number, 1), 0.5)}
    if responses.is_click(self._asked[name]):
      auc, real = np.zeros(labels.shape), labels > 0
      auc[real] = placements(kept[real].astype(np.float64), labels[real] == responses.YES)
      return {"auc": auc}
    above, level = kept[..., 0].reshape(-1), kept[..., 1].reshape(-1)
    single = metrics.per_positive(above, level, 1)
    return {"accuracy": single["hit@1"].reshape(labels.shape),
            "mrr": single["rr"].reshape(labels.shape)}

  def _results(self, judged):
    """Returns the `Results` of {context: {name: {metric: [n, P]}}}."""
    real = self._items > 0
    rows, columns = np.nonzero(real)
    of_user = lambda values, mask: ((values * mask).sum(1) / mask.sum(1)).astype(np.float32)
    table = lambda name, found: {
      **{metric: of_user(values, self._labels[name] > 0) for metric, values in found.items()},
      "count": (self._labels[name] > 0).sum(1).astype(np.float32)}
    single = lambda found: {metric: values[rows, columns].astype(np.float32)
                            for metric, values in found.items()}
    positives = None
    if clicks := [name for name, q in self._asked.items() if responses.is_click(q)]:
      positives = values_lib.Positives(rows.astype(np.int32), self._items[rows, columns], {
        context: {name: single(answers[name]) for name in clicks if name in answers}
        for context, answers in judged.items()})
    return Results(self.users, {context: {name: table(name, found)
                                          for name, found in answers.items()}
                                for context, answers in judged.items()}, positives)


def _row_labels(data, question):
  """Returns int32 [R]: the label of every row; where all are clicks, yes."""
  if question["of"] == "clicks":
    return np.full(len(data.items), responses.YES, np.int32)
  return responses.labels(data, question)[0]


def _drawn(data, users, items, split, count, seed):
  """Returns int32 [n, P, count]: for each of `items` [n, P] others, cold ones for what is cold.

  They are uniform over the items of the domain that the user owns in no split; 0 where there are
  too few.
  """
  held = np.zeros(data.num_items + 1, bool) if data.held_out is None else data.held_out
  out = np.zeros((*items.shape, count), np.int32)
  for cold in np.unique(held[items[items > 0]]):
    pool = np.asarray(data.in_domain) & (held == cold)
    part = candidates.sample(dataclasses.replace(data, in_domain=pool), users, split,
                             "uniform100_domain", num_negatives=items.shape[1] * count, seed=seed)
    part = part.reshape(out.shape)
    where = (items > 0) & (held[items] == cold)
    out[where] = part[where]
  return out
