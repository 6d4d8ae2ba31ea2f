"""The files of a run folder: config, restore report, test report, per-user values."""

import json
import os
import pathlib

import jax
import numpy as np

from recjax import errors, record
from recjax.evaluators import popularity

# Where things run and what they print: nothing that changes a run's numbers.
INCIDENTAL = ("data_dir", "log", "checkpoint", "num_devices")


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
  """
  out = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if name in INCIDENTAL:
      continue
    if isinstance(value, dict) and value:
      out |= comparable(value, f"{name}.")
    elif name == "transfer.checkpoint" and value:
      out[name] = "/".join(pathlib.PurePath(value).parts[-2:])
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


def make_ranking(exp, split):
  """Returns the evaluator that reports on `split`, with all that `config.eval` asks for."""
  contexts = tuple(exp.config.eval.contexts) if split == "test" else ("train",)
  return exp.ranking(split, contexts=contexts, protocols=tuple(exp.config.eval.protocols))


def evaluate(exp, ranking, params, workdir, *, write, split="test", name=None):
  """Returns the report of `params` on `split` and writes the per-user values beside it.

  Args:
    exp: an Experiment.
    ranking: of `make_ranking` for `split`.
    params: its parameters.
    workdir: the run's folder.
    write: whether this process writes.
    split: "test" or "val".
    name: of the file of per-user values, per_user_NAME.npz; the split by default.
  """
  config = exp.config
  try:
    found = ranking.run(exp.predict, params)
  except FloatingPointError as error:
    raise errors.UserError(f"{workdir}: the parameters are no good: {error}") from error
  popular, chance = popularity.popularity(ranking, exp.data), popularity.chance(ranking, exp.data)
  means, first = found.means(), ranking.contexts[0]
  flat = {**found.flat(),
          **{f"popularity/{name.split('/', 1)[1]}": values
             for name, values in popular.flat().items() if name.startswith(f"{first}/")}}
  if write:
    _save_arrays(pathlib.Path(workdir) / f"per_user_{name or split}.npz", users=found.users,
                 external_users=np.asarray(exp.data.user_ids)[found.users], **flat)
  manifest = exp.data.manifest
  keys = ("title", "generated", "users", "items", "mean_train_length", "evaluated_users")
  return {
    "run": {"name": pathlib.Path(workdir).name, "seed": config.seed, "model": config.model.name,
            "variant": config.model.variant, "objective": config.objective.name,
            "transfer_mode": config.transfer.mode if config.transfer.checkpoint else "none",
            "batch_size": config.batch_size, "jax": jax.__version__},
    "data": {**exp.data.identity(), **{key: manifest.get(key) for key in keys}},
    "context": first, split: means[first], "contexts": means,
    "popularity": popular.means()[first], "chance": chance.means()[first]}


def finish(workdir, report, *, write):
  """Marks the run finished: report.json is the last file to appear."""
  report["run"]["finished"] = True
  if write:
    record.write_json(pathlib.Path(workdir) / "report.json", report)


def summary(report, split="test"):
  """Returns the report's headline numbers as a printable table, in percent."""
  lines = []
  if report["data"]["generated"]:
    lines.append("GENERATED data")
  lines.append(f"{'protocol (context ' + report['context'] + ')':<34}{'row':<12}{'NDCG@10':>9}"
               f"{'Recall@10':>11}{'MRR':>8}")
  for protocol in report[split]:
    for row in (split, "popularity", "chance"):
      values = report[row][protocol]
      label = report["run"]["model"] if row == split else row
      cells = [100 * values.get(m, float("nan")) for m in ("ndcg@10", "recall@10", "mrr")]
      lines.append(f"{protocol:<34}{label:<12}{cells[0]:>9.2f}{cells[1]:>11.2f}{cells[2]:>8.2f}")
  return "\n".join(lines)


def _save_arrays(path, **arrays):
  draft = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
  np.savez_compressed(draft, allow_pickle=False, **arrays)
  os.replace(draft, path)
