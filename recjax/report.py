"""What the finished runs of a study say: everything its report prints, as one plain dict.

"12.34 ± 0.12" is mean and standard deviation (ddof = 1) over seeds; recjax/comparisons.py says what
the paired tests take as their sample, recjax/claims.py how claims are read.
"""

import collections
import dataclasses
import json
import os
import pathlib
import zipfile

import numpy as np

from recjax import claims as claims_lib
from recjax import comparisons, errors, record, sections, slices, tables
from recjax.evaluators import metrics as metrics_lib

REFERENCES = ("popularity", "chance")  # of runs whose report does not list its own
_DRAWS = 10_000


# Runs.


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run: its report.json, and values[CONTEXT/PROTOCOL/METRIC] [n] of `users` [n].

  `lengths` int [n] are the users' train lengths, `by_popularity[CONTEXT/PROTOCOL/METRIC]` [n,
  slices] the means over a user's items of each popularity slice; None and {} for older runs.
  """
  name: str
  seed: int
  report: dict
  users: np.ndarray
  values: dict
  curve: dict
  lengths: np.ndarray | None = None
  by_popularity: dict = dataclasses.field(default_factory=dict)
  measured: str = ""  # PROTOCOL/METRIC of the curve

  @property
  def references(self):
    """Returns the names of the reference rows whose values stand beside the run's own."""
    return tuple(self.report.get("references", REFERENCES))


def needed_metrics(config):
  """Returns the metrics that a study's report reads of its runs, that of the curves first."""
  headline = tuple(config.get("headline") or metrics_lib.HEADLINE)
  named = [claims_lib.target(claim, headline[0])[-1] for claim in config.get("claims") or ()]
  named += [where.rpartition("/")[2] for _, where, _ in config.get("tasks") or ()]
  return tuple(dict.fromkeys([*headline, *comparisons.tested((*headline, *named))]))


def load_run(folder, name, seed, *, metrics=metrics_lib.HEADLINE):
  """Returns the `Run` in `folder`, with the values of `metrics` only.

  Raises:
    UserError: a file is missing or unreadable, or values are not finite or do not fit the users.
  """
  folder = pathlib.Path(folder)
  report = read_json(folder / "report.json")
  wanted = lambda key: "/" in key and key.rsplit("/", 1)[-1] in metrics
  arrays = _read_arrays(
    folder / "per_user_test.npz", ("external_users",), ("train_length",), wanted)
  users, lengths = arrays.pop("external_users"), arrays.pop("train_length", None)
  for key, array in arrays.items():
    # NaN: a user whom the protocol does not measure.
    if array.shape != users.shape or np.isinf(array).any():
      raise errors.UserError(
        f"{folder / 'per_user_test.npz'}: {key} is not one finite number for each of the "
        f"{len(users)} users; delete {os.fspath(folder)!r} to run it again")
  if lengths is not None and lengths.shape != users.shape:
    raise errors.UserError(f"{folder / 'per_user_test.npz'}: train_length does not fit the users; "
                           f"delete {os.fspath(folder)!r} to run it again")
  by_popularity = _load_positives(folder, len(users), report.get("context"), metrics)
  curves = (read_curve(folder / "metrics.jsonl", metric) for metric in metrics)
  measured, curve = next((found for found in curves if found[1]), ("", {}))
  return Run(name, seed, report, users, arrays, curve, lengths, by_popularity, measured)


def _load_positives(folder, users, context, metrics):
  """Returns `Run.by_popularity`, of the first context and the protocols that slices show."""
  path = folder / "per_positive_test.npz"
  if not path.is_file():
    return {}
  names = ("rows", "popularity")
  wanted = lambda key: (key.startswith(f"{context}/")
                        and any(slices.stands_for(key.rsplit("/", 1)[-1], metric)
                                for metric in metrics))
  arrays = _read_arrays(path, names, (), wanted)
  rows, classes = (arrays.pop(name) for name in names)
  bad = (any(array.shape != rows.shape or not np.isfinite(array).all()
             for array in (classes, *arrays.values()))
         or len(rows) and not (0 <= rows.min() <= rows.max() < users and classes.min() >= 0
                               and classes.max() < len(slices.POPULARITY)))
  if bad:
    raise errors.UserError(f"{path}: does not fit the {users} users of per_user_test.npz; delete "
                           f"{os.fspath(folder)!r} to run it again")
  return {key: slices.by_user(array, rows, classes, users) for key, array in arrays.items()}


def _read_arrays(path, required, optional, wanted):
  """Returns {name: array} of an .npz: what is required, what there is of the rest."""
  try:
    with np.load(path, allow_pickle=False) as stored:
      names = [*required, *(n for n in stored.files if n in optional or wanted(n))]
      return {name: stored[name] for name in names}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(f"{path}: cannot be read ({error}); delete "
                           f"{os.fspath(path.parent)!r} to run it again") from error


def read_curve(path, metric):
  """Returns (PROTOCOL/METRIC, {step: value}) of a validation metric, of `full` where it is there.
  """
  found = collections.defaultdict(dict)
  for row in record.read_metrics(path):
    if row["split"] == "val":
      for key, value in row.items():
        if key.rsplit("/", 1)[-1] == metric and value is not None:
          found[key][row["step"]] = value
  name = max(found, key=lambda key: ("full" in key.split("/"), key), default="")
  return name, found.get(name, {})


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


def curves(runs):
  """Returns {"measured", "steps", "mean", "low", "high"} of the curves of one row's seeds.

  Only steps that every seed has count: seeds that stopped early must not bend the mean.
  """
  steps = sorted(set.intersection(*(set(run.curve) for run in runs))) if runs else []
  if not steps:
    return {"measured": "", "steps": [], "mean": [], "low": [], "high": []}
  values = np.asarray([[run.curve[step] for step in steps] for run in runs], np.float64)
  mean, std = values.mean(axis=0), values.std(axis=0, ddof=1 if len(runs) > 1 else 0)
  return {"measured": runs[0].measured, "steps": steps, "mean": mean.tolist(),
          "low": (mean - std).tolist(), "high": (mean + std).tolist()}


def baseline_of(config, run):
  """Returns the run that a row is compared with, or None.

  That is the study's `baseline`; where it has `baselines`, what these say of the run, if anything.
  """
  baselines = config.get("baselines")
  other = baselines.get(run) if baselines else config.get("baseline")
  return None if other == run else other


def build(config, runs, *, states=(), command=""):
  """Returns the report of a study as a plain dict, everything that `write` prints.

  Args:
    config: the study's config (see recjax/study_plan.py).
    runs: finished runs, {run name: [Run, ...]}.
    states: one dict per planned run: name, seed, state, error, wall_s.
    command: what was typed.
  """
  metrics = tuple(config.get("headline") or metrics_lib.HEADLINE)
  rows = tuple(config.get("rows") or ())
  draws = config.get("bootstrap_draws") or _DRAWS
  shown = {name: runs[name] for _, name in rows if name in runs}
  context = next((group[0].report["context"] for group in shown.values()), None)
  tasks = _tasks(config, shown)
  pairs = [(*row, baseline_of(config, row[1])) for row in rows if baseline_of(config, row[1])]
  versus = [tuple(pair) for pair in config.get("comparisons") or ()]
  measured = tuple(dict.fromkeys([*metrics, *(task["metric"] for task in tasks)]))
  entries = comparisons.compare(
    runs, pairs + versus, metrics=comparisons.tested(measured), draws=draws)
  for entry in entries:
    entry["to_baseline"] = (entry["label"], entry["run"], entry["against"]) in pairs
  everything = [run for group in runs.values() for run in group]
  data = {run.report["data"]["name"]: run.report["data"] for run in everything}
  primary = _tested(metrics[0], shown.values())
  judged = {run: task for task in tasks for run in task["runs"]}
  table = [_row(label, name, runs.get(name, []), config, judged.get(
    name, {"title": None, "metric": metrics[0], "tested": primary})) for label, name in rows]
  tested = {row["run"]: row["tested"] for row in table}
  movers = [pair for pair in pairs if config.runs[pair[1]].get("source") and tested[pair[1]]]
  moved = {name for _, name, _ in movers} or set(shown)
  protocols = list(dict.fromkeys(task["protocol"] for task in tasks)) or tables.slice_protocols(
    {p for row in table if row["run"] in moved for p in row["results"].get(context, {})})
  return {
    "title": config.title,
    "finished": all(s["state"] == "done" for s in states),
    "generated": any(run.report["data"].get("generated") for run in everything),
    "command": command,
    "seeds": list(config.get("seeds") or ()),
    "context": context,
    "headline": list(metrics),
    "tested": primary,
    "data": data,
    "data_rows": _data_rows(config),
    "tasks": tasks,
    "rows": table,
    "references": _references(shown, {run: task["title"] for run, task in judged.items()}),
    "comparisons": entries,
    "slices": {
      "protocols": protocols,
      "missing": [name for name, group in shown.items()
                  if not all("slices" in run.report for run in group)],
      "gains": comparisons.by_slice(
        runs, movers, metric=tested.get, context=context, protocols=protocols,
        draws=max(draws // 5, 1))},
    "claims": claims_lib.read(
      config.get("claims") or (), runs, {run: label for label, run in rows}, context=context,
      default=f"{(protocols or ['full'])[0]}/{metrics[0]}", draws=draws),
    "published": {label: dict(values) for label, values in (config.get("published") or {}).items()},
    "runs": {name: _cost(group) for name, group in runs.items() if group},
    "wall_s": sum(run.report["speed"].get("wall_s") or 0 for run in everything),
    "states": list(states),
    "notes": config.get("notes") or "",
  }


def _tasks(config, shown):
  """Returns the study's tasks, of the runs at hand: {"title", "protocol", "metric", "tested",
  "runs"}; `metric` is what is shown, `tested` what has a value for each user.
  """
  found = []
  for title, where, names in config.get("tasks") or ():
    protocol, _, metric = where.rpartition("/")
    names = [name for name in names if name in shown]
    found.append({"title": title, "protocol": protocol, "metric": metric, "runs": names,
                  "tested": _tested(metric, [shown[name] for name in names])})
  return found


def _tested(metric, groups):
  known = {key.rsplit("/", 1)[-1] for group in groups for key in group[0].values}
  return comparisons.per_user_metric(metric, known)


def _row(label, name, runs, config, task):
  labels, baseline = {run: label for label, run in config.rows}, baseline_of(config, name)
  cut = [run.report.get("slices", {}) for run in runs]
  return {"label": label, "run": name, "task": task["title"], "metric": task["metric"],
          "tested": task["tested"], "seeds": [run.seed for run in runs],
          "baseline": labels.get(baseline, baseline),
          "transfers": bool(config.runs[name].get("source")),
          "data": runs[0].report["data"]["name"] if runs else None, "curve": curves(runs),
          "results": aggregate([run.report["contexts"] for run in runs]) if runs else {},
          "slices": {kind: _slice_row(cut, kind, "test") for kind in (cut[0] if cut else ())}}


def _references(shown, tasks):
  """Returns a row for every reference of every task and data set; their runs repeat the same."""
  rows = {}
  for run, group in shown.items():
    for report in (run.report for run in group):
      for name in report.get("references", REFERENCES):
        row = rows.setdefault((name, report["data"]["name"], tasks.get(run)),
                              {"results": {}, "slices": {}})
        row["results"] |= aggregate([report[name]])
        for kind, pieces in report.get("slices", {}).items():
          if any(name in piece for piece in pieces.values()):
            row["slices"][kind] = _slice_row([report["slices"]], kind, name)
  several = len({data for _, data, task in rows if task is None}) > 1
  order = sorted(rows, key=lambda key: key[0] != "chance")
  label = lambda name, data, task: f"{task}: {name}" if task else (
    f"{name}, {data}" if several else name)
  return [{"name": key[0], "data": key[1], "task": key[2], "label": label(*key), **rows[key]}
          for key in order]


def _slice_row(cut, kind, name):
  """Returns {slice: {"users", ..., "results": {PROTOCOL: {METRIC: summary}}}} over seeds."""
  if not all(kind in report for report in cut):
    return {}
  counts = ("users", "positives", "items", "interactions", "train_counts")
  return {piece: {**{key: table[key] for key in counts if key in table},
                  "results": aggregate([report[kind][piece].get(name, {}) for report in cut])}
          for piece, table in cut[0][kind].items()}


def _data_rows(config):
  """Returns the rows of the table of data: {"label", "data", "manifest" or None, "published"}."""
  rows = []
  for label, name, published in config.get("data_rows") or ():
    path = pathlib.Path(config.data_dir) / name / "manifest.json"
    rows.append({"label": label, "data": name, "published": dict(published),
                 "manifest": read_json(path) if path.is_file() else None})
  return rows


def _cost(runs):
  mean = lambda part, key: float(np.mean([run.report[part].get(key) or 0 for run in runs]))
  first, speeds = runs[0].report, ("wall_s", "train_s", "compile_s", "examples_per_s")
  kind = first["speed"].get("device_kind") or first["speed"].get("platform") or "device"
  return {"seeds": [run.seed for run in runs], "data": first["data"]["name"],
          "devices": f"{first['speed'].get('devices')} x {kind}",
          **{key: first["run"].get(key)
             for key in ("parameters", "trained_parameters", "trained_bytes")},
          **{key: mean("run", key) for key in ("steps", "best_step")},
          **{key: mean("speed", key) for key in speeds}}


def write(workdir, report):
  """Writes report.json, report.md and the plots; returns the markdown."""
  from recjax import plots  # Here, because importing matplotlib takes longer than all the rest.

  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  images = plots.draw(workdir, report)
  text = sections.markdown(report, images)
  record.write_json(workdir / "report.json", report)
  record.write_text(workdir / "report.md", text)
  return text
