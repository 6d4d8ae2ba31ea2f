"""A study's pictures: what rows gain over baselines, on whom, at what cost; how they learned."""

import math
import os
import textwrap

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from recjax import slices, tables, trade_offs  # noqa: E402
from recjax.evaluators import metrics as metrics_lib  # noqa: E402

# Okabe and Ito (2008), told apart under the common color blindnesses.
COLORS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999")
VERDICTS = {"better": "#0072B2", "worse": "#D55E00", "undecided": "#777777"}
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
TOGETHER = 8  # rows that one panel of learning curves can hold
UNLIKE = 20  # times more steps than another row
_SLICES = {"history": (slices.HISTORY, "by train items of the user"),
           "popularity": (slices.POPULARITY, "by popularity of the held-out item")}


def draw(workdir, report):
  """Writes the plots that the report has data for; returns [(title, file name), ...]."""
  images = []
  for title, name, make in (
      ("Quality beside trained parameters", "quality.png", quality),
      ("Gain over the baseline", "transfer_gain.png", transfer_gain),
      ("Gain by history", "gain_by_history.png", lambda r: gain_by_slice(r, "history")),
      ("Gain by popularity", "gain_by_popularity.png", lambda r: gain_by_slice(r, "popularity")),
      ("Learning curves", "learning_curves.png", learning_curves)):
    path, figure = workdir / name, make(report)
    if figure is None:
      path.unlink(missing_ok=True)  # left from an earlier report that had the data
      continue
    draft = f"{path}.{os.getpid()}.tmp"
    figure.savefig(draft, format="png", dpi=150)
    plt.close(figure)
    os.replace(draft, path)
    images.append((title, name))
  return images


def quality(report):
  """Returns a figure with a panel per task: quality by trained parameters, ± one std over seeds.

  Of labels "FAMILY: WAY" the family is a color and the way a mark; the line joins the rows that no
  row beats with as few trained parameters.
  """
  groups = [(group, found) for group in (tables.groups(report) if report["tasks"] else ())
            if (found := trade_offs.points(report, group))]
  if not groups:
    return None
  columns = min(len(groups), 3)
  lines = math.ceil(len(groups) / columns)
  figure, axes = plt.subplots(lines, columns, squeeze=False, layout="constrained",
                              figsize=(3.2 + 4.2 * columns, 0.9 + 3.9 * lines))
  for axis in axes.flat[len(groups):]:
    axis.set_visible(False)
  families, ways = {}, {}
  for axis, (group, found) in zip(axes.flat, groups, strict=False):
    scale = _scale(group["metric"])
    for point in found:
      family, way = _family(point["row"])
      mark = MARKS[ways.setdefault(way, len(ways)) % len(MARKS)]
      axis.errorbar(point["trained"], scale * point["quality"]["mean"],
                    scale * (point["quality"]["std"] or 0), marker=mark, markersize=6, elinewidth=1,
                    linestyle="none", alpha=0.85,
                    **_look(families.setdefault(family, len(families))))
    front = sorted((p["trained"], scale * p["quality"]["mean"]) for p in found if p["best"])
    axis.plot(*zip(*front, strict=True), color="#999999", linewidth=0.9, zorder=0)
    _quality_axis(axis, group)
  handles = [plt.Line2D([], [], marker="o", linestyle="none", label=name or "all", **_look(place))
             for name, place in families.items()] * (len(families) > 1)
  handles += [plt.Line2D([], [], marker=MARKS[place % len(MARKS)], linestyle="none", label=name,
                         color="#666666") for name, place in ways.items()]
  figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)
  return _titled(figure, report, f"test quality by trained parameters, context "
                 f"{report['context']}, mean ± standard deviation over seeds")


def _family(row):
  """Returns (family, way) of a row labeled "FAMILY: WAY"; without a colon the family is ""."""
  family, colon, way = tables.short(row).partition(": ")
  return (family, way) if colon else ("", family)


def _look(place):
  """Returns the color of a family, and marks that are filled or, past the last color, empty."""
  return {"color": COLORS[place % len(COLORS)],
          "fillstyle": "full" if place // len(COLORS) % 2 == 0 else "none"}


def _quality_axis(axis, group):
  unit = " (smaller is better)" if metrics_lib.is_error(group["metric"]) else " (%)"
  axis.set_title(group["task"] or group["protocol"], fontsize=10)
  axis.set_xscale("log")
  low, high = axis.get_xlim()
  if high < 10 * low:  # names of powers of ten, and of what lies between, would meet
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  axis.set_xlabel("trained parameters", fontsize=9)
  axis.set_ylabel(f"{group['protocol']} {tables.metric_name(group['metric'])}{unit}", fontsize=9)
  axis.tick_params(labelsize=8.5)
  axis.grid(color="#dddddd", linewidth=0.6)
  axis.set_axisbelow(True)
  axis.spines[["top", "right"]].set_visible(False)


def transfer_gain(report):
  """Returns a figure with a panel per task or protocol: difference to the baseline, dot, interval.
  """
  entries = {(e["protocol"], e["metric"], e["run"]): e for e in report["comparisons"]
             if e["to_baseline"] and e["context"] == report["context"]}
  panels = []
  for group in tables.groups(report):
    where = group["protocol"], group["tested"]
    here = {tables.short(row): entries[*where, row["run"]] for row in group["rows"]
            if (*where, row["run"]) in entries}
    panels += [(group, here)] * bool(here)
  if not panels:
    return None
  rows = _lines([name for _, here in panels for name in here], report)
  figure, axes = plt.subplots(
    1, len(panels), sharey=True, squeeze=False, layout="constrained",
    figsize=(_margin(rows) + 2.4 * len(panels), 1.9 + _pitch(rows) * len(rows)))
  for axis, (group, here) in zip(axes[0], panels, strict=True):
    _panel(axis, rows, here)
    axis.set_title(group["task"] or group["protocol"], fontsize=10)
  return _finished(figure, report, rows, panels[0][1], "with 95 % CI over users", len(panels))


def _lines(names, report):
  """Returns the lines of a figure of gains: of the rows that are called alike in tasks the first.
  """
  found = {}
  for row in report["rows"]:
    if tables.short(row) in names:
      found.setdefault(tables.short(row), row)
  return list(found.values())


def gain_by_slice(report, kind):
  """Returns a figure of slices (columns) by tasks or protocols (rows): difference and interval."""
  entries = {(e["protocol"], e["slice"], e["run"]): e for e in report["slices"]["gains"]
             if e["kind"] == kind and e["ci"]}
  names, title = _SLICES[kind]
  names = [name for name in names if any(key[1] == name for key in entries)]
  panels = []
  for group in tables.groups(report, report["slices"]["protocols"]):
    here = {(name, tables.short(row)): entries[group["protocol"], name, row["run"]]
            for row in group["rows"] for name in names
            if (group["protocol"], name, row["run"]) in entries}
    panels += [(group, here)] * bool(here)
  if not panels:
    return None
  rows = _lines({line for _, here in panels for _, line in here}, report)
  figure, axes = plt.subplots(
    len(panels), len(names), sharex="row", sharey=True, squeeze=False, layout="constrained",
    figsize=(_margin(rows) + 2.4 * len(names), 1.2 + len(panels) * (
      0.9 + _pitch(rows) * len(rows))))
  for line, (group, found) in zip(axes, panels, strict=True):
    for axis, name in zip(line, names, strict=True):
      here = {row: e for (piece, row), e in found.items() if piece == name}
      _panel(axis, rows, here)
      users = sorted({e["users"] for e in here.values()})
      axis.set_title(f"{group['task'] or group['protocol']}\n{name}, "
                     f"{' or '.join(f'{n:,}' for n in users) or 'no'} users", fontsize=9)
  return _finished(figure, report, rows, entries, f"{title}, with 95 % CI over users", len(names))


def _margin(rows):
  """Returns the room for the labels of the rows, in inches."""
  return 0.6 + 0.085 * max(len(tables.short(row)) for row in rows)


def _pitch(rows):
  """Returns the height of a row, in inches."""
  return 0.42 if len(rows) <= 8 else 0.33


def _panel(axis, rows, entries):
  """Draws {name of the line: comparison} as dots with intervals, a line per row."""
  for y, row in enumerate(rows):
    if tables.short(row) in entries:
      _interval(axis, y, entries[tables.short(row)], 7.5 if len(rows) <= 8 else 6.5)
    if y and row["baseline"] != rows[y - 1]["baseline"]:
      axis.axhline(y - 0.55, color="#aaaaaa", linewidth=0.8, linestyle=":", zorder=0)
  axis.axvline(0, color="black", linewidth=0.8, zorder=0)
  axis.set_ylim(len(rows) - 0.4, -0.8)  # the first row on top, with room for its number
  axis.set_yticks(range(len(rows)), [tables.short(row) for row in rows], fontsize=9)
  axis.tick_params(axis="y", length=0)
  axis.tick_params(axis="x", labelsize=8.5)
  axis.margins(x=0.14)
  axis.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 5, 10)))
  axis.grid(axis="x", color="#dddddd", linewidth=0.6)
  axis.set_axisbelow(True)
  axis.spines[["top", "right", "left"]].set_visible(False)


def _interval(axis, y, entry, size):
  scale = _scale(entry["metric"])
  center, color = scale * entry["difference"], VERDICTS[entry["verdict"]]
  axis.plot([scale * value for value in entry["ci"]], [y, y], color=color, linewidth=2,
            solid_capstyle="butt")
  axis.plot(center, y, marker="o", color=color, markersize=6 if size > 7 else 5)
  axis.annotate(tables.number(entry["difference"], entry["metric"], signed=True), (center, y),
                (0, 0.75 * size), textcoords="offset points", ha="center", fontsize=size,
                color=color, zorder=1, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0})


def _scale(metric):
  return 1 if metrics_lib.is_error(metric) else 100


def _finished(figure, report, rows, entries, subtitle, columns):
  """Returns a figure of gains with its legend, direction and title; `entries` are some of them."""
  transfer = all(row["transfers"] for row in rows)
  words = ("helps", "hurts") if transfer else ("better", "worse")
  handles = [plt.Line2D([], [], marker="o", linestyle="-", color=VERDICTS[verdict], label=word)
             for verdict, word in (("better", words[0]), ("worse", words[1]),
                                   ("undecided", "undecided"))]
  metrics = list(dict.fromkeys(e["metric"] for e in entries.values()))
  if report["tasks"]:
    metrics = list(dict.fromkeys(task["tested"] for task in report["tasks"] if task["tested"]))
  error = any(map(metrics_lib.is_error, metrics))
  low, high = words if error else words[::-1]
  for axis in figure.axes[-columns:]:
    axis.set_xlabel(f"← {low}     {high} →", fontsize=8.5)
  figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
  baselines = list(dict.fromkeys(row["baseline"] for row in rows))
  minus = f"“{baselines[0]}”" if len(baselines) == 1 else "the baseline of each row"
  unit = "smaller is better" if error else "percentage points"
  names = " or ".join(map(tables.metric_name, metrics))
  return _titled(figure, report, f"{names} minus {minus} ({unit}), context {report['context']}, "
                 f"{subtitle}")


def learning_curves(report):
  """Returns a figure of the validation metric by step: mean over seeds, band of ± one std.

  Many rows get a panel for each baseline and what is compared with it, on the same scale; rows that
  are validated by different protocols get a panel for each.
  """
  rows = [row for row in report["rows"] if row["curve"]["steps"]]
  if not rows:
    return None
  groups = _groups(rows)
  columns = min(len(groups), 3 if len(groups) in (3, 5, 6) else 2)
  lines = math.ceil(len(groups) / columns)
  size = (8, 4.4) if len(groups) == 1 else (1.2 + 4.6 * columns, 0.8 + 3.9 * lines)
  shared = len({row["curve"]["measured"] for row in rows}) == 1
  figure, axes = plt.subplots(lines, columns, sharey=shared, squeeze=False, layout="constrained",
                              figsize=size)
  for axis in axes.flat[len(groups):]:
    axis.set_visible(False)
  looks = {}  # The same name looks the same in every panel.
  for axis, (title, members) in zip(axes.flat, groups.items(), strict=False):
    for name, row in members:
      place = looks.setdefault(name, len(looks)) if len(groups) > 1 and title else (
        members.index((name, row)))
      _curve(axis, row["curve"], row["metric"], name, place)
    _curve_axis(axis, members[0][1]["metric"], left=axis in axes[:, 0] or not shared)
    _step_axis(axis, [row["curve"]["steps"] for _, row in members])
    axis.set_title(title or "without a baseline", fontsize=10) if len(groups) > 1 else None
    if len(groups) > 1:
      axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=8,
                  ncols=3 if max(len(name) for name, _ in members) < 18 else 2)
  if len(groups) == 1:
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
  return _titled(figure, report, "mean over seeds, band of one standard deviation")


def _groups(rows):
  """Returns {title: [(name within the panel, row), ...]}; one panel where that is readable."""
  measured = {}
  for row in rows:
    measured.setdefault(row["curve"]["measured"], []).append((row["label"], row))
  if len(measured) > 1 and max(map(len, measured.values())) <= TOGETHER:
    return {name.rpartition("/")[0]: measured[name] for name in sorted(measured)}
  if len(measured) == 1 and len(rows) <= TOGETHER:
    return {"": measured.popitem()[1]}
  bases = {row["baseline"] for row in rows if row["baseline"]}
  groups = {}
  for row in rows:
    title = row["baseline"] or (row["label"] if row["label"] in bases else "")
    rest = row["label"].removeprefix(title) if title else row["label"]
    rest = (tables.short(row) if rest == row["label"] else rest).strip(" :,–")
    groups.setdefault(title, []).append((rest or "baseline", row))
  if "" in groups:
    groups[""] = groups.pop("")  # last
  return groups


def _curve(axis, curve, metric, name, place):
  color, scale = COLORS[place % len(COLORS)], _scale(metric)
  of = lambda part: [scale * value for value in curve[part]]
  axis.fill_between(curve["steps"], of("low"), of("high"), color=color, alpha=0.15, linewidth=0)
  axis.plot(curve["steps"], of("mean"), color=color, linewidth=1.6, label=name,
            linestyle=STYLES[place // len(COLORS) % len(STYLES)],
            marker="o" if len(curve["steps"]) < 25 else None, markersize=3)


def _curve_axis(axis, metric, *, left):
  axis.set_xlabel("step", fontsize=9)
  if left:
    unit = " (smaller is better)" if metrics_lib.is_error(metric) else " (%)"
    axis.set_ylabel(f"validation {tables.metric_name(metric)}{unit}")
  axis.tick_params(labelsize=8.5)
  axis.grid(color="#dddddd", linewidth=0.6)
  axis.spines[["top", "right"]].set_visible(False)


def _step_axis(axis, curves):
  """Makes steps readable: on a logarithmic axis where rows do not count them on one scale."""
  lengths = [steps[-1] for steps in curves]
  if max(lengths) > UNLIKE * min(lengths) and min(steps[0] for steps in curves) > 0:
    axis.set_xscale("log")
  else:
    axis.xaxis.set_major_locator(ticker.MaxNLocator(6))
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))


def _titled(figure, report, subtitle):
  generated = " [generated data]" if report["generated"] else ""
  wrap = lambda text: textwrap.fill(text, int(12.5 * figure.get_figwidth()))
  figure.suptitle(f"{wrap(report['title'] + generated)}\n{wrap(subtitle)}", fontsize=10)
  return figure
