"""Runs and their parameters as numpy and pandas, for notebooks; needs no model code.

    from recjax import analysis
    items = analysis.table("runs/src", "embed/item/embedding")   # DataFrame by external item id
    curves = analysis.metrics("runs/src")                        # metrics.jsonl
    runs = analysis.runs("runs/study")                           # one row per finished run
"""

import json
import pathlib

import numpy as np
import pandas as pd

from recjax import checkpoint, errors, record


def params(workdir, *, step=None, names=None):
  """Returns {leaf name: numpy array} of the best checkpoint, or of `step`; reads only `names`."""
  return {n: np.asarray(x) for n, x in checkpoint.Reader(workdir, step).params(names).items()}


def shapes(workdir, *, step=None):
  """Returns {leaf name: shape}, without reading any array."""
  return {n: x.shape for n, x in checkpoint.Reader(workdir, step).shapes().items()}


def config(workdir):
  """Returns the run's config as a dict."""
  return _read_json(pathlib.Path(workdir) / "config.json")


def table(workdir, name, *, vocabulary=None, step=None, trained_only=True):
  """Returns a row table as a DataFrame [rows, width] indexed by external id.

  Args:
    workdir: the run's folder.
    name: the leaf, for example "embed/user/embedding".
    vocabulary: whose names its rows carry; by default the last folder of the leaf's name.
    step: another checkpoint than the best.
    trained_only: leave out rows that the run's data never trained.
  """
  reader = checkpoint.Reader(workdir, step)
  vocabulary = vocabulary or name.split("/")[-2]
  rows = errors.choose(reader.rows(), vocabulary, f"{workdir}: vocabulary")
  values = np.asarray(reader.params([name])[name])
  if len(values) != len(rows.names):
    raise errors.UserError(
      f"{name} has {len(values)} rows, vocabulary {vocabulary} {len(rows.names)}")
  index = pd.Index([n.decode() for n in rows.names], name=vocabulary)
  frame = pd.DataFrame(values, index=index)
  return frame[rows.trained] if trained_only else frame


def metrics(workdir, split=None):
  """Returns metrics.jsonl as a DataFrame, all rows or those of one split."""
  frame = pd.DataFrame(record.read_metrics(pathlib.Path(workdir) / "metrics.jsonl"))
  if split is None or frame.empty:
    return frame
  return frame[frame["split"] == split].dropna(axis=1, how="all").reset_index(drop=True)


def per_user(workdir, split="test"):
  """Returns a DataFrame of per-user metrics, "CONTEXT/PROTOCOL/METRIC", by external user id."""
  path = pathlib.Path(workdir) / f"per_user_{split}.npz"
  if not path.is_file():
    raise errors.UserError(f"{path} is not there; did the run finish?")
  with np.load(path, allow_pickle=False) as stored:
    index = pd.Index([u.decode() for u in stored["external_users"]], name="user")
    return pd.DataFrame({k: stored[k] for k in stored.files if "/" in k}, index=index)


def runs(folder):
  """Returns one row per finished run below `folder`: facts of the run and its test metrics."""
  rows = []
  for path in sorted(pathlib.Path(folder).rglob("report.json")):
    report = _read_json(path)
    if not report.get("run", {}).get("finished"):
      continue
    values = {f"{context}/{protocol}/{name}": value
              for context, protocols in report["contexts"].items()
              for protocol, metric in protocols.items() for name, value in metric.items()}
    rows.append({"workdir": str(path.parent), **report["run"], "dataset": report["data"]["name"],
                 **report["speed"], **values})
  return pd.DataFrame(rows)


def difference(workdir, other):
  """Returns a DataFrame by leaf of how far two runs' parameters lie apart: max |a - b|, norms."""
  mine, theirs = params(workdir), params(other)
  rows = {}
  for name in dict.fromkeys([*mine, *theirs]):
    a, b = mine.get(name), theirs.get(name)
    alike = a is not None and b is not None and a.shape == b.shape
    rows[name] = {"max_difference": float(np.max(np.abs(a - b))) if alike else np.nan,
                  "norm": np.nan if a is None else float(np.linalg.norm(a)),
                  "other_norm": np.nan if b is None else float(np.linalg.norm(b))}
  return pd.DataFrame.from_dict(rows, orient="index")


def _read_json(path):
  try:
    return json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise errors.UserError(f"{path}: {error.strerror}; is it the folder of a run?") from error
