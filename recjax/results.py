"""The files of a run folder: config, restore report, test report, values of users and items."""

import json
import os
import pathlib

import jax
import numpy as np

from recjax import errors, record, slices
from recjax.evaluators import metrics
from recjax.evaluators import values as values_lib

# Where things run and what they print: nothing that changes a run's numbers.
INCIDENTAL = ("data_dir", "log", "checkpoint", "num_devices", "model_devices")


def plain(config):
  """Returns a ConfigDict as the JSON-able dict that config.json holds."""
  return json.loads(config.to_json_best_effort())


def finished(workdir):
  """Returns the report of a finished run in `workdir`, or None."""
  path = pathlib.Path(workdir) / "report.json"
  if not path.is_file():
    return None
  try:
    report = json.loads(path.read_text())
  except ValueError:  # Damaged: the run's checkpoints can write it again.
    return None
  return report if report.get("run", {}).get("finished") else None


def check_same_config(workdir, config):
  """Raises UserError where `workdir` holds a run of another config, naming the fields."""
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    return
  try:
    theirs = comparable(json.loads(path.read_text()))
  except ValueError as error:
    raise errors.UserError(f"{path}: damaged ({error}); use another --workdir") from error
  mine = comparable(plain(config))
  changed = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
  if changed:
    facts = ", ".join(f"{n} was {theirs.get(n)!r}, now {mine.get(n)!r}" for n in changed[:4])
    raise errors.UserError(f"{workdir} holds a run of another config ({facts}); use another "
                           "--workdir, or remove it")


def comparable(tree, prefix=""):
  """Returns {dotted name: value} of a `plain` config, less what does not change a run's numbers.

  A source run is told by the last two parts of its path (NAME/seedK in a study), wherever it lies.
  Fields that are unset or empty are left out: a version that knows a further option, which is off,
  trains the same run.
  """
  out = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if name in INCIDENTAL or value in (None, [], "", {}):
      continue
    if isinstance(value, dict):
      out |= comparable(value, f"{name}.")
    elif name == "transfer.checkpoint":
      out[name] = ",".join("/".join(pathlib.PurePath(run).parts[-2:]) for run in value.split(","))
    else:
      out[name] = value
  return out


def start(workdir, config, crossing, *, resuming, write):
  """Makes the run's folder with its config and what was transferred (or None)."""
  if not write:
    return
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    record.write_json(workdir / "config.json", plain(config))
  except OSError as error:
    raise errors.UserError(f"--workdir {workdir}: cannot be written ({error.strerror})") from error
  if crossing is not None:
    record.write_json(workdir / "restore_report.json", crossing)
  elif not resuming:  # Of a run that was stopped before its first checkpoint.
    (workdir / "restore_report.json").unlink(missing_ok=True)


def make_evaluator(exp, split):
  """Returns the evaluator that reports on `split`, with all that `config.eval` asks for."""
  contexts = tuple(exp.config.eval.contexts) if split == "test" else ("train",)
  return exp.evaluator(split, contexts=contexts)


def evaluate(exp, evaluator, params, workdir, *, write, split="test", name=None):
  """Returns the report of `params` on `split` and writes the values that its means are made of.

  per_user_NAME.npz holds users int32 [n], external_users, train_length int32 [n] and, float32 [n],
  CONTEXT/PROTOCOL/METRIC and REFERENCE/PROTOCOL/METRIC of every reference but chance. Of a graph
  the held-out triples stand in the place of users, named by their external ids; there are no train
  lengths and no slices.
  per_positive_NAME.npz, of evaluators that tell held-out items apart, holds rows int32 [P] (whose
  item it is), items int32, train_count int32, popularity int8 (place in slices.POPULARITY) and
  CONTEXT/PROTOCOL/METRIC float32.

  Args:
    exp: an Experiment.
    evaluator: of `make_evaluator` for `split`.
    params: its parameters.
    workdir: the run's folder.
    write: whether this process writes.
    split: "test" or "val".
    name: of the files; the split by default.
  """
  config = exp.config
  try:
    found = evaluator.run(exp.predict, params)
  except FloatingPointError as error:
    raise errors.UserError(f"{workdir}: the parameters are no good: {error}") from error
  references = evaluator.references()
  means, first = found.means(), evaluator.contexts[0]
  # References are shown of the first context, as the models are; nobody tests against chance.
  flat = {**found.flat(),
          **{f"{reference}/{name.split('/', 1)[1]}": values
             for reference, theirs in references.items() if reference != "chance"
             for name, values in theirs.flat().items() if name.startswith(f"{first}/")}}
  lengths, counts = exp.train_lengths(found.users), exp.item_counts()
  if write:
    _save_arrays(pathlib.Path(workdir) / f"per_user_{name or split}.npz", users=found.users,
                 external_users=exp.names(found.users, split),
                 **({} if lengths is None else {"train_length": lengths}), **flat)
    if found.positives is not None:
      _save_positives(pathlib.Path(workdir) / f"per_positive_{name or split}.npz", exp.data, counts,
                      found.positives)
  manifest = exp.data.manifest
  keys = ("title", "generated", "users", "items", "mean_train_length", "evaluated_users")
  cut = {} if lengths is None else slices.summarize(
    {split: found, **references}, first, lengths, counts, np.asarray(exp.data.in_domain))
  return {
    "run": {"name": pathlib.Path(workdir).name, "seed": config.seed, "model": config.model.name,
            "variant": config.model.variant, "objective": config.objective.name,
            "transfer_mode": config.transfer.mode if config.transfer.checkpoint else "none",
            "batch_size": config.batch_size, "jax": jax.__version__},
    "data": {**exp.data.identity(), **{key: manifest.get(key) for key in keys}},
    "context": first, split: means[first], "contexts": means, "references": list(references),
    **{reference: theirs.means()[first] for reference, theirs in references.items()},
    **({} if exp.objective.profile is None else {"profile": evaluator.facts()}),
    "slices": cut}


def finish(workdir, report, *, write):
  """Marks the run finished: report.json is the last file to appear."""
  report["run"]["finished"] = True
  if write:
    record.write_json(pathlib.Path(workdir) / "report.json", report)


def summary(report, split="test"):
  """Returns the report's headline numbers as a printable table, shares in percent."""
  lines = []
  if report["data"]["generated"]:
    lines.append("GENERATED data")
  for protocol, values in report[split].items():
    shown = [m for m in metrics.HEADLINE if m in values]
    shown = shown if len(shown) > 1 else list(values)
    lines.append(f"{protocol + ', context ' + report['context']:<34}{'':<16}"
                 + "".join(f"{m:>11}" for m in shown))
    for row in (split, *report["references"]):
      if protocol not in report[row]:  # A reference answers some of several questions.
        continue
      label = report["run"]["model"] if row == split else row
      cells = [report[row][protocol][m] for m in shown]
      cells = [f"{v:>11.4f}" if metrics.is_error(m) else f"{100 * v:>11.2f}"
               for m, v in zip(shown, cells, strict=True)]
      lines.append(f"{'':<34}{label:<16}" + "".join(cells))
  return "\n".join(lines)


def _save_positives(path, data, counts, positives):
  popularity = slices.of_popularity(np.where(data.in_domain, counts, 0))
  flat = values_lib.Results(positives.rows, positives.values).flat()
  _save_arrays(path, rows=positives.rows, items=positives.items,
               train_count=counts[positives.items].astype(np.int32),
               popularity=popularity[positives.items], **flat)


def _save_arrays(path, **arrays):
  draft = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
  np.savez_compressed(draft, allow_pickle=False, **arrays)
  os.replace(draft, path)
