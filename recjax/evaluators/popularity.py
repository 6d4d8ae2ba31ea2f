"""The two rows every table needs: popularity in the training split, and chance."""

import jax.numpy as jnp
import numpy as np

from recjax import catalog
from recjax.evaluators import values as values_lib


def popularity(ranking, data):
  """Returns the `Results` of scoring each item by how often it occurs in the train split.

  Items are scored by the rank of their count, which float32 holds exactly where it would round
  counts above 2^24 into ties.
  """
  _, ranks = np.unique(data.item_counts("train"), return_inverse=True)
  return _run(ranking, ranks.astype(np.float32))


def chance(ranking, data):
  """Returns the `Results` of a constant scorer: the exact expectation of a random order."""
  return _run(ranking, np.zeros(data.num_items + 1, np.float32))


def _run(ranking, item_scores):
  # Neither row looks at the history, so one context stands for all.
  first = ranking.run(_score, item_scores, contexts=ranking.contexts[:1])
  values = first.values[ranking.contexts[0]]
  return values_lib.Results(first.users, {context: values for context in ranking.contexts},
                            first.positives)


def _score(item_scores, users, histories, readout=None):
  del histories
  if readout is not None:
    return readout(catalog.Scores(jnp.ones((len(users), 1, 1)), item_scores[:, None]))
  return jnp.broadcast_to(item_scores, (len(users), len(item_scores)))
