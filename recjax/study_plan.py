"""What a study asks for: its config checked, and its runs laid out in the order to train them.

A study is a ConfigDict:

    title        heading of the report
    data_dir     folder of the prepared data sets
    prepare      command that prepares them, shown where one is missing; {data_dir} is filled in
    seeds        every run is trained once per seed
    overrides    ((dotted field, value), ...) for every run
    runs         {name: run}, where a run has
                   config        "configs/FILE.py:arg", found from here or beside the package
                   overrides     ((dotted field, value), ...), after the study's
                   source        run that it transfers from, which becomes transfer.checkpoint
                   mode          transfer.mode, where there is a source
                   seeds         instead of the study's
                   source_seeds  seeds of the source, one per seed of this run (default: the same)
    rows         ((label, run name), ...): the rows of the tables, in order
    baseline     the run that the others are compared with, one of the rows
    comparisons  ((label, run, run or "popularity"), ...): further paired tests
    headline     metrics of the main tables (default ndcg@10, recall@10, mrr)
    published    {row label: {"PROTOCOL/METRIC": percent}} to print beside ours
    bootstrap_draws, notes

Of these, title, data_dir, seeds, runs, rows and baseline are required, and of a run its config.
"""

import dataclasses
import os
import pathlib

from recjax import errors, results, spec
from recjax import report as report_lib
from recjax.data import sequences

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIRED = ("title", "seeds", "runs", "rows", "baseline")
STUDY_FIELDS = (*REQUIRED, "data_dir", "prepare", "overrides", "comparisons", "headline",
                "published", "bootstrap_draws", "notes")
RUN_FIELDS = ("config", "overrides", "source", "mode", "seeds", "source_seeds")
_ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Job:
  """One run to be trained: its folder and config, and the key of the job it transfers from."""
  name: str
  seed: int
  folder: pathlib.Path
  config: object
  source: tuple | None

  @property
  def key(self):
    return self.name, self.seed

  def is_complete(self):
    """Returns whether the folder holds the report of a finished run."""
    path = self.folder / "report.json"
    return path.is_file() and report_lib.read_json(path).get("run", {}).get("finished") is True


def check(config):
  """Raises `UserError` for the first thing in a study's config that cannot be meant."""
  _known("the study", config, STUDY_FIELDS)
  if missing := [name for name in REQUIRED if not config.get(name)]:
    raise errors.UserError(f"the study's config lacks {', '.join(missing)}")
  if not config.get("data_dir"):
    raise errors.UserError("--config.data_dir=DIR is required: where the prepared data sets are")
  _unique("seeds", config.seeds)
  for name, run in config.runs.items():
    _check_run(name, run, config)
  labels, shown = [label for label, _ in config.rows], [run for _, run in config.rows]
  _unique("labels of rows", labels)
  _among("rows", shown, config.runs)
  _among("baseline", [config.baseline], shown)
  for _, ours, theirs in config.get("comparisons") or ():
    _among("comparisons", [ours], shown)
    _among("comparisons", [theirs], [*shown, "popularity"])
  _among("published", config.get("published") or (), labels)
  ordered(config)


def ordered(config):
  """Returns the names of the runs, sources first, otherwise in the order of the rows."""
  order, path = [], []

  def visit(name):
    if name in order:
      return
    if name in path:
      raise errors.UserError(f"runs transfer in a circle: {' <- '.join([*path, name])}")
    path.append(name)
    if source := config.runs[name].get("source"):
      visit(source)
    path.pop()
    order.append(name)

  for name in [*(run for _, run in config.rows), *config.runs]:
    visit(name)
  return order


def plan(config, workdir):
  """Returns the `Job`s in the order to run: seed by seed, so that an early report has all rows."""
  waiting = [_job(config, pathlib.Path(workdir), name, seed)
             for seed in dict.fromkeys(s for name in config.runs for s in _seeds(config, name))
             for name in ordered(config) if seed in _seeds(config, name)]
  jobs, keys = [], set()
  while waiting:  # With source_seeds, the source may have a later seed than the run.
    job = next(job for job in waiting if job.source is None or job.source in keys)
    waiting.remove(job)
    jobs.append(job)
    keys.add(job.key)
  return jobs


def selected(jobs, only):
  """Returns the jobs of the runs named in `only` and what they transfer from; all without names."""
  _among("--only", only, [job.name for job in jobs])
  keep = {job.key for job in jobs if not only or job.name in only}
  for job in reversed(jobs):  # Sources come before what needs them, so one pass backwards will do.
    if job.key in keep and job.source:
      keep.add(job.source)
  return [job for job in jobs if job.key in keep]


def check_data(config, jobs):
  """Raises `UserError` with the command to type where a data set of the jobs is not prepared."""
  data_dir = os.fspath(config.data_dir)
  command = config.get("prepare") or (
    "python -m recjax.prepare --config=configs/data/NAME.py --raw_dir=RAW --data_dir={data_dir}")
  for name in sorted({job.config.dataset for job in jobs}):
    if not (pathlib.Path(data_dir) / name / "manifest.json").is_file():
      raise errors.UserError(f"no prepared data set {name!r} in {data_dir!r}; run: "
                             f"{command.replace('{data_dir}', data_dir)}")
    sequences.load(data_dir, name)  # Says so itself if it is damaged or of another version.


def check_stored(jobs):
  """Raises `UserError` if a job's folder holds a run of another config or of other data."""
  for job in jobs:
    if changed := changes(job):
      raise errors.UserError(
        f"{job.folder} was made with another config: {changed}; delete that folder to run it "
        "again, or choose another --workdir")


def changes(job):
  """Returns in words how the run in the job's folder differs from the job; "" if it does not."""
  path = job.folder / "config.json"
  if not path.is_file():
    return "its config.json is missing" if job.is_complete() else ""
  before = results.comparable(report_lib.read_json(path))
  now = results.comparable(results.plain(job.config))
  names = [name for name in sorted(before.keys() | now.keys())
           if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
  found = [f"{name} was {before.get(name, _ABSENT)!r}, is now {now.get(name, _ABSENT)!r}"
           for name in names] or _data_changes(job)
  more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
  return "; ".join(found[:3]) + more


def _data_changes(job):
  # data_dir may have moved: what counts is whether it holds the data that the run has seen.
  path = pathlib.Path(job.config.data_dir) / job.config.dataset / "manifest.json"
  if not (job.is_complete() and path.is_file()):
    return []
  before, now = report_lib.read_json(job.folder / "report.json")["data"], report_lib.read_json(path)
  return [f"{key} of the data set {job.config.dataset!r} was {before[key]!r}, is now {now[key]!r}"
          for key in sequences.IDENTITY if key in before and key in now and before[key] != now[key]]


def _check_run(name, run, config):
  where = f"run {name!r}"
  _known(where, run, RUN_FIELDS)
  if not run.get("config"):
    raise errors.UserError(f"{where} names no config")
  if "/" in name or name.startswith(".") or name == "popularity":
    raise errors.UserError(f"{where}: choose another name; it is also the name of a folder, and "
                           "\"popularity\" is taken")
  _unique(f"seeds of {where}", _seeds(config, name))
  source, mode = run.get("source"), run.get("mode")
  if bool(source) != (mode not in (None, "none")):
    raise errors.UserError(f"{where}: a source needs a transfer mode and a mode a source "
                           f"(source={source!r}, mode={mode!r})")
  if source:
    seeds, source_seeds = _seeds(config, name), _source_seeds(config, name)
    _among(f"source of {where}", [source], config.runs)
    if len(source_seeds) != len(seeds):
      raise errors.UserError(f"{where}: source_seeds {source_seeds} must be one each for {seeds}")
    _among(f"source_seeds of {where}", source_seeds, _seeds(config, source))


def _seeds(config, name):
  return tuple(config.runs[name].get("seeds") or config.seeds)


def _source_seeds(config, name):
  return tuple(config.runs[name].get("source_seeds") or _seeds(config, name))


def _job(config, workdir, name, seed):
  run, source = config.runs[name], None
  folder = lambda name, seed: workdir / "runs" / name / f"seed{seed}"
  try:
    values = {"seed": seed, "data_dir": os.fspath(config.data_dir),
              **dict(config.get("overrides") or ()), **dict(run.get("overrides") or ())}
    if run.get("source"):
      index = _seeds(config, name).index(seed)
      source = run.source, _source_seeds(config, name)[index]
      values |= {"transfer.mode": run.mode, "transfer.checkpoint": str(folder(*source))}
    run_config = spec.override(spec.load_config(_resolve(run.config)), values)
  except errors.UserError as error:
    raise errors.UserError(f"run {name!r}: {error}") from error
  except Exception as error:  # A config file is code and may raise anything.
    raise errors.UserError(
      f"run {name!r}: config {run.config} fails: {type(error).__name__}: {error}") from error
  return Job(name, seed, folder(name, seed), run_config, source)


def _resolve(config_spec):
  path, colon, arg = config_spec.partition(":")
  beside = ROOT / path
  return f"{beside}{colon}{arg}" if not os.path.isfile(path) and beside.is_file() else config_spec


def _known(where, values, names):
  for name in values:
    if name not in names:
      raise errors.UserError(f"{where}: unknown field {name!r}; there are {', '.join(names)}")


def _among(where, names, known):
  for name in names:
    if name not in known:
      raise errors.UserError(f"{where}: there is no {name!r}, only {', '.join(map(str, known))}")


def _unique(where, values):
  if len(set(values)) != len(values):
    raise errors.UserError(f"{where}: {tuple(values)} holds one of them twice")
