"""What negatives are drawn from, where that is not the uniform distribution."""

import numpy as np


def popularity(counts, pool, power):
  """Returns the tables of draws from `pool` with q(item) ~ max(count, 1)^power.

  An item that nobody has counts as one: what is never drawn could not be corrected for.

  Args:
    counts: int [N + 1], how often each item occurs.
    pool: int32 [M] items.
    power: 0 is uniform, 1 is popularity; 0.75 is that of Mikolov et al. 2013.

  Returns:
    {"chance" float32 [M], "alias" int32 [M]} of `alias_table`, and "log_q" float32 [N + 1], the log
    of q(item), 0 for what is not in the pool.
  """
  weights = np.maximum(counts[pool], 1).astype(np.float64)**power
  weights /= weights.sum()
  log_q = np.zeros(len(counts), np.float32)
  log_q[pool] = np.log(weights)
  chance, alias = alias_table(weights)
  return {"chance": chance, "alias": alias, "log_q": log_q}


def alias_table(weights):
  """Returns (chance float32 [M], alias int32 [M]) of draws by these weights (Walker 1977).

  A place i, drawn uniformly, stays i with chance[i] and else becomes alias[i]. What
  places lack to 1 / M, one after the other, is filled from what others have in excess, likewise;
  where that overshoots, the exhausted one is filled up from the next. Both are searches in sums.

  Args:
    weights: float64 [M], summing to 1.
  """
  shares = weights * len(weights)
  level = min(shares.max(), 1)  # rounding may leave all of them below 1
  few, many = np.flatnonzero(shares < level), np.flatnonzero(shares >= level)
  lacking = np.concatenate([[0.0], np.cumsum(1 - shares[few])])
  excess = np.cumsum(shares[many] - 1)
  chance, alias = np.minimum(shares, 1), np.arange(len(weights))
  # Rounding may leave the last ones without a giver: the last giver takes them.
  giver = np.minimum(np.searchsorted(excess, lacking[:-1], side="right"), len(many) - 1)
  alias[few] = many[giver]
  # A giver has given to all who began within its excess, and lacks what the last of them overshot.
  begun = np.searchsorted(lacking[:-1], excess[:-1], side="left")
  chance[many[:-1]] = 1 - np.maximum(lacking[begun] - excess[:-1], 0)
  alias[many[:-1]] = many[1:]
  return chance.astype(np.float32), alias.astype(np.int32)
