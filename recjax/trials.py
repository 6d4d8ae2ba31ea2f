"""The trials of a grid as a table: what varies, validation, test, time and how each one stands.

A trial's folder is that of a run. What no run can write about itself (it failed, it was stopped) is
noted beside it in `trial.json` by whoever ran it (launch/local.py): {"state", "exit_code",
"reason"}. Failed trials stay in the table. Knows no jax.
"""

import csv
import io
import json
import math
import pathlib

from recjax import record
from recjax.evaluators import metrics

STATES = ("done", "failed", "preempted", "unfinished", "not started")


def note(folder, state, *, exit_code=None, reason=""):
  """Writes how the trial in `folder` stands, until it is started again."""
  record.write_json(pathlib.Path(folder) / "trial.json",
                    {"state": state, "exit_code": exit_code, "reason": reason})


def forget(folder):
  """Removes what `note` wrote."""
  (pathlib.Path(folder) / "trial.json").unlink(missing_ok=True)


def is_finished(folder):
  """Returns whether `folder` holds the report of a complete run."""
  return _report(folder) is not None


def collect(trials, workdir, *, metric):
  """Returns one dict a trial, in their order.

  The keys: name, values {"a.b": value}, state (one of STATES), reason, best (bool), validation,
  test {metric name: value} (of the protocol that `metric` names), steps, best_step, seconds. What
  there is not is None. `best` marks the complete trial with the best validation, the first of
  equals; test values decide nothing.

  Args:
    trials: {folder name: {"a.b": value}}.
    workdir: folder of the trials' folders.
    metric: config.eval.metric of all trials, "PROTOCOL/METRIC".
  """
  rows = [_row(name, values, pathlib.Path(workdir) / name, metric.split("/")[0])
          for name, values in trials.items()]
  sign = -1 if metrics.is_error(metric) else 1
  judged = [row for row in rows if row["validation"] is not None]
  best = max(judged, key=lambda row: sign * row["validation"], default=None)
  for row in rows:
    row["best"] = row is best
  return rows


def markdown(rows, *, metric):
  """Returns the rows of `collect` as a table; shares in percent, the best trial in bold."""
  header, body = _cells(rows, metric, _shown)
  lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
  for row, cells in zip(rows, body, strict=True):
    cells = [cell.replace("|", "\\|") for cell in cells]
    lines.append("| " + " | ".join(f"**{c}**" if row["best"] and c else c for c in cells) + " |")
  count = {state: sum(row["state"] == state for row in rows) for state in STATES}
  total = ", ".join(f"{number} {state}" for state, number in count.items() if number)
  rule = "smallest" if metrics.is_error(metric) else "largest"
  note = (f"{len(rows)} trials: {total}. Bold: the {rule} validation {metric}. Test values are of "
          "the checkpoint with the best validation, and choose nothing.")
  return "\n".join([*lines, "", note]) + "\n"


def as_csv(rows, *, metric):
  """Returns the rows of `collect` as CSV, with values as they are."""
  header, body = _cells(rows, metric, lambda value, name: "" if value is None else value)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerows([["trial", "best", *header], *(
    [row["name"], int(row["best"]), *cells] for row, cells in zip(rows, body, strict=True))])
  return text.getvalue()


def write(workdir, rows, *, metric):
  """Writes trials.md and trials.csv into `workdir`."""
  record.write_text(pathlib.Path(workdir) / "trials.md", markdown(rows, metric=metric))
  record.write_text(pathlib.Path(workdir) / "trials.csv", as_csv(rows, metric=metric))


def _row(name, values, folder, protocol):
  row = {"name": name, "values": values, "state": "done", "reason": "", "validation": None,
         "test": {}, "steps": None, "best_step": None, "seconds": None}
  if (report := _report(folder)) is not None:
    run, found = report["run"], report.get("test", {}).get(protocol, {})
    value = run.get("best_validation")
    value = value if value is not None and math.isfinite(value) else None
    chosen = [m for m in metrics.HEADLINE if m in found] or list(found)
    return row | {"validation": value, "test": {m: found[m] for m in chosen},
                  "steps": run.get("steps"), "best_step": run.get("best_step"),
                  "seconds": report.get("speed", {}).get("wall_s")}
  stored = _read(folder / "trial.json")
  if stored.get("state") in STATES:
    code = stored.get("exit_code")
    reason = stored.get("reason") or ""
    return row | {"state": stored["state"],
                  "reason": reason if code is None else f"exit code {code}: {reason}"}
  started = (folder / "config.json").is_file() or (folder / "trial.log").is_file()
  return row | {"state": "unfinished" if started else "not started"}


def _cells(rows, metric, form):
  """Returns (header, [[cell]]) with values as `form(value, metric or "")` gives them."""
  varied = dict.fromkeys(name for row in rows for name in row["values"])
  tested = list(dict.fromkeys(m for row in rows for m in row["test"]))
  header = [*varied, f"validation {metric}", *(f"test {m}" for m in tested), "steps", "best step",
            "seconds", "state"]
  body = [[*("" if name not in row["values"] else str(row["values"][name]) for name in varied),
           form(row["validation"], metric), *(form(row["test"].get(m), m) for m in tested),
           form(row["steps"], ""), form(row["best_step"], ""),
           form(None if row["seconds"] is None else round(row["seconds"], 1), ""),
           row["state"] + (f" ({row['reason']})" if row["reason"] else "")] for row in rows]
  return header, body


def _shown(value, name):
  if value is None:
    return "–"
  if not name:
    return f"{value:,}"
  return f"{value:.4f}" if metrics.is_error(name) else f"{100 * value:.2f}"


def _report(folder):
  report = _read(pathlib.Path(folder) / "report.json")
  run = report.get("run")
  return report if isinstance(run, dict) and run.get("finished") is True else None


def _read(path):
  """Returns the JSON object in `path`, empty where there is none."""
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}
