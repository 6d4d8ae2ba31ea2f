"""A study's pictures: what each row gains over its baseline, on whom, and how each row learned."""

import math
import os
import textwrap

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from recjax import slices, tables  # noqa: E402
from recjax.evaluators import metrics as metrics_lib  # noqa: E402

# Okabe and Ito (2008), told apart under the common color blindnesses.
COLORS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999")
VERDICTS = {"better": "#0072B2", "worse": "#D55E00", "undecided": "#777777"}
STYLES = ("-", "--", "-.", ":")
TOGETHER = 8  # rows that one panel of learning curves can hold
_SLICES = {"history": (slices.HISTORY, "by train items of the user"),
           "popularity": (slices.POPULARITY, "by popularity of the held-out item")}


def draw(workdir, report):
  """Writes the plots that the report has data for; returns [(title, file name), ...]."""
  images = []
  for title, name, make in (
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


def transfer_gain(report):
  """Returns a figure with a panel per protocol: difference to the baseline, dot and interval."""
  metric, context = report["tested"], report["context"]
  entries = {(e["protocol"], e["run"]): e for e in report["comparisons"]
             if e["to_baseline"] and e["metric"] == metric and e["context"] == context}
  if not entries:
    return None
  names = [p for p in tables.protocols(report) if any(key[0] == p for key in entries)]
  rows = [row for row in report["rows"] if row["run"] in {key[1] for key in entries}]
  figure, axes = plt.subplots(
    1, len(names), sharey=True, squeeze=False, layout="constrained",
    figsize=(_margin(rows) + 2.4 * len(names), 1.9 + _pitch(rows) * len(rows)))
  for axis, protocol in zip(axes[0], names, strict=True):
    _panel(axis, rows, {run: e for (p, run), e in entries.items() if p == protocol})
    axis.set_title(protocol, fontsize=10)
  return _finished(figure, report, rows, metric, "with 95 % CI over users", len(names))


def gain_by_slice(report, kind):
  """Returns a figure of slices (columns) by protocols (rows): difference, dot and interval."""
  entries = {(e["protocol"], e["slice"], e["run"]): e for e in report["slices"]["gains"]
             if e["kind"] == kind and e["ci"]}
  if not entries:
    return None
  names, title = _SLICES[kind]
  names = [name for name in names if any(key[1] == name for key in entries)]
  protocols = [p for p in report["slices"]["protocols"] if any(key[0] == p for key in entries)]
  rows = [row for row in report["rows"] if row["run"] in {key[2] for key in entries}]
  figure, axes = plt.subplots(
    len(protocols), len(names), sharex="row", sharey=True, squeeze=False, layout="constrained",
    figsize=(_margin(rows) + 2.4 * len(names), 1.2 + len(protocols) * (
      0.9 + _pitch(rows) * len(rows))))
  for line, protocol in zip(axes, protocols, strict=True):
    for axis, name in zip(line, names, strict=True):
      here = {run: e for (p, s, run), e in entries.items() if (p, s) == (protocol, name)}
      _panel(axis, rows, here)
      users = sorted({e["users"] for e in here.values()})
      axis.set_title(f"{protocol}\n{name}, {' or '.join(f'{n:,}' for n in users)} users",
                     fontsize=9)
  metric = next(iter(entries.values()))["metric"]
  return _finished(figure, report, rows, metric, f"{title}, with 95 % CI over users", len(names))


def _margin(rows):
  """Returns the room for the labels of the rows, in inches."""
  return 0.6 + 0.085 * max(len(row["label"]) for row in rows)


def _pitch(rows):
  """Returns the height of a row, in inches."""
  return 0.42 if len(rows) <= 8 else 0.33


def _panel(axis, rows, entries):
  """Draws {run: comparison} as dots with intervals, a line per row."""
  for y, row in enumerate(rows):
    if row["run"] in entries:
      _interval(axis, y, entries[row["run"]], 7.5 if len(rows) <= 8 else 6.5)
    if y and row["baseline"] != rows[y - 1]["baseline"]:
      axis.axhline(y - 0.55, color="#aaaaaa", linewidth=0.8, linestyle=":", zorder=0)
  axis.axvline(0, color="black", linewidth=0.8, zorder=0)
  axis.set_ylim(len(rows) - 0.4, -0.8)  # the first row on top, with room for its number
  axis.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9)
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


def _finished(figure, report, rows, metric, subtitle, columns):
  """Returns a figure of gains with its legend, direction and title."""
  transfer = all(row["transfers"] for row in rows)
  words = ("helps", "hurts") if transfer else ("better", "worse")
  handles = [plt.Line2D([], [], marker="o", linestyle="-", color=VERDICTS[verdict], label=word)
             for verdict, word in (("better", words[0]), ("worse", words[1]),
                                   ("undecided", "undecided"))]
  error = metrics_lib.is_error(metric)
  low, high = words if error else words[::-1]
  for axis in figure.axes[-columns:]:
    axis.set_xlabel(f"← {low}     {high} →", fontsize=8.5)
  figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
  baselines = list(dict.fromkeys(row["baseline"] for row in rows))
  minus = f"“{baselines[0]}”" if len(baselines) == 1 else "the baseline of each row"
  unit = "smaller is better" if error else "percentage points"
  return _titled(figure, report, f"{tables.metric_name(metric)} minus {minus} ({unit}), context "
                 f"{report['context']}, {subtitle}")


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
  alike = len({row["curve"].get("measured") for row in rows}) == 1
  figure, axes = plt.subplots(lines, columns, sharey=alike, squeeze=False, layout="constrained",
                              figsize=size)
  for axis in axes.flat[len(groups):]:
    axis.set_visible(False)
  looks = {}  # The same name looks the same in every panel.
  for axis, (title, members) in zip(axes.flat, groups.items(), strict=False):
    for name, row in members:
      place = looks.setdefault(name, len(looks)) if len(groups) > 1 and title else (
        members.index((name, row)))
      _curve(axis, row["curve"], report["headline"][0], name, place)
    _curve_axis(axis, report["headline"][0], left=axis in axes[:, 0])
    axis.set_title(title or "without a baseline", fontsize=10) if len(groups) > 1 else None
    if len(groups) > 1:
      axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=8,
                  ncols=3 if max(len(name) for name, _ in members) < 18 else 2)
  if len(groups) == 1:
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
  return _titled(figure, report, "mean over seeds, band of one standard deviation")


def _groups(rows):
  """Returns {title: [(name within the panel, row), ...]}; one panel where that is readable."""
  measured = {row["curve"].get("measured") for row in rows}
  if len(measured) > 1:
    return {name.rpartition("/")[0]: [(row["label"], row) for row in rows
                                      if row["curve"]["measured"] == name]
            for name in sorted(measured)}
  if len(rows) <= TOGETHER:
    return {"": [(row["label"], row) for row in rows]}
  bases = {row["baseline"] for row in rows if row["baseline"]}
  groups = {}
  for row in rows:
    title = row["baseline"] or (row["label"] if row["label"] in bases else "")
    rest = row["label"].removeprefix(title).strip(" :,–") if title else row["label"]
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
  axis.xaxis.set_major_locator(ticker.MaxNLocator(6))
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  axis.spines[["top", "right"]].set_visible(False)


def _titled(figure, report, subtitle):
  generated = " [generated data]" if report["generated"] else ""
  wrap = lambda text: textwrap.fill(text, int(12.5 * figure.get_figwidth()))
  figure.suptitle(f"{wrap(report['title'] + generated)}\n{wrap(subtitle)}", fontsize=10)
  return figure
