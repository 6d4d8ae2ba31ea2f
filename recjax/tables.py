"""A study's report in words and tables: markdown for the file, aligned text for the terminal."""

PROTOCOLS = ("full", "uniform100_domain", "pop100", "uniform100_global")
HEADLINE_PROTOCOLS = ("full", "uniform100_global")
SURVEY_PROTOCOL = "uniform100_global"
SURVEY_METRICS = ("ndcg@3", "ndcg@5", "ndcg@10", "recall@3", "recall@5", "recall@10")
EMPTY = "–"

HOW_TO_READ = """\
- Metrics are in percent: mean ± standard deviation over seeds. Chance and popularity have no seeds.
- `full` ranks all items of the domain; the other protocols rank the true items among 100 sampled
  negatives. Sampled metrics are easier by construction and may order systems differently.
- The tests average each user's metric over the seeds and take the users as the sample. They say
  whether these trained models differ on users like these; the ± and `p over seeds` (paired t-test
  over seeds, from three seeds on, weak with few) say whether training again would show it too.
- p-values of the two user tests are Holm-adjusted over all comparisons of one protocol and metric.
  "better" and "worse" need both below 0.05 and a difference of the same sign in every seed."""


def markdown(report, images=()):
  """Returns report.md of a report from `recjax.report.build`; `images` are (title, file name)."""
  parts = [f"# {report['title']}"]
  if report["generated"]:
    parts.append("**Generated data: the numbers show that everything works, not how well.**")
  parts += [_unfinished(report), _what_ran(report)]
  for context in _contexts(report):
    parts += [f"## Results, context `{context}`",
              _context_note(report, context), _table(*results(report, context))]
  parts += [_survey_section(report), _significance_section(report)]
  parts += [f"![{title}]({name})" for title, name in images]
  parts += ["## How to read this", HOW_TO_READ]
  if report["notes"]:
    parts += ["## Notes", report["notes"].strip()]
  return "\n\n".join(part for part in parts if part) + "\n"


def headline(report):
  """Returns the main table as plain text for a terminal."""
  context = report["context"]
  if context is None:
    return "no run of this study's rows is finished"
  head, body = results(report, context, HEADLINE_PROTOCOLS)
  generated = ", generated data" if report["generated"] else ""
  title = f"{report['title']} (context {context}, percent{generated})"
  return "\n".join([title, *("  ".join(row) for row in _padded([head, *body]))])


def results(report, context, only=PROTOCOLS):
  """Returns (header cells, rows of cells): chance, popularity and the study's rows in `context`."""
  protocols = [p for p in only if p in _protocols(report)]
  metrics = report["headline"]
  header = [""]
  for protocol in protocols:
    header += [f"{protocol} {metric_name(metrics[0])}", *map(metric_name, metrics[1:])]
  cells = lambda tree: [cell(tree.get(p, {}).get(m)) for p in protocols for m in metrics]
  # Neither of the first two looks at the history, so they are the same in every context.
  body = [["chance", *cells(report["chance"])], ["popularity", *cells(report["popularity"])]]
  body += [[row["label"], *cells(row["results"].get(context, {}))] for row in report["rows"]]
  return header, body


def cell(summary):
  """Returns "12.34 ± 0.12" (percent) of a {"mean", "std"}, without ± where there is no spread."""
  if summary is None:
    return EMPTY
  mean = f"{100 * summary['mean']:.2f}"
  return f"{mean} ± {100 * summary['std']:.2f}" if summary["std"] else mean


def metric_name(metric):
  """Returns "NDCG@10" for "ndcg@10"."""
  name, at, k = metric.partition("@")
  return {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}.get(name, name) + at + k


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


def _contexts(report):
  found = dict.fromkeys(c for row in report["rows"] for c in row["results"])
  return sorted(found, key=lambda c: c != report["context"])


def _protocols(report):
  return {p for row in report["rows"] for tree in row["results"].values() for p in tree}


def _context_note(report, context):
  seeds = {len(row["seeds"]) for row in report["rows"] if row["seeds"]}
  count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
  return (f"Histories at test time: the user's `{context}` interactions. Percent, mean ± standard "
          f"deviation over {count} seed{'' if count == '1' else 's'}.")


def _unfinished(report):
  bad = [s for s in report["states"] if s["state"] != "done" or s.get("note")]
  if not bad:
    return ""
  lines = [f"- `{s['name']}` seed {s['seed']}: {s['state']}" + _reason(s) for s in bad]
  return "\n".join(["## Runs that are missing or need attention", "", *lines])


def _reason(state):
  reason = " ".join((state.get("error") or state.get("note") or "").split())
  return f" ({reason})" if reason else ""


def _what_ran(report):
  if not report["runs"]:
    return "No run is complete."
  number = lambda value: f"{value:,}" if isinstance(value, int) else EMPTY
  data = _table(
    ["data set", "users", "items", "interactions", "evaluated users", "mean train length"],
    [[name, *(number(d.get(k)) for k in ("users", "items", "interactions", "evaluated_users")),
      f"{d['mean_train_length']:.2f}" if d.get("mean_train_length") is not None else EMPTY]
     for name, d in sorted(report["data"].items())])
  runs = _table(
    ["run", "data set", "seeds", "parameters", "steps", "best step", "examples/s", "time per run"],
    [[name, r["data"], " ".join(map(str, r["seeds"])), number(r["parameters"]),
      *(f"{r[k]:,.0f}" for k in ("steps", "best_step", "examples_per_s")), duration(r["wall_s"])]
     for name, r in report["runs"].items()])
  devices = ", ".join(sorted({r["devices"] for r in report["runs"].values()}))
  lines = [f"Devices: {devices}. Total wall time of all runs: {duration(report['wall_s'])}."]
  if report["command"]:
    lines += ["", "```", report["command"], "```"]
  return "\n\n".join(["## What was run", data, runs, "\n".join(lines)])


def _survey_section(report):
  context, published = report["context"], report["published"]
  if context is None or SURVEY_PROTOCOL not in _protocols(report):
    return ""
  body = []
  for label, tree, theirs in [
      ("chance", report["chance"], {}), ("popularity", report["popularity"], {}),
      *((row["label"], row["results"].get(context, {}), published.get(row["label"], {}))
        for row in report["rows"])]:
    ours = [cell(tree.get(SURVEY_PROTOCOL, {}).get(m)) for m in SURVEY_METRICS]
    given = [theirs.get(f"{SURVEY_PROTOCOL}/{m}") for m in SURVEY_METRICS]
    body.append([label, *(o if g is None else f"{o} [{g:.2f}]"
                          for o, g in zip(ours, given, strict=True))])
  note = " In brackets: the published number." if published else ""
  return "\n\n".join([
    f"## `{SURVEY_PROTOCOL}` at 3, 5 and 10",
    f"Context `{context}`; 100 negatives drawn from both domains.{note}",
    _table(["", *map(metric_name, SURVEY_METRICS)], body)])


def _significance_section(report):
  metric = report["headline"][0]
  entries = [e for e in report["comparisons"]
             if e["metric"] == metric and e["context"] == report["context"]]
  if not entries:
    return ""
  order = lambda e: PROTOCOLS.index(e["protocol"]) if e["protocol"] in PROTOCOLS else len(PROTOCOLS)
  body = [
    [e["protocol"], f"{e['label']} – {report['baseline']}" if e["to_baseline"] else e["label"],
     f"{100 * e['difference']:+.2f}", f"[{100 * e['ci'][0]:+.2f}, {100 * e['ci'][1]:+.2f}]",
     p_value(e["p_t_holm"]), p_value(e["p_bootstrap_holm"]), p_value(e["p_seeds"]), e["verdict"]]
    for e in sorted(entries, key=order)]
  users = sorted({e["users"] for e in entries})
  return "\n\n".join([
    "## Significance",
    f"Paired differences of {metric_name(metric)} in percentage points, context "
    f"`{report['context']}`, {' or '.join(f'{n:,}' for n in users)} users. Other metrics and "
    "contexts are in report.json.",
    _table(["protocol", "comparison", "difference", "95 % CI", "p t-test (Holm)",
            "p bootstrap (Holm)", "p over seeds", "verdict"], body)])


def _table(header, body):
  escaped = [[str(c).replace("|", "\\|") for c in row] for row in [header, *body]]
  rows = _padded(escaped, narrowest=3)
  rule = ["-" * len(c) if i == 0 else "-" * (len(c) - 1) + ":" for i, c in enumerate(rows[0])]
  return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def _padded(rows, *, narrowest=0):
  """Returns rows of cells of one width per column: text to the left, numbers to the right."""
  widths = [max(narrowest, *map(len, column)) for column in zip(*rows, strict=True)]
  pad = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
  return [[pad(i, cell) for i, cell in enumerate(row)] for row in rows]
