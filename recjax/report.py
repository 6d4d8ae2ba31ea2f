"""What the finished runs of a study say: tables, paired tests and their report.

Two kinds of spread are kept apart. "12.34 ± 0.12" is mean and standard deviation (ddof = 1) over
seeds. The tests average every user's metric over the seeds that both sides share, then treat the
users as the sample: they tell whether *these* trained models differ on users like these, while
`p_seeds`, a paired t-test over seeds, tells whether training again would show it too.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import zipfile

import numpy as np
from scipy import stats

from recjax import errors, record, tables

METRICS = ("ndcg@10", "recall@10", "mrr")
LEVEL = 0.05


# Statistics.


def holm(p):
  """Returns Holm's (1979) step-down adjusted p-values, in the order given.

  Sorted ascending, p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1.
  """
  p = np.asarray(p, np.float64)
  order = np.argsort(p, kind="stable")
  stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  adjusted = np.empty_like(p)
  adjusted[order] = np.minimum(stepped, 1.0)
  return adjusted


def paired_ttest(diff):
  """Returns (t, two-sided p) of the mean of paired differences [n] against zero.

  Without variance the test says what the data says: (0, 1) where every difference is zero and
  (±inf, 0) where all are equal but not zero. Fewer than two pairs decide nothing: (0, 1).
  """
  diff = np.asarray(diff, np.float64)
  if len(diff) < 2 or not diff.any():
    return 0.0, 1.0
  mean, std = diff.mean(), diff.std(ddof=1)
  if std <= 1e-12 * np.abs(diff).max():  # equal up to rounding, as np.std does not return 0 exactly
    return float(np.copysign(np.inf, mean)), 0.0
  t = mean / (std / np.sqrt(len(diff)))
  return float(t), float(2 * stats.t.sf(abs(t), len(diff) - 1))


def paired_bootstrap(diff, draws=10_000, seed=0, *, level=LEVEL, max_entries=1 << 22):
  """Returns (low, high, p) for the mean of paired differences, resampling pairs.

  The interval is the percentile interval of 1 - `level`; p = 2 min(P(mean* <= 0), P(mean* >= 0))
  with one added to both counts and to `draws`, so it is never zero, and at most 1.

  Args:
    diff: [n] or [n, m]; the m columns share their resamples and give arrays [m].
    draws: how many resamples.
    seed: of the resamples.
    level: 0.05 for a 95 % interval.
    max_entries: bounds memory; resamples are drawn in blocks of about this many indices.
  """
  diff = np.asarray(diff, np.float64)
  columns = diff.reshape(len(diff), -1)
  means = _resampled_means(columns, draws, np.random.default_rng(seed), max_entries)
  low, high = np.quantile(means, [level / 2, 1 - level / 2], axis=0)
  tail = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
  p = np.minimum(2 * (tail + 1) / (draws + 1), 1.0)
  return (low, high, p) if diff.ndim > 1 else (float(low[0]), float(high[0]), float(p[0]))


def _resampled_means(columns, draws, rng, max_entries):
  # As a matrix of counts: one product serves all columns, where a gather would need [draws, n, m].
  n = len(columns)
  block = max(1, min(draws, max_entries // n))
  means = np.empty((draws, columns.shape[1]))
  for first in range(0, draws, block):
    size = min(block, draws - first)
    index = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(index.ravel(), minlength=size * n).reshape(size, n)
    means[first:first + size] = counts.astype(np.float64) @ columns / n
  return means


def verdict(p_values, by_seed, *, level=LEVEL):
  """Returns "better" or "worse" where all p-values are below `level` and all seeds agree.

  Otherwise "undecided": a difference that changes its sign with the seed is one of these trained
  models, not of the methods, however many users it was measured on.
  """
  signs = {np.sign(d) for d in by_seed}
  if max(p_values) >= level or signs not in ({1}, {-1}):
    return "undecided"
  return "better" if signs == {1} else "worse"


# Runs.


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run: its report.json, and values[CONTEXT/PROTOCOL/METRIC] [n] of `users` [n]."""
  name: str
  seed: int
  report: dict
  users: np.ndarray
  values: dict
  curve: dict


def load_run(folder, name, seed, *, metrics=METRICS):
  """Returns the `Run` in `folder`, with the per-user values of `metrics` only.

  Raises:
    UserError: a file is missing or unreadable, or values are not finite or do not fit the users.
  """
  folder = pathlib.Path(folder)
  path = folder / "per_user_test.npz"
  report = read_json(folder / "report.json")
  try:
    with np.load(path, allow_pickle=False) as arrays:
      users = arrays["external_users"]
      values = {key: arrays[key] for key in arrays.files if key.rsplit("/", 1)[-1] in metrics}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: cannot be read ({error}); delete {os.fspath(folder)!r} to run it again") from error
  for key, array in values.items():
    if array.shape != users.shape or not np.isfinite(array).all():
      raise errors.UserError(f"{path}: {key} is not one finite number for each of the {len(users)} "
                             f"users; delete {os.fspath(folder)!r} to run it again")
  return Run(name, seed, report, users, values, read_curve(folder / "metrics.jsonl", metrics[0]))


def read_curve(path, metric):
  """Returns {step: value} of a validation metric, under the `full` protocol where there is one."""
  found = collections.defaultdict(dict)
  for row in record.read_metrics(path):
    if row["split"] == "val":
      for key, value in row.items():
        if key.rsplit("/", 1)[-1] == metric and value is not None:
          found[key][row["step"]] = value
  return found[max(found, key=lambda key: ("full" in key.split("/"), key))] if found else {}


def read_json(path):
  """Returns the contents of a json file, or raises `UserError`."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise errors.UserError(f"{path}: cannot be read ({error}); delete it, start again") from error


# From runs to numbers.


def summary(values):
  """Returns {"mean", "std", "seeds"} of one number per seed; one seed has no std (None)."""
  values = [float(v) for v in values]
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return {"mean": float(np.mean(values)), "std": std, "seeds": values}


def aggregate(nestings):
  """Returns the common nesting of several {a: {b: number}} with `summary` at the leaves."""
  first = nestings[0]
  if not isinstance(first, dict):
    return summary(nestings)
  return {key: aggregate([n[key] for n in nestings])
          for key in first if all(key in n for n in nestings)}


def align(runs):
  """Returns, for each run, the rows of the users that all runs share, in one common order."""
  shared = functools.reduce(np.intersect1d, [run.users for run in runs])
  rows = []
  for run in runs:
    order = np.argsort(run.users)
    rows.append(order[np.searchsorted(run.users, shared, sorter=order)])
  return rows


def differences(ours, theirs, key_pairs):
  """Returns (by_user [n, m], by_seed [S, m]): `ours` minus `theirs`, runs paired in order.

  Args:
    ours, theirs: lists of S runs, of the same seeds.
    key_pairs: m pairs of a key of `ours` and a key of `theirs`.
  """
  rows = align(ours + theirs)
  take = lambda run, row, key: run.values[key][row].astype(np.float64)
  per_seed = np.stack([
    np.stack([take(a, row_a, key_a) - take(b, row_b, key_b) for key_a, key_b in key_pairs], axis=-1)
    for a, b, row_a, row_b in zip(ours, theirs, rows[:len(ours)], rows[len(ours):], strict=True)])
  return per_seed.mean(axis=0), per_seed.sum(axis=1) / max(per_seed.shape[1], 1)


def compare(runs, pairs, *, metrics=METRICS, draws=10_000, seed=0):
  """Returns one dict for each pair and each context, protocol and metric that both sides have.

  Holm's correction covers all pairs within one context, protocol and metric.

  Args:
    runs: {name: [Run, ...]}.
    pairs: (label, run name, run name or "popularity"); the first minus the second is tested.
    metrics: which of the per-user metrics to test.
    draws: of the bootstrap.
    seed: of the bootstrap.
  """
  entries = []
  for label, a, b in pairs:
    entries += _compare_pair(label, a, b, runs, metrics, draws, seed)
  families = collections.defaultdict(list)
  for entry in entries:
    families[entry["context"], entry["protocol"], entry["metric"]].append(entry)
  for family in families.values():
    for test in ("p_t", "p_bootstrap"):
      for entry, p in zip(family, holm([e[test] for e in family]), strict=True):
        entry[f"{test}_holm"] = float(p)
    for entry in family:
      entry["verdict"] = verdict((entry["p_t_holm"], entry["p_bootstrap_holm"]), entry["by_seed"])
  return entries


def _compare_pair(label, a, b, runs, metrics, draws, seed):
  ours = {run.seed: run for run in runs.get(a, ())}
  theirs = ours if b == "popularity" else {run.seed: run for run in runs.get(b, ())}
  seeds = sorted(ours.keys() & theirs.keys())
  if not seeds:
    return []
  ours, theirs = [ours[s] for s in seeds], [theirs[s] for s in seeds]
  other = lambda key: f"popularity/{key.split('/', 1)[1]}" if b == "popularity" else key
  keys = [key for key in ours[0].values
          if not key.startswith("popularity/") and key.rsplit("/", 1)[-1] in metrics
          and all(key in x.values and other(key) in y.values
                  for x, y in zip(ours, theirs, strict=True))]
  if not keys:
    return []
  by_user, by_seed = differences(ours, theirs, [(key, other(key)) for key in keys])
  if not len(by_user):  # Rows of different domains: no user to compare them on.
    return []
  low, high, p_bootstrap = paired_bootstrap(by_user, draws, seed)
  entries = []
  for i, key in enumerate(keys):
    context, protocol, metric = key.split("/")
    t, p_t = paired_ttest(by_user[:, i])
    entries.append({
      "label": label, "run": a, "against": b, "context": context, "protocol": protocol,
      "metric": metric, "users": len(by_user), "seeds": seeds,
      "difference": float(by_user[:, i].mean()), "by_seed": by_seed[:, i].tolist(),
      "ci": [float(low[i]), float(high[i])],
      "t": t if np.isfinite(t) else None, "p_t": p_t, "p_bootstrap": float(p_bootstrap[i]),
      "p_seeds": paired_ttest(by_seed[:, i])[1] if len(seeds) >= 3 else None})
  return entries


def curves(runs):
  """Returns {"steps", "mean", "low", "high"} of the validation curves of one row's seeds.

  Only steps that every seed has count: seeds that stopped early must not bend the mean.
  """
  steps = sorted(set.intersection(*(set(run.curve) for run in runs))) if runs else []
  if not steps:
    return {"steps": [], "mean": [], "low": [], "high": []}
  values = np.asarray([[run.curve[step] for step in steps] for run in runs], np.float64)
  mean, std = values.mean(axis=0), values.std(axis=0, ddof=1 if len(runs) > 1 else 0)
  return {"steps": steps, "mean": mean.tolist(),
          "low": (mean - std).tolist(), "high": (mean + std).tolist()}


def build(config, runs, *, states=(), command=""):
  """Returns the report of a study as a plain dict, everything that `write` prints.

  Args:
    config: the study's config (see recjax/study.py).
    runs: finished runs, {run name: [Run, ...]}.
    states: one dict per planned run: name, seed, state, error, wall_s.
    command: what was typed.
  """
  metrics = tuple(config.get("headline") or METRICS)
  labels = {run: label for label, run in config.rows}
  pairs = [(label, run, config.baseline) for label, run in config.rows if run != config.baseline]
  versus = [tuple(pair) for pair in config.get("comparisons") or ()]
  draws = config.get("bootstrap_draws") or 10_000
  entries = compare(runs, pairs + versus, metrics=metrics, draws=draws)
  for entry in entries:
    entry["to_baseline"] = (entry["label"], entry["run"], entry["against"]) in pairs
  shown = [run for _, name in config.rows for run in runs.get(name, ())]
  basis = runs.get(config.baseline) or shown
  everything = [run for group in runs.values() for run in group]
  return {
    "title": config.title,
    "finished": all(s["state"] == "done" for s in states),
    "generated": any(run.report["data"].get("generated") for run in everything),
    "command": command,
    "seeds": list(config.seeds),
    "context": basis[0].report["context"] if basis else None,
    "headline": list(metrics),
    "baseline": labels.get(config.baseline, config.baseline),
    "data": {run.report["data"]["name"]: run.report["data"] for run in everything},
    "rows": [_row(label, name, runs.get(name, [])) for label, name in config.rows],
    # Every run of the same data repeats these two, whatever its seed.
    **{key: aggregate([basis[0].report[key]]) if basis else {} for key in ("popularity", "chance")},
    "comparisons": entries,
    "published": {label: dict(values) for label, values in (config.get("published") or {}).items()},
    "runs": {name: _cost(group) for name, group in runs.items() if group},
    "wall_s": sum(run.report["speed"].get("wall_s") or 0 for run in everything),
    "states": list(states),
    "notes": config.get("notes") or "",
  }


def _row(label, name, runs):
  return {"label": label, "run": name, "seeds": [run.seed for run in runs], "curve": curves(runs),
          "results": aggregate([run.report["contexts"] for run in runs]) if runs else {}}


def _cost(runs):
  mean = lambda part, key: float(np.mean([run.report[part].get(key) or 0 for run in runs]))
  first, speeds = runs[0].report, ("wall_s", "train_s", "compile_s", "examples_per_s")
  kind = first["speed"].get("device_kind") or first["speed"].get("platform") or "device"
  return {"seeds": [run.seed for run in runs], "data": first["data"]["name"],
          "devices": f"{first['speed'].get('devices')} x {kind}",
          "parameters": first["run"].get("parameters"),
          **{key: mean("run", key) for key in ("steps", "best_step")},
          **{key: mean("speed", key) for key in speeds}}


def write(workdir, report):
  """Writes report.json, report.md and the two plots; returns the markdown."""
  from recjax import plots  # Here, because importing matplotlib takes longer than all the rest.

  workdir = pathlib.Path(workdir)
  images = plots.draw(workdir, report)
  text = tables.markdown(report, images)
  record.write_json(workdir / "report.json", report)
  record.write_text(workdir / "report.md", text)
  return text
