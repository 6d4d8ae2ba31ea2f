"""What quality costs: a study's rows by the parameters that each of them trains for a task."""

from recjax import tables
from recjax.evaluators import metrics as metrics_lib

NOTE = """\
"trained" counts the parameters that a run trains and therefore has for its own; the rest is shared
with every other task of the same backbone. "KiB" are theirs, as a task's checkpoint stores them
beside what the format adds. ● marks rows that no row beats with as few trained parameters, over all
families together. "hurts" names the slices in which the row is significantly worse than its
baseline: negative transfer."""


def section(report):
  """Returns the tables of report.md that show quality beside cost, one for each task."""
  parts = []
  for group in tables.groups(report):
    if found := points(report, group):
      parts += [f"### {group['title']}", tables.table(*_table(report, group, found))]
  return "\n\n".join([NOTE, *parts]) if parts else ""


def points(report, group):
  """Returns the rows of a group with their quality and cost, in their order.

  Each is {"row", "run", "quality": {"mean", "std"}, "trained", "whole", "bytes", "wall_s", "best"},
  where `best` says that no row with as few trained parameters is better. Rows without runs, and
  runs that do not say what they train, are left out.
  """
  found = []
  for row in group["rows"]:
    quality = row["results"].get(report["context"], {}).get(group["protocol"], {}).get(
      group["metric"])
    cost = report["runs"].get(row["run"], {})
    if quality is not None and cost.get("trained_parameters") is not None:
      found.append({"row": row, "run": row["run"], "quality": quality, "wall_s": cost["wall_s"],
                    "trained": cost["trained_parameters"], "whole": cost["parameters"],
                    "bytes": cost["trained_bytes"]})
  sign = -1 if metrics_lib.is_error(group["metric"]) else 1
  value = lambda point: sign * point["quality"]["mean"]
  for point in found:
    rivals = [other for other in found if other["trained"] <= point["trained"]]
    point["best"] = value(point) >= max(map(value, rivals))
  return found


def _table(report, group, found):
  """Returns (header cells, rows of cells) of a group's points, after its references."""
  protocol, context = group["protocol"], report["context"]
  results = {point["run"]: point["row"]["results"][context][protocol] for point in found}
  metrics = [m for m in dict.fromkeys([group["metric"], *report["headline"]])
             if any(m in table for table in results.values())]
  gains = {e["run"]: e for e in report["comparisons"] if e["to_baseline"]
           and (e["context"], e["protocol"], e["metric"]) == (context, protocol, group["tested"])}
  cells = lambda table: [tables.cell(table.get(metric), metric) for metric in metrics]
  header = ["", *map(tables.metric_name, metrics), "trained", "of the model", "KiB", "time a run",
            "over the baseline, 95 % CI", "best", "hurts"]
  blank = [tables.EMPTY] * (len(header) - 1 - len(metrics))
  body = [[tables.short(row), *cells(row["results"].get(protocol, {})), *blank]
          for row in group["references"]]
  for point in found:
    row, gain = point["row"], gains.get(point["run"])
    body.append([
      tables.short(row), *cells(results[point["run"]]), f"{point['trained']:,}",
      f"{100 * point['trained'] / max(point['whole'], 1):.2f} %", _kib(point["bytes"]),
      tables.duration(point["wall_s"]),
      f"{tables.difference(gain)} {tables.mark(gain['verdict'], transfer=row['transfers'])}"
      if gain else tables.EMPTY, "●" if point["best"] else "", _hurts(report, group, row)])
  return header, body


def _kib(size):
  return tables.EMPTY if size is None else f"{size / 1024:,.1f}"


def _hurts(report, group, row):
  """Returns the slices in which a row that transfers is significantly worse than its baseline."""
  mine = [e for e in report["slices"]["gains"]
          if (e["run"], e["protocol"]) == (row["run"], group["protocol"])]
  if not mine:
    return tables.EMPTY
  return ", ".join(tables.slice_name(e) for e in mine if e["verdict"] == "worse")
