"""Paired comparisons of a study's runs, on all users and by slice.

The tests average every user's metric over the pairs of seeds, then take the users as the sample:
they tell whether *these* trained models differ on users like these, while `p_seeds`, a paired
t-test over seeds, tells whether training again would show it too. Runs are those of
recjax/report.py. Differences are always the first minus the second, of errors too.
"""

import collections
import dataclasses
import functools

import numpy as np

from recjax import slices, statistics
from recjax.evaluators import metrics as metrics_lib

SLICE_USERS = 20  # Fewer decide nothing, whatever a t-test says.
_BUDGET = 1 << 23  # How many differences wait until one bootstrap takes them all.


@dataclasses.dataclass
class Cell:
  """One comparison to be tested: its report `entry` and the users' differences [n]."""
  entry: dict
  diff: np.ndarray


def tested(metrics):
  """Returns the per-user metrics that stand for `metrics` in tests: MSE and MAE for errors."""
  names = []
  for name in metrics:
    names += [name, "mse", "mae"] if metrics_lib.is_error(name) else [name]
  return tuple(dict.fromkeys(names))


def per_user_metric(metric, known):
  """Returns `metric` if `known` holds it, "mse" for an error that is pooled over users, or None."""
  stand_ins = [metric, "mse", "mae"] if metrics_lib.is_error(metric) else [metric]
  return next((name for name in stand_ins if name in known), None)


def pair_runs(ours, theirs):
  """Returns (ours, theirs, seeds): equally long lists of runs to subtract from each other.

  Runs of the same seed belong together. A side with one run alone, as that of a method without
  randomness, pairs with every run of the other.
  """
  if not (ours and theirs):
    return [], [], []
  if len(ours) == 1 or len(theirs) == 1:
    many = max(ours, theirs, key=len)
    repeat = lambda side: list(side) * (len(many) // len(side))
    return repeat(ours), repeat(theirs), [run.seed for run in many]
  mine, other = ({run.seed: run for run in side} for side in (ours, theirs))
  seeds = sorted(mine.keys() & other.keys())
  return [mine[s] for s in seeds], [other[s] for s in seeds], seeds


def align(runs):
  """Returns (users that all runs share, for each run their rows), in one common order."""
  shared = functools.reduce(np.intersect1d, [run.users for run in runs])
  rows = []
  for run in runs:
    order = np.argsort(run.users)
    rows.append(order[np.searchsorted(run.users, shared, sorter=order)])
  return shared, rows


def differences(ours, theirs, key_pairs):
  """Returns (by_user [n, m], by_seed [S, m]): `ours` minus `theirs`, runs paired in order.

  NaN is where a protocol does not measure a user; means are over the others.

  Args:
    ours, theirs: lists of S runs, see `pair_runs`.
    key_pairs: m pairs of a key of `ours` and a key of `theirs`.
  """
  _, rows = align(ours + theirs)
  take = lambda run, row, key: run.values[key][row].astype(np.float64)
  per_seed = np.stack([
    np.stack([take(a, row_a, key_a) - take(b, row_b, key_b) for key_a, key_b in key_pairs], axis=-1)
    for a, b, row_a, row_b in zip(ours, theirs, rows[:len(ours)], rows[len(ours):], strict=True)])
  measured = np.isfinite(per_seed).all(axis=0)
  total = np.where(measured, per_seed, 0).sum(axis=1)
  return per_seed.mean(axis=0), total / np.maximum(measured.sum(axis=0), 1)


def compare(runs, pairs, *, metrics, draws=10_000, seed=0):
  """Returns one dict for each pair and each context, protocol and metric that both sides have.

  Holm's correction covers all pairs within one context, protocol and metric.

  Args:
    runs: {name: [Run, ...]}.
    pairs: (label, run name, run name or reference); the first minus the second is tested.
    metrics: which of the per-user metrics to test.
    draws: of the bootstrap.
    seed: of the bootstrap.
  """
  entries, waiting, size = [], [], 0
  for label, a, b in pairs:
    cells = paired(runs, label, a, b, metrics=metrics)
    entries += [cell.entry for cell in cells]
    waiting += cells
    size += sum(len(cell.diff) for cell in cells)
    if size > _BUDGET:
      measure(waiting, draws, seed)
      waiting, size = [], 0
  measure(waiting, draws, seed)
  families = collections.defaultdict(list)
  for entry in entries:
    families[entry["context"], entry["protocol"], entry["metric"]].append(entry)
  for family in families.values():
    decide(family)
  return entries


def paired(runs, label, a, b, *, metrics):
  """Returns the `Cell`s, not tested yet, of run `a` minus `b`, a run or a reference of `a`.

  They hold every user, with NaN for those whom a protocol does not measure.
  """
  ours = runs.get(a, ())
  is_reference = b not in runs and any(b in run.references for run in ours)
  ours, theirs, seeds = pair_runs(ours, ours if is_reference else runs.get(b, ()))
  if not seeds:
    return []
  other = lambda key: f"{b}/{key.split('/', 1)[1]}" if is_reference else key
  keys = [key for key in ours[0].values
          if key.split("/", 1)[0] not in ours[0].references and key.rsplit("/", 1)[-1] in metrics
          and all(key in x.values and other(key) in y.values
                  for x, y in zip(ours, theirs, strict=True))]
  if not keys:
    return []
  by_user, by_seed = differences(ours, theirs, [(key, other(key)) for key in keys])
  if not len(by_user):  # Rows of different domains: no user to compare them on.
    return []
  cells = []
  for i, key in enumerate(keys):
    if np.isnan(by_user[:, i]).all():  # nobody whom both measure
      continue
    context, protocol, metric = key.split("/")
    cells.append(Cell({
      "label": label, "run": a, "against": b, "context": context, "protocol": protocol,
      "metric": metric, "seeds": seeds, "by_seed": by_seed[:, i].tolist()}, by_user[:, i]))
  return cells


def measure(cells, draws, seed):
  """Adds to the entries of `cells` the difference, its interval and the unadjusted p-values.

  From then on they hold those users alone whom their protocol measures.
  """
  alike = collections.defaultdict(list)
  for cell in cells:
    cell.diff = cell.diff[np.isfinite(cell.diff)]
    alike[len(cell.diff)].append(cell)
  for group in alike.values():  # Resamples depend on n alone, so cells of one n share them.
    low, high, p_bootstrap = statistics.paired_bootstrap(
      np.stack([cell.diff for cell in group], axis=1), draws, seed)
    for i, cell in enumerate(group):
      t, p_t = statistics.paired_ttest(cell.diff)
      by_seed = cell.entry["by_seed"]
      cell.entry.update(
        users=len(cell.diff), difference=float(cell.diff.mean()),
        ci=[float(low[i]), float(high[i])], t=t if np.isfinite(t) else None, p_t=p_t,
        p_bootstrap=float(p_bootstrap[i]),
        p_seeds=statistics.paired_ttest(by_seed)[1] if len(by_seed) >= 3 else None)


def decide(family, tests=("p_t", "p_bootstrap")):
  """Adds to a family of tested entries Holm's p-values of `tests` and the verdict."""
  for name in tests:
    for entry, p in zip(family, statistics.holm([e[name] for e in family]), strict=True):
      entry[f"{name}_holm"] = float(p)
  for entry in family:
    entry["verdict"] = statistics.verdict(
      [entry[f"{name}_holm"] for name in tests], entry["by_seed"],
      smaller_is_better=metrics_lib.is_error(entry["metric"]))


def by_slice(runs, pairs, *, metric, context, protocols, draws=10_000, seed=0):
  """Returns one dict for each pair, protocol and slice: all users, history, item popularity.

  Holm's correction of the t-test covers all of them together. The bootstrap gives the intervals
  only: its p-values are too coarse for so many. Slices of less than `SLICE_USERS` users have the
  difference and no verdict (None).

  Args:
    runs, pairs: as in `compare`.
    metric: run -> its per-user metric; of single items what stands for it there is taken.
    context: whose values to take.
    protocols: which ones.
    draws: of the bootstrap.
    seed: of the bootstrap.
  """
  cells = []
  for label, a, b in pairs:
    ours, theirs, _ = pair_runs(runs.get(a, ()), runs.get(b, ()))
    if not ours:
      continue
    _, rows = align(ours + theirs)
    sides = ours, theirs, rows[:len(ours)], rows[len(ours):]
    base = {"label": label, "run": a, "against": b, "context": context}
    for protocol in protocols:
      cells += _sliced(sides, {**base, "protocol": protocol}, metric(a))
  tested_cells = [cell for cell in cells if len(cell.diff) >= SLICE_USERS]
  measure(tested_cells, draws, seed)
  decide([cell.entry for cell in tested_cells], ("p_t",))
  for cell in cells:
    if len(cell.diff) < SLICE_USERS:
      cell.entry.update(users=len(cell.diff), difference=float(cell.diff.mean()), ci=None,
                        verdict=None)
  return [cell.entry for cell in cells]


def _sliced(sides, base, metric):
  """Returns the cells of one pair and protocol; slices without users have none."""
  ours, theirs, rows_a, rows_b = sides
  key, cells = f"{base['context']}/{base['protocol']}/{metric}", []
  if all(key in run.values for run in ours + theirs):
    diff = np.stack([a.values[key][i].astype(np.float64) - b.values[key][j]
                     for a, b, i, j in zip(ours, theirs, rows_a, rows_b, strict=True)])
    cells.append(_cell({**base, "kind": "all", "slice": "all", "metric": metric}, diff))
    if ours[0].lengths is not None:
      member = slices.of_history(ours[0].lengths[rows_a[0]])
      cells += [_cell({**base, "kind": "history", "slice": name, "metric": metric},
                      diff[:, member == place]) for place, name in enumerate(slices.HISTORY)]
  if item_key := single_item_key(ours + theirs, base["context"], base["protocol"], metric):
    diff = np.stack([a.by_popularity[item_key][i].astype(np.float64) - b.by_popularity[item_key][j]
                     for a, b, i, j in zip(ours, theirs, rows_a, rows_b, strict=True)])
    name_of = item_key.rsplit("/", 1)[-1]
    for place, name in enumerate(slices.POPULARITY):
      column = diff[:, :, place]
      cells.append(_cell({**base, "kind": "popularity", "slice": name, "metric": name_of}, column))
  return [cell for cell in cells if len(cell.diff)]


def single_item_key(runs, context, protocol, metric):
  """Returns the key of `by_popularity` that stands for `metric` in all `runs`, or None."""
  for key in runs[0].by_popularity:
    head, name = key.rsplit("/", 1)
    if (head == f"{context}/{protocol}" and slices.stands_for(name, metric)
        and all(key in run.by_popularity for run in runs)):
      return key
  return None


def _cell(entry, diff):
  # Users first averaged over seeds; a seed's own mean says whether they agree. Whom no run measures
  # counts nowhere.
  diff = diff[:, np.isfinite(diff).all(axis=0)]
  by_seed = diff.mean(axis=1).tolist() if diff.shape[1] else []
  return Cell({**entry, "by_seed": by_seed}, diff.mean(axis=0))
