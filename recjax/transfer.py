"""What crosses from one run to another: rules -> plan -> merged parameters.

Rules are (target regex, source) pairs over leaf names; the first full match decides. `source` is a
template of the source leaf's name (backreferences as in re.Match.expand), or None for a fresh
start; leaves that no rule matches start fresh. Rows of tables (users, items, attributes) are
matched by external name, never by number.

A third entry of a rule, a dict, may set
    source  which of several source runs the leaf comes from, counted from 0 (the default)
    scale   what the values are multiplied with
"""

import dataclasses
import re

import numpy as np

from recjax import errors
from recjax import trees


@dataclasses.dataclass(frozen=True)
class Entry:
  """What happens to one leaf of the target."""
  target: str
  source: str | None  # None: keeps its fresh start
  shape: tuple
  vocabulary: str | None = None  # of its rows, where they are matched by name
  axis: int = 0
  rows: np.ndarray | None = None  # int64 [rows]: source row of every target row, -1: fresh
  run: int = 0  # which source run
  scale: float = 1.0

  def describe(self):
    """Returns a JSON-able record."""
    record = {"target": self.target, "source": self.source or "fresh", "shape": list(self.shape)}
    if self.run:
      record["run"] = self.run
    if self.scale != 1:
      record["scale"] = self.scale
    if self.rows is not None:
      record["rows"] = {"vocabulary": self.vocabulary, "of": len(self.rows),
                        "matched": int(np.sum(self.rows >= 0))}
    return record


def make_plan(target_shapes, source_shapes, rules, *, row_tables, target_rows, source_rows,
              run=0):
  """Returns [Entry] for every target leaf, in its order.

  Args:
    target_shapes: the target's parameter tree of arrays or shapes.
    source_shapes: {leaf name: array or shape} of the source checkpoint.
    rules: see the module's docstring.
    row_tables: {target leaf: (vocabulary, axis)}.
    target_rows: {vocabulary: Rows} of the target.
    source_rows: {vocabulary: Rows} of the source; rows it never trained match nothing.
    run: which of several sources this is; leaves that rules take from others start fresh here.

  Raises:
    UserError: a rule that decides no leaf, a source leaf that does not exist, a shape mismatch, or
      a table none of whose rows is known by name.
  """
  matched, _ = trees.match(target_shapes, [(rule[0], rule) for rule in rules],
                           what="transfer rule")
  target = trees.flatten(target_shapes)
  plan, problems = [], []
  for leaf, array in target.items():
    rule, found = matched.get(leaf, ((leaf, None), None))
    template, options = rule[1], _options(rule)
    source = None
    if template is not None and options["source"] == run:
      source = _expand(found, template)
    if source is None:
      plan.append(Entry(leaf, None, tuple(array.shape)))
      continue
    if source not in source_shapes:
      problems.append(f"{leaf} wants {source}, which the source lacks")
      continue
    vocabulary, axis = row_tables.get(leaf, (None, 0))
    theirs = tuple(source_shapes[source].shape)
    rows = None
    if vocabulary is not None:
      named = source_rows.get(vocabulary)
      rows = match_rows(target_rows[vocabulary].names, named)
      if named is not None and (theirs[axis:axis + 1] != named.names.shape):
        problems.append(f"{source} is {theirs}, but has {len(named.names)} named {vocabulary} rows")
        continue
    if _rest(array.shape, axis, rows) != _rest(theirs, axis, rows):
      problems.append(f"{leaf} is {tuple(array.shape)}, {source} is {theirs}")
      continue
    if rows is not None and not np.any(rows >= 0):  # Would pass for a transfer and carry nothing.
      problems.append(f"{leaf}: no {vocabulary} of the source has an external id known here")
      continue
    plan.append(Entry(leaf, source, tuple(array.shape), vocabulary, axis, rows, run,
                      options["scale"]))
  if problems:
    wanted = [e.source for e in plan if e.source]
    raise errors.UserError(
      f"the transfer does not fit: {'; '.join(problems)}. Names: "
      f"{trees.describe_difference(list(target), list(source_shapes))}. "
      f"Fitting: {', '.join(wanted) or 'none'}")
  return plan


def check_sources(rules, count):
  """Raises UserError for a rule that takes leaves from a run beyond the `count` sources."""
  for rule in rules:
    if not 0 <= (run := _options(rule)["source"]) < count:
      raise errors.UserError(f"transfer rule {rule[0]!r} takes from source {run}, counted from 0, "
                             f"but transfer.checkpoint names {count}, separated by commas")


def join(plans):
  """Returns one plan of several with the same leaves: of each the entry that has a source."""
  return [next((entry for entry in entries if entry.source), entries[0])
          for entries in zip(*plans, strict=True)]


def match_rows(target_names, source):
  """Returns int64 [rows]: the source row of the same external name, -1 where there is none."""
  if source is None:
    return np.full(len(target_names), -1, np.int64)
  usable = np.flatnonzero(source.trained & (source.names != b""))
  order = usable[np.argsort(source.names[usable], kind="stable")]
  known = source.names[order]
  if len(known) == 0:
    return np.full(len(target_names), -1, np.int64)
  width = max(known.dtype.itemsize, target_names.dtype.itemsize)
  known, wanted = known.astype(f"S{width}"), np.asarray(target_names).astype(f"S{width}")
  place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
  return np.where((known[place] == wanted) & (wanted != b""), order[place], -1)


def sources(plan):
  """Returns the names of the source leaves that the plan reads, each once."""
  return list(dict.fromkeys(entry.source for entry in plan if entry.source))


def merge(plan, fresh, source):
  """Returns the target's parameters: `fresh`, overwritten as planned (numpy arrays).

  Args:
    plan: of `make_plan`.
    fresh: the target's freshly started parameter tree.
    source: {leaf name: array} with at least `sources(plan)`.
  """
  entries = {entry.target: entry for entry in plan}
  def choose(leaf, start):
    entry = entries[leaf]
    if entry.source is None:
      return np.asarray(start)
    theirs = np.asarray(source[entry.source])
    if entry.scale != 1:
      theirs = theirs * np.asarray(entry.scale, theirs.dtype)
    if entry.rows is None:
      return theirs.astype(start.dtype)
    out = np.moveaxis(np.array(start), entry.axis, 0)
    found = entry.rows >= 0
    out[found] = np.moveaxis(theirs, entry.axis, 0)[entry.rows[found]]
    return np.ascontiguousarray(np.moveaxis(out, 0, entry.axis))
  return trees.map_names(choose, fresh)


def frozen_as_started(plan, trainable, needed):
  """Returns a warning of each table in which rows that are needed will stay as they started.

  The table is frozen, and the source, which it comes from, knew nothing of them.

  Args:
    plan: of `make_plan`.
    trainable: {leaf name: bool}.
    needed: {vocabulary: bool [rows]}, which rows the target's data read or score.
  """
  lines = []
  for entry in plan:
    if entry.rows is None or trainable[entry.target]:
      continue
    if count := int(np.sum((entry.rows < 0) & needed[entry.vocabulary])):
      lines.append(
        f"{entry.target} is frozen, and {count:,} of the {entry.vocabulary} rows that these data "
        f"need were not trained in the source: they stay as they started. To train the table, set "
        f"optim.rules=(({entry.target!r}, {{}}),), or leave it out of transfer.freeze")
  return lines


def describe(plan, trainable):
  """Returns a printable table of the plan: leaf, source, shape, matched rows, trained or frozen."""
  width = max(len(entry.target) for entry in plan)
  lines = []
  for entry in plan:
    shape = "x".join(map(str, entry.shape))
    rows = ""
    if entry.rows is not None:
      rows = f" ({int(np.sum(entry.rows >= 0)):,} of {len(entry.rows):,} {entry.vocabulary} rows)"
    origin = "fresh" if entry.source is None else f"<- {entry.source}"
    origin += f" of source {entry.run}" * bool(entry.run)
    origin += f" x {entry.scale:g}" * (entry.scale != 1)
    lines.append(f"{entry.target:<{width}}  {shape:>12}  {origin}{rows}"
                 f"{'' if trainable[entry.target] else ', frozen'}")
  return "\n".join(lines)


def _options(rule):
  given = dict(rule[2]) if len(rule) > 2 else {}
  if unknown := set(given) - {"source", "scale"}:
    raise errors.UserError(f"transfer rule {rule[0]!r} sets unknown options {sorted(unknown)}; "
                           "there are source and scale")
  return {"source": 0, "scale": 1.0, **given}


def _expand(found, template):
  try:
    return found.expand(template)
  except (re.error, IndexError) as error:
    raise errors.UserError(f"transfer rule: {template!r} is not a template of "
                           f"{found.re.pattern!r}: {error}") from error


def _rest(shape, axis, rows):
  return tuple(n for i, n in enumerate(shape) if rows is None or i != axis)
