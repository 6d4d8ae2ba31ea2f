"""What an evaluator measured: metrics of every user, and their means."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Positives:
  """Every held-out item by itself: `values[context][protocol][metric]` is float32 [P].

  `rows` int32 [P] says whose it is, as an index into the `users` of the `Results`; `items` int32
  [P] which item.
  """
  rows: np.ndarray
  items: np.ndarray
  values: dict


@dataclasses.dataclass(frozen=True)
class Results:
  """Per-user metrics: `values[context][protocol][metric]` is float32 [n], like `users`.

  NaN is where a protocol does not measure a user.
  """
  users: np.ndarray
  values: dict
  positives: Positives | None = None

  def means(self):
    """Returns the same nesting with one float per metric: users who are measured count alike.

    Protocols that measure nobody are left out.
    """
    mean = lambda value: float(np.mean(value[np.isfinite(value)], dtype=np.float64))
    anybody = lambda table: all(np.isfinite(value).any() for value in table.values())
    return {context: {protocol: {metric: mean(value) for metric, value in table.items()}
                      for protocol, table in protocols.items() if anybody(table)}
            for context, protocols in self.values.items()}

  def flat(self):
    """Returns {"train/full/ndcg@10": float32 [n], ...}."""
    return {f"{context}/{protocol}/{metric}": value
            for context, protocols in self.values.items()
            for protocol, table in protocols.items() for metric, value in table.items()}
