"""The rows every table needs: popularity in the training split, personal frequency, and chance."""

import jax.numpy as jnp
import numpy as np

from recjax import catalog
from recjax.evaluators import values as values_lib


def popularity(ranking, data):
  """Returns the `Results` of scoring each item by how often it occurs in the train split.

  Items are scored by the rank of their count, which float32 holds exactly where it would round
  counts above 2^24 into ties.
  """
  return _run(ranking, _ranks(data))


def personal_frequency(ranking, data, history_length):
  """Returns the `Results` of scoring each item by how often the user has chosen it, then by how
  often it occurs in the train split (a strong baseline of next-basket recommendation).

  Args:
    ranking: of `evaluators.ranking`.
    data: `sequences.Dataset`.
    history_length: items of the longest history; all of it counts.
  """
  return ranking.run(_frequency, _ranks(data), history_length=history_length)


def chance(ranking, data):
  """Returns the `Results` of a constant scorer: the exact expectation of a random order."""
  return _run(ranking, np.zeros(data.num_items + 1, np.float32))


def _ranks(data):
  _, ranks = np.unique(data.item_counts("train"), return_inverse=True)
  return ranks.astype(np.float32)


def _run(ranking, item_scores):
  # Neither row looks at the history, so one context stands for all.
  first = ranking.run(_score, item_scores, contexts=ranking.contexts[:1])
  values = first.values[ranking.contexts[0]]
  return values_lib.Results(first.users, {context: values for context in ranking.contexts},
                            first.positives)


def _frequency(ranks, users, histories, *_, readout=None):
  rows = jnp.arange(len(users))[:, None]
  counts = jnp.zeros((len(users), len(ranks)), jnp.float32).at[rows, histories].add(1)
  scores = counts * (jnp.max(ranks) + 1) + ranks  # Whole numbers: exact up to 2^24.
  return scores if readout is None else readout(catalog.Given(scores[:, None]))


def _score(item_scores, users, *histories, readout=None):
  del histories
  if readout is not None:
    return readout(catalog.Scores(jnp.ones((len(users), 1, 1)), item_scores[:, None]))
  return jnp.broadcast_to(item_scores, (len(users), len(item_scores)))
