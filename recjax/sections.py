"""A study's report.md, section by section."""

from recjax import claims as claims_lib
from recjax import slices, statistics, tables, trade_offs
from recjax.evaluators import metrics as metrics_lib

SURVEY_METRICS = ("ndcg@3", "ndcg@5", "ndcg@10", "recall@3", "recall@5", "recall@10")
MOST_LINES = 40  # of the table of tests; with more it keeps to the headline protocols
QUANTITIES = {"items_seen": "items with an interaction", "mean_train_length": "mean train length",
              "items_with_metadata": "items with metadata", "evaluated_users": "evaluated users"}
KINDS = {"history": ("by length of the user's history", "train items of the user"),
         "popularity": ("by popularity of the held-out item", "train interactions of the item"),
         "frequency": ("by train interactions of the held-out item", "in buckets")}

SHARES = """\
- Metrics are in percent: mean ± standard deviation over seeds. References have no seeds.
- `full` ranks all items of the domain; the other protocols rank the true items among 100 sampled
  negatives. Sampled metrics are easier by construction and may order systems differently."""
ERRORS = """\
- Errors are in rating points (MSE: squared), smaller is better: mean ± standard deviation over
  seeds. A difference below zero is the better one, and ▲ and "better" go by that.
- RMSE pools all ratings and has no value per user: tests take each user's MSE and MAE instead."""
TESTS = """\
- The tests average each user's metric over the seeds and take the users as the sample. They say
  whether these trained models differ on users like these; the ± and `p over seeds` (paired t-test
  over seeds, from three seeds on, weak with few) say whether training again would show it too. A
  method with one run (no randomness) is paired with every seed of the other.
- p-values of the two user tests are Holm-adjusted over all comparisons of one protocol and metric.
  "better" and "worse" need both below 0.05 and a difference of the same sign in every seed."""
SLICES = """\
- Slices: a user's history is its train items in this data set; items are tail, mid and head so that
  each holds about a third of the train interactions, cold without any. In an item slice a user
  counts with the mean over its held-out items there. Gains by slice: t-test over the slice's users,
  Holm over all slices, protocols and rows together, same sign in every seed; slices of fewer than
  20 users are not tested. "undecided" does not mean that transfer is harmless there."""


def markdown(report, images=()):
  """Returns report.md of a report from `recjax.report.build`; `images` are (title, file name)."""
  parts = [f"# {report['title']}"]
  if report["generated"]:
    parts.append("**Generated data: the numbers show that everything works, not how well.**")
  parts += [_unfinished(report), _data_section(report), _what_ran(report), _claims_section(report)]
  for context in _contexts(report):
    parts += [f"## Results, context `{context}`", _context_note(report, context),
              trade_offs.section(report) if report["tasks"] and context == report["context"] else
              tables.table(*tables.results(report, context))]
  parts += [_convergence_section(report), _survey_section(report), _published_section(report),
            _significance_section(report), _missing_slices(report), _negative_section(report)]
  parts += [_slice_section(report, kind) for kind in KINDS]
  parts += [f"![{title}]({name})" for title, name in images]
  parts += ["## How to read this" if report["rows"] else "", _how_to_read(report)]
  if report["notes"]:
    parts += ["## Notes", report["notes"].strip()]
  return "\n\n".join(part for part in parts if part) + "\n"


def _trained(run):
  """Returns the cells of what a run trains: its share of the parameters, and its size."""
  part, whole, size = (run.get(key) for key in (
    "trained_parameters", "parameters", "trained_bytes"))
  return (tables.EMPTY if part is None or not whole else f"{100 * part / whole:.1f} %",
          tables.EMPTY if size is None else f"{size / 1024:,.0f}")


def _contexts(report):
  found = dict.fromkeys(c for row in report["rows"] for c in row["results"])
  return sorted(found, key=lambda c: c != report["context"])


def _context_note(report, context):
  seeds = {len(row["seeds"]) for row in report["rows"] if row["seeds"]}
  number = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
  errors = [metrics_lib.is_error(metric) for metric in report["headline"]]
  unit = ("Errors as they are, smaller is better" + ("" if all(errors) else "; shares in percent")
          if any(errors) else "Percent")
  graph = any("triples" in data for data in report["data"].values())
  seen = "Of a graph's held-out triples or edges, after training on" if graph else (
    "Histories at test time: the user's")
  return (f"{seen} `{context}`{'' if graph else ' interactions'}. {unit}, mean ± standard "
          f"deviation over {number} seed{'' if number == '1' else 's'}.")


def _how_to_read(report):
  if not report["rows"]:
    return ""
  errors = [metrics_lib.is_error(metric) for metric in report["headline"]]
  parts = [SHARES] * (not all(errors)) + [ERRORS] * any(errors)
  parts += [TESTS] * bool(report["comparisons"]) + [SLICES] * bool(report["slices"]["gains"])
  return "\n".join(parts)


def _unfinished(report):
  bad = [s for s in report["states"] if s["state"] != "done" or s.get("note")]
  if not bad:
    return ""
  alike = {}
  for state in bad:
    alike.setdefault((state["name"], state["state"] + _reason(state)), []).append(state["seed"])
  lines = [f"- `{name}` seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}: {what}"
           for (name, what), seeds in alike.items()]
  return "\n".join(["## Runs that are missing or need attention", "", *lines])


def _reason(state):
  reason = " ".join((state.get("error") or state.get("note") or "").split())
  return f" ({reason})" if reason else ""


def _data_section(report):
  body, notes, absent = [], {}, []
  for row in report["data_rows"]:
    for key, given in row["published"].items():
      printed, note = given if isinstance(given, (tuple, list)) else (given, None)
      ours, quantity = _manifest_value(row["manifest"], key), _quantity(key)
      shown = tables.EMPTY if ours is None else f"{ours:,.2f}" if isinstance(ours, float) else (
        f"{ours:,}")
      difference = _data_difference(ours, printed)
      body.append([row["label"], quantity, shown,
                   tables.EMPTY if printed is None else str(printed), difference])
      if note and difference != "agrees":
        notes.setdefault((row["label"], note), []).append(quantity)
    absent += [row["data"]] * (row["manifest"] is None)
  if not body:
    return ""
  lines = ["## Data beside the published numbers",
           "\"agrees\" is meant at the precision that was printed; – is a number not at hand.",
           tables.table(["data set", "quantity", "ours", "published", "difference"], body)]
  if absent:
    lines.append(f"Not prepared here: {', '.join(f'`{name}`' for name in absent)}.")
  lines.append("\n".join(f"- {label}, {' and '.join(quantities)}: {note}"
                         for (label, note), quantities in notes.items()))
  return "\n\n".join(line for line in lines if line)


def _manifest_value(manifest, key):
  for part in key.split("/"):
    manifest = manifest.get(part) if isinstance(manifest, dict) else None
  return manifest


def _quantity(key):
  head, _, rest = key.partition("/")
  return f"items with {rest}" if head == "feature_coverage" else QUANTITIES.get(head, head)


def _data_difference(ours, printed):
  if ours is None or printed is None:
    return tables.EMPTY
  if tables.as_printed(ours, str(printed)) == str(printed):
    return "agrees"
  gap = ours - tables.parsed(str(printed))
  return f"{gap:+,.0f}" if isinstance(ours, int) else f"{gap:+,.2f}"


def _what_ran(report):
  if not report["runs"]:
    return "No run is complete." if report["rows"] else ""
  data = tables.table(
    ["data set", "users", "items", "interactions", "evaluated users", "mean train length"],
    [[name, *(tables.count(d.get(k)) for k in ("users", "items", "interactions",
                                               "evaluated_users")),
      f"{d['mean_train_length']:.2f}" if d.get("mean_train_length") is not None else tables.EMPTY]
     for name, d in sorted(report["data"].items())])
  runs = tables.table(
    ["run", "data set", "seeds", "parameters", "trained", "its KiB", "steps", "best step",
     "examples/s", "time per run"],
    [[name, r["data"], " ".join(map(str, r["seeds"])), tables.count(r["parameters"]),
      *_trained(r),
      *(f"{r[k]:,.0f}" for k in ("steps", "best_step", "examples_per_s")),
      tables.duration(r["wall_s"])] for name, r in report["runs"].items()])
  devices = ", ".join(sorted({r["devices"] for r in report["runs"].values()}))
  lines = [f"Devices: {devices}. Total wall time of all runs: "
           f"{tables.duration(report['wall_s'])}."]
  if report["command"]:
    lines += ["", "```", report["command"], "```"]
  return "\n\n".join(["## What was run", data, runs, "\n".join(lines)])


def _claims_section(report):
  if not report["claims"]:
    return ""
  overview = tables.table(
    ["claim", "reading", "mean effect", "better", "undecided", "worse"],
    [[f"{i}. {c['text']}", c["reading"],
      tables.difference(c["mean"]) if c["mean"] else tables.EMPTY,
      *(f"{c[word]} of {len(c['comparisons'])}" for word in ("better", "undecided", "worse"))]
     for i, c in enumerate(report["claims"], 1)])
  parts = ["## What it says", overview, "How a claim is read:\n\n" + claims_lib.RULE]
  for i, claim in enumerate(report["claims"], 1):
    parts.append(f"### {i}. {claim['text']}: {claim['reading']}\n\n{_claim_note(report, claim)}")
    if claim["comparisons"]:
      parts.append(tables.table(
        ["comparison", "difference, 95 % CI", "p t-test (Holm)", "p over seeds", "verdict"],
        [[e["label"], tables.difference(e), tables.p_value(e["p_t_holm"]),
          tables.p_value(e["p_seeds"]), tables.mark(e["verdict"], transfer=False)]
         for e in claim["comparisons"]]))
  return "\n\n".join(parts)


def _claim_note(report, claim):
  unit = "smaller is better" if claims_lib.is_error(claim) else "percentage points"
  note = (f"{tables.metric_name(claim['metric'])} under `{claim['protocol']}`, context "
          f"`{report['context']}`, {unit}.")
  if claim["mean"]:
    note += (f" Mean effect {tables.difference(claim['mean'])} over {claim['mean']['users']:,} "
             f"users: {claim['mean']['verdict']}{_why_undecided(claim['mean'])}.")
  elif claim["comparisons"]:
    note += " The comparisons share no users, so there is no mean effect."
  if missing := claim["planned"] - len(claim["comparisons"]):
    note += f" {missing} of {claim['planned']} comparisons are not at hand."
  return note


def _why_undecided(entry):
  clear = max(entry["p_t_holm"], entry["p_bootstrap_holm"]) < statistics.LEVEL
  return (", since its sign changes with the seed, though it is clear over users"
          if clear and entry["verdict"] == "undecided" else "")


def _convergence_section(report):
  header, rows = tables.convergence(report)
  return f"## How soon each row learns, in steps\n\n{tables.table(header, rows)}" if rows else ""


def _survey_section(report):
  context = report["context"]
  if context is None or tables.SURVEY_PROTOCOL not in tables.protocols(report):
    return ""
  trees = [(row["label"], row["results"]) for row in report["references"]]
  trees += [(row["label"], row["results"].get(context, {})) for row in report["rows"]]
  names = [m for m in SURVEY_METRICS
           if any(m in tree.get(tables.SURVEY_PROTOCOL, {}) for _, tree in trees)]
  return "\n\n".join([
    f"## `{tables.SURVEY_PROTOCOL}` at 3, 5 and 10",
    f"Context `{context}`; 100 negatives drawn from both domains.",
    tables.table(["", *map(tables.metric_name, names)],
                 [[label, *(tables.cell(tree.get(tables.SURVEY_PROTOCOL, {}).get(m), m)
                            for m in names)] for label, tree in trees])])


def _published_section(report):
  if not report["published"]:
    return ""
  body, lacking = [], []
  for row in report["rows"]:
    given = report["published"].get(row["label"], {})
    lacking += [row["label"]] * (not given)
    for where, theirs in sorted(given.items(), key=_natural):
      protocol, _, metric = where.rpartition("/")
      ours = row["results"].get(report["context"], {}).get(protocol, {}).get(metric)
      exact = metrics_lib.is_error(metric)
      gap = None if ours is None else ours["mean"] * (1 if exact else 100) - theirs
      places = 3 if exact else 2
      body.append([row["label"], protocol, tables.metric_name(metric), tables.cell(ours, metric),
                   f"{theirs:.{places}f}", tables.EMPTY if gap is None else f"{gap:+.{places}f}"])
  lines = ["## Beside the published numbers",
           f"Context `{report['context']}`; difference: ours minus the published number.",
           tables.table(["row", "protocol", "metric", "ours", "published", "difference"], body)]
  if lacking:
    lines.append(f"No published number is at hand for: {'; '.join(lacking)}.")
  return "\n\n".join(lines)


def _natural(item):
  """Returns a sort key that puts "full/ndcg@3" before "full/ndcg@10"."""
  name, _, k = item[0].partition("@")
  return name, int(k) if k.isdigit() else 0


def _significance_section(report):
  tested = {row["run"]: row["tested"] for row in report["rows"]}
  entries = [e for e in report["comparisons"]
             if e["metric"] == tested[e["run"]] and e["context"] == report["context"]]
  if not entries:
    return ""
  metric = " or ".join(tables.metric_name(m) for m in dict.fromkeys(e["metric"] for e in entries))
  names, short = tables.protocols(report), ""
  if len(entries) > MOST_LINES:
    names, short = report["slices"]["protocols"], ", other protocols"
  transfers = {row["run"] for row in report["rows"] if row["transfers"]}
  labels = {row["run"]: row["label"] for row in report["rows"]}
  body = [
    [e["protocol"], f"{e['label']} – {labels[e['against']]}" if e["to_baseline"] else e["label"],
     tables.difference(e), tables.p_value(e["p_t_holm"]), tables.p_value(e["p_bootstrap_holm"]),
     tables.p_value(e["p_seeds"]),
     tables.mark(e["verdict"], transfer=e["to_baseline"] and e["run"] in transfers)]
    for e in sorted((e for e in entries if e["protocol"] in names),
                    key=lambda e: names.index(e["protocol"]))]
  users = sorted({e["users"] for e in entries})
  errors = any(metrics_lib.is_error(e["metric"]) for e in entries)
  unit = " (smaller is better)" if errors else " in percentage points"
  pooled = dict.fromkeys(tables.metric_name(row["metric"]) for row in report["rows"]
                         if row["metric"] != row["tested"] is not None)
  instead = "" if not pooled else (
    f" {' and '.join(pooled)} pools the users and has no value of each, so the tests are on "
    f"{metric} per user.")
  return "\n\n".join([
    "## Significance",
    f"Paired differences of {metric}{unit}, context `{report['context']}`, "
    f"{' or '.join(f'{n:,}' for n in users)} users.{instead} Other metrics{short} and contexts are "
    "in report.json.",
    tables.table(["protocol", "comparison", "difference, 95 % CI", "p t-test (Holm)",
                  "p bootstrap (Holm)", "p over seeds", "verdict"], body)])


def _missing_slices(report):
  missing = ", ".join(f"`{name}`" for name in report["slices"]["missing"])
  return ("## Slices that are missing\n\nRuns made by an older version have no values by slice: "
          f"{missing}. Delete their folders to train them again." if missing else "")


def _negative_section(report):
  gains = report["slices"]["gains"]
  if not gains:
    return ""
  tested = sum(e["verdict"] is not None for e in gains)
  lines = [
    f"- **{e['label']}** against {_baseline(report, e)}, `{e['protocol']}`, {tables.slice_name(e)} "
    f"({e['users']:,} users): {tables.metric_name(e['metric'])} {tables.difference(e)}, "
    f"p {tables.p_value(e['p_t_holm'])} ▼ hurts" for e in gains if e["verdict"] == "worse"]
  found = "\n".join(lines) or "None."
  return "\n\n".join([
    "## Negative transfer",
    f"Where transfer hurts significantly, of {tested} tests (rows x slices x protocols, Holm over "
    "all of them):", found])


def _baseline(report, entry):
  return next((row["label"] for row in report["rows"] if row["run"] == entry["against"]),
              entry["against"])


def _slice_section(report, kind):
  """Returns the tables of one kind of slices: values of all rows, gains of those that transfer."""
  names = {"history": slices.HISTORY, **slices.OF_ITEMS}[kind]
  title, of = KINDS[kind]
  parts = []
  for group in tables.groups(report, report["slices"]["protocols"]):
    protocol = group["protocol"]
    rows = [row for row in [*group["references"], *group["rows"]] if row["slices"].get(kind)]
    metric = _slice_metric(group, rows, kind)
    if metric is None:
      continue
    values = [[row["label"], *(tables.cell(row["slices"][kind][name]["results"].get(
      protocol, {}).get(metric), metric) for name in names)] for row in rows]
    parts.append(f"{group['title']}, {tables.metric_name(metric)}:\n\n"
                 + tables.table([of, *names], [*_slice_counts(rows, kind, names), *values]))
    gains = {(e["run"], e["slice"]): e for e in report["slices"]["gains"]
             if e["kind"] == kind and e["protocol"] == protocol}
    movers = [row for row in group["rows"] if any(run == row["run"] for run, _ in gains)]
    if movers:
      body = [[row["label"], *(_gain_cell(gains.get((row["run"], name))) for name in names)]
              for row in movers]
      name = tables.metric_name(next(gains[key]["metric"] for key in gains if key[0] == (
        movers[0]["run"])))
      parts.append(f"Gain over the baseline, {group['title']}, {name}, 95 % CI over users:"
                   "\n\n" + tables.table(["", *names], body))
  return "\n\n".join([f"## Slices {title}", *parts]) if parts else ""


def _slice_metric(group, rows, kind):
  """Returns the metric of a slice table: that of the group, or what stands for it there."""
  found = [metric for row in rows for piece in row["slices"][kind].values()
           for metric in piece["results"].get(group["protocol"], {})]
  if kind in slices.OF_ITEMS:
    return next((m for m in found if slices.stands_for(m, group["tested"])), None)
  return next((m for m in (group["metric"], group["tested"]) if m in found), None)


def _slice_counts(rows, kind, names):
  """Returns the lines of a slice table that say how much each slice holds, per data set."""
  seen, lines = {}, []
  for row in rows:
    seen.setdefault(row["data"], row["slices"][kind])
  for data, pieces in seen.items():
    after = f", {data}" if len(seen) > 1 else ""
    lines.append([f"users{after}", *(tables.count(pieces[name]["users"]) for name in names)])
    if kind in slices.OF_ITEMS:
      ranges = ["-".join(f"{n:,}" for n in dict.fromkeys(pieces[name]["train_counts"]))
                or tables.EMPTY for name in names]
      lines += [[f"held-out items{after}", *(tables.count(pieces[n]["positives"]) for n in names)],
                [f"items{after}", *(tables.count(pieces[n]["items"]) for n in names)],
                [f"interactions of an item{after}", *ranges]]
  return lines


def _gain_cell(entry):
  if entry is None:
    return tables.EMPTY
  return f"{tables.difference(entry)} {tables.mark(entry['verdict'], transfer=True)}"
