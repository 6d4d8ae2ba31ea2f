"""What a study was run to find out: claims, each a list of comparisons with one reading.

A claim says that the first run of each of its pairs is better than the second. Every pair is tested
by itself (Holm over the pairs of the claim), and so is the mean effect: each user's difference is
averaged over the pairs, for the users that all of them share (Holm over all claims of the study).
Tests and verdicts are those of recjax/comparisons.py; `reading` says what follows from them.
"""

import functools

import numpy as np

from recjax import comparisons
from recjax.evaluators import metrics as metrics_lib

RULE = """\
- Each comparison is better, worse or undecided: paired t-test and bootstrap over users, both below
  0.05 after Holm over the claim's comparisons, and the same sign in every seed. The mean effect
  averages each user's difference over the comparisons and is tested likewise, Holm over all claims.
- **holds**: the mean effect is better, more than half of the comparisons are better, none is worse.
- **does not hold**: the mean effect is worse, or some comparison is and no more are better.
- **holds in part**: otherwise, if the mean effect or some comparison is better.
- **undecided at our sample size**: otherwise. The interval says how large an effect could be."""


def reading(mean, verdicts):
  """Returns what the verdict on the mean effect and those on the comparisons say together.

  Args:
    mean: "better", "worse" or "undecided"; None if there is no mean effect.
    verdicts: the same of every comparison at hand; without any the claim is "not tested".
  """
  better, worse = verdicts.count("better"), verdicts.count("worse")
  if not verdicts:
    return "not tested"
  if mean == "worse" or worse and worse >= better:
    return "does not hold"
  if mean == "better" and 2 * better > len(verdicts) and not worse:
    return "holds"
  if mean == "better" or better:
    return "holds in part"
  return "undecided at our sample size"


def target(claim, default):
  """Returns (text, pairs, PROTOCOL, METRIC) of a study's claim, whose last part may be missing."""
  text, pairs, *where = claim
  protocol, _, metric = (where[0] if where else default).rpartition("/")
  return text, tuple(tuple(pair) for pair in pairs), protocol, metric


def read(claims, runs, labels, *, context, default, draws=10_000, seed=0):
  """Returns one dict per claim: its comparisons, mean effect and reading.

  Args:
    claims: (text, ((run, run or reference), ...)[, "PROTOCOL/METRIC"]) each.
    runs: {name: [Run, ...]}.
    labels: {run: label}.
    context: whose values to take.
    default: "PROTOCOL/METRIC" where a claim names none.
    draws: of the bootstrap.
    seed: of the bootstrap.
  """
  found, means, waiting = [], [], []
  for claim in claims:
    text, pairs, protocol, metric = target(claim, default)
    cells = [_cell(runs, a, b, labels, context, protocol, metric) for a, b in pairs]
    cells = [cell for cell in cells if cell is not None]
    found.append({"text": text, "protocol": protocol, "metric": metric, "planned": len(pairs),
                  "comparisons": [cell.entry for cell in cells], "mean": None})
    waiting += cells
    if cells and (mean := _mean(runs, cells)) is not None:
      found[-1]["mean"] = mean.entry
      means.append(mean)
  comparisons.measure(waiting + means, draws, seed)
  comparisons.decide([mean.entry for mean in means])
  for claim in found:
    comparisons.decide(claim["comparisons"])
    verdicts = [entry["verdict"] for entry in claim["comparisons"]]
    claim["reading"] = reading(claim["mean"] and claim["mean"]["verdict"], verdicts)
    claim |= {word: verdicts.count(word) for word in ("better", "worse", "undecided")}
    if claim["comparisons"]:
      claim["metric"] = claim["comparisons"][0]["metric"]
  return found


def _cell(runs, a, b, labels, context, protocol, metric):
  """Returns the one cell of a pair, or None where a side is not at hand."""
  label = f"{labels.get(a, a)} – {labels.get(b, b)}"
  cells = {cell.entry["metric"]: cell
           for cell in comparisons.paired(runs, label, a, b, metrics=comparisons.tested((metric,)))
           if (cell.entry["context"], cell.entry["protocol"]) == (context, protocol)}
  name = comparisons.per_user_metric(metric, cells)
  return cells[name] if name else None


def _mean(runs, cells):
  """Returns the cell of the effect averaged over pairs; None if they share no user."""
  entries = [cell.entry for cell in cells]
  users = [_users(runs, entry) for entry in entries]
  shared = functools.reduce(np.intersect1d, users)
  if not len(shared):
    return None
  seeds = sorted(set.intersection(*(set(entry["seeds"]) for entry in entries)))
  by_seed = [float(np.mean([e["by_seed"][e["seeds"].index(seed)] for e in entries]))
             for seed in seeds]
  diff = np.mean([cell.diff[np.searchsorted(theirs, shared)]
                  for cell, theirs in zip(cells, users, strict=True)], axis=0)
  return comparisons.Cell({"metric": entries[0]["metric"], "seeds": seeds,
                           "by_seed": by_seed or [float(diff.mean())]}, diff)


def _users(runs, entry):
  """Returns the users of a comparison, in the order of its differences."""
  ours, theirs, _ = comparisons.pair_runs(
    runs[entry["run"]], runs.get(entry["against"], runs[entry["run"]]))
  return comparisons.align(ours + theirs)[0]


def is_error(claim):
  """Returns whether smaller is better for what the claim is about."""
  return metrics_lib.is_error(claim["metric"])
