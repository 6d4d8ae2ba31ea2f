"""A study's two pictures: what each row gains over the baseline, and how each row learned."""

import os

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from recjax import tables  # noqa: E402

# Okabe and Ito (2008), told apart under the common color blindnesses.
COLORS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999")
VERDICTS = {"better": "#0072B2", "worse": "#D55E00", "undecided": "#777777"}
STYLES = ("-", "--", "-.", ":")


def draw(workdir, report):
  """Writes the plots that the report has data for; returns [(title, file name), ...]."""
  images = []
  for title, name, figure in (
      ("Gain over the baseline", "transfer_gain.png", transfer_gain(report)),
      ("Learning curves", "learning_curves.png", learning_curves(report))):
    path = workdir / name
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
  metric, context = report["headline"][0], report["context"]
  entries = {(e["protocol"], e["label"]): e for e in report["comparisons"]
             if e["to_baseline"] and e["metric"] == metric and e["context"] == context}
  protocols = [p for p in tables.PROTOCOLS if any(key[0] == p for key in entries)]
  labels = [row["label"] for row in report["rows"] if row["label"] in {key[1] for key in entries}]
  if not entries:
    return None
  figure, axes = plt.subplots(
    1, len(protocols), sharey=True, squeeze=False, layout="constrained",
    figsize=(2.2 + 2.4 * len(protocols), 1.7 + 0.42 * len(labels)))
  for axis, protocol in zip(axes[0], protocols, strict=True):
    for y, label in enumerate(labels):
      if (protocol, label) in entries:
        _interval(axis, y, entries[protocol, label])
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_title(protocol, fontsize=10)
    axis.set_ylim(len(labels) - 0.4, -0.75)  # the first row on top, with room for its number
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.12)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
  handles = [plt.Line2D([], [], marker="o", linestyle="-", color=color, label=word)
             for word, color in VERDICTS.items()]
  figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
  return _titled(figure, report, f"{tables.metric_name(metric)} minus “{report['baseline']}” in "
                 f"percentage points, context {context}, with 95 % CI over users")


def _interval(axis, y, entry):
  low, high = (100 * value for value in entry["ci"])
  center, color = 100 * entry["difference"], VERDICTS[entry["verdict"]]
  axis.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
  axis.plot(center, y, marker="o", color=color, markersize=6)
  axis.annotate(f"{center:+.2f}", (center, y), (0, 6), textcoords="offset points",
                ha="center", fontsize=7.5, color=color)


def learning_curves(report):
  """Returns a figure of the validation metric by step: mean over seeds, band of ± one std."""
  rows = [row for row in report["rows"] if row["curve"]["steps"]]
  if not rows:
    return None
  figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
  for i, row in enumerate(rows):
    curve, color = row["curve"], COLORS[i % len(COLORS)]
    percent = lambda name, curve=curve: [100 * value for value in curve[name]]
    axis.fill_between(
      curve["steps"], percent("low"), percent("high"), color=color, alpha=0.15, linewidth=0)
    axis.plot(curve["steps"], percent("mean"), color=color, linewidth=1.6, label=row["label"],
              linestyle=STYLES[i // len(COLORS) % len(STYLES)],
              marker="o" if len(curve["steps"]) < 25 else None, markersize=3)
  axis.set_xlabel("step")
  axis.set_ylabel(f"validation {tables.metric_name(report['headline'][0])} (%)")
  axis.grid(color="#dddddd", linewidth=0.6)
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  axis.spines[["top", "right"]].set_visible(False)
  figure.legend(loc="outside right center", frameon=False, fontsize=9)
  return _titled(figure, report, "mean over seeds, band of one standard deviation")


def _titled(figure, report, subtitle):
  generated = " [generated data]" if report["generated"] else ""
  figure.suptitle(f"{report['title']}{generated}\n{subtitle}", fontsize=10)
  return figure
