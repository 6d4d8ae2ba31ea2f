"""Numbers as people print them, and a study's main table."""

from recjax.evaluators import metrics as metrics_lib

PROTOCOLS = ("full", "uniform100_domain", "pop100", "uniform100_global")
HEADLINE_PROTOCOLS = ("full", "uniform100_global")
SURVEY_PROTOCOL = "uniform100_global"
EMPTY = "–"
_NAMES = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR", "hit": "hit", "dcg": "DCG",
          "rr": "reciprocal rank", "rmse": "RMSE", "mae": "MAE", "mse": "MSE",
          "accuracy": "accuracy", "auc": "AUC", "macro_f1": "macro F1",
          "user_rmse": "RMSE per user", "user_mae": "MAE per user"}


def headline(report):
  """Returns the main table as plain text for a terminal."""
  context = report["context"]
  if context is None:
    return report["title"] if report["data_rows"] else "no run of this study's rows is finished"
  head, body = results(report, context, report["slices"]["protocols"])
  generated = ", generated data" if report["generated"] else ""
  title = f"{report['title']} (context {context}{unit(report['headline'])}{generated})"
  return "\n".join([title, *("  ".join(row) for row in padded([head, *body]))])


def unit(metrics):
  """Returns ", percent" where all metrics are shares."""
  return "" if any(map(metrics_lib.is_error, metrics)) else ", percent"


def results(report, context, only=None):
  """Returns (header cells, rows of cells): the references and the study's rows in `context`."""
  names, metrics = only or protocols(report), report["headline"]
  # References do not look at the history, so they are the same in every context.
  trees = [(row["label"], row["results"]) for row in report["references"]]
  trees += [(row["label"], row["results"].get(context, {})) for row in report["rows"]]
  columns = [(p, m) for p in names for m in metrics
             if any(m in tree.get(p, {}) for _, tree in trees)]
  header, before = [""], None
  for protocol, metric in columns:
    header.append(metric_name(metric) if protocol == before else
                  f"{protocol} {metric_name(metric)}")
    before = protocol
  body = [[label, *(cell(tree.get(p, {}).get(m), m) for p, m in columns)] for label, tree in trees]
  return header, body


def protocols(report):
  """Returns the protocols of a study's rows, those of `PROTOCOLS` first."""
  found = {p for row in report["rows"] for tree in row["results"].values() for p in tree}
  return [*(p for p in PROTOCOLS if p in found), *sorted(found.difference(PROTOCOLS))]


def convergence(report):
  """Returns (header, rows) of how many steps each row takes to its baseline's best validation.

  Curves are means over seeds, read where they were validated. No rows where there is nothing to
  compare: without a baseline, or where it was validated by another metric.
  """
  header = ["", "validation", "best of the baseline", "its step", "this row is there at"]
  curves, rows = {row["label"]: row["curve"] for row in report["rows"]}, []
  for row in report["rows"]:
    mine, other = row["curve"], curves.get(row["baseline"])
    measured = mine.get("measured")
    if not (other and measured and measured == other.get("measured")):
      continue
    protocol, _, metric = measured.rpartition("/")
    sign = -1 if metrics_lib.is_error(metric) else 1
    best = max(other["mean"], key=lambda value: sign * value)
    there = lambda curve: next((step for step, value in zip(curve["steps"], curve["mean"],
                                                            strict=True)
                                if sign * value >= sign * best), None)
    reached = there(mine)
    rows.append([row["label"], f"{protocol} {metric_name(metric)}", number(best, metric),
                 f"{there(other):,}", "never" if reached is None else f"{reached:,}"])
  return header, rows


def slice_protocols(found):
  """Returns those of the protocols `found` that get tables by slice: two, or what there is."""
  return [p for p in HEADLINE_PROTOCOLS if p in found] or sorted(found)[:2]


def groups(report, only=None):
  """Returns what belongs into one table or panel: a dict for each task, or else each protocol.

  A dict holds "title" (text of a heading), "task" (its title or None), "protocol", "metric" as it
  is shown, "tested" per user, "rows" and "references".

  Args:
    report: of `recjax.report.build`.
    only: protocols, where there are no tasks; all by default.
  """
  if not report["tasks"]:
    every = {"task": None, "metric": report["headline"][0], "tested": report["tested"],
             "rows": report["rows"], "references": report["references"]}
    return [{**every, "title": f"`{p}`", "protocol": p}
            for p in (protocols(report) if only is None else only)]
  of = lambda rows, title: [row for row in rows if row["task"] == title]
  return [{"title": f"{task['title']}, `{task['protocol']}`", "task": task["title"],
           **{name: task[name] for name in ("protocol", "metric", "tested")},
           "rows": of(report["rows"], task["title"]),
           "references": of(report["references"], task["title"])} for task in report["tasks"]]


def slice_name(entry):
  """Returns "history 1-3" or "tail items" of an entry of `comparisons.by_slice`."""
  return {"all": "all users", "history": f"history {entry['slice']}",
          "popularity": f"{entry['slice']} items"}[entry["kind"]]


def short(row):
  """Returns a row's label without the title of its task."""
  return row["label"].removeprefix(f"{row['task']}: ") if row["task"] else row["label"]


def number(value, metric, *, signed=False):
  """Returns "12.34" (percent) of a share, "0.9560" of an error; signed for differences."""
  sign = "+" if signed else ""
  return f"{value:{sign}.4f}" if metrics_lib.is_error(metric) else f"{100 * value:{sign}.2f}"


def cell(summary, metric):
  """Returns "12.34 ± 0.12" of a {"mean", "std"}, without ± where there is no spread."""
  if summary is None:
    return EMPTY
  mean = number(summary["mean"], metric)
  return f"{mean} ± {number(summary['std'], metric)}" if summary["std"] else mean


def difference(entry):
  """Returns "+0.34 [+0.18, +0.49]" of a comparison, without the interval where there is none."""
  of = lambda value: number(value, entry["metric"], signed=True)
  interval = f" [{of(entry['ci'][0])}, {of(entry['ci'][1])}]" if entry["ci"] else ""
  return of(entry["difference"]) + interval


def mark(verdict, *, transfer):
  """Returns the verdict with an arrow; of a transfer row it says whether transfer helps or hurts.

  The arrows point to better and worse, whichever way the metric counts.
  """
  words = {"better": "▲ helps", "worse": "▼ hurts"} if transfer else {
    "better": "▲ better", "worse": "▼ worse"}
  return words.get(verdict, verdict or "too few users")


def metric_name(metric):
  """Returns "NDCG@10" for "ndcg@10"."""
  name, at, k = metric.partition("@")
  return _NAMES.get(name, name) + at + k


def count(value):
  """Returns "5,811", or the sign of an empty cell for what is no whole number."""
  return f"{value:,}" if isinstance(value, int) else EMPTY


def p_value(p):
  """Returns a p-value as people print it."""
  if p is None:
    return EMPTY
  return "<0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds):
  """Returns "12 s", "3 min 20 s" or "2 h 5 min"."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def as_printed(value, printed):
  """Returns `value` with the digits and the unit of `printed`: 621521 is "622k" beside "620k"."""
  digits = printed.rstrip("kM")
  scale = {"": 1, "k": 1e3, "M": 1e6}[printed[len(digits):]]
  places = len(digits.partition(".")[2])
  return f"{value / scale:{',' if ',' in digits else ''}.{places}f}{printed[len(digits):]}"


def parsed(printed):
  """Returns the number that "6,040", "97.9" or "622k" stands for."""
  digits = printed.rstrip("kM")
  return float(digits.replace(",", "")) * {"": 1, "k": 1e3, "M": 1e6}[printed[len(digits):]]


def table(header, body):
  """Returns a markdown table: text to the left, numbers to the right."""
  escaped = [[str(c).replace("|", "\\|") for c in row] for row in [header, *body]]
  rows = padded(escaped, narrowest=3)
  rule = ["-" * len(c) if i == 0 else "-" * (len(c) - 1) + ":" for i, c in enumerate(rows[0])]
  return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def padded(rows, *, narrowest=0):
  """Returns rows of cells of one width per column: text to the left, numbers to the right."""
  widths = [max(narrowest, *map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda i, text: text.rjust(widths[i]) if i else text.ljust(widths[i])
  return [[pad(i, text) for i, text in enumerate(row)] for row in rows]
