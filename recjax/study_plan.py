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
                   source        run that it transfers from (or several, with commas), which
                                 becomes transfer.checkpoint
                   mode          transfer.mode, where there is a source
                   seeds         instead of the study's
                   source_seeds  seeds of the sources, one per seed of this run (default: the same)
                   cohort_size   instead of the study's
    rows         ((label, run name), ...): the rows of the tables, in order
    baseline     the run that the other rows are compared with, one of the rows
    baselines    instead of it {run: its own baseline}; rows that it does not name have none
    tasks        ((title, "PROTOCOL/METRIC", (run, ...)), ...): rows that learn the same thing,
                 which is judged by that metric (default: all by the first headline metric). Each
                 task gets a table and a plot of quality beside trained parameters; of the rows'
                 labels, "TITLE: FAMILY: WAY", these show what comes after the title
    comparisons  ((label, run, run or reference), ...): further paired tests
    claims       ((text, ((run, run or reference), ...)[, "PROTOCOL/METRIC"]), ...): the text says
                 that the first of each pair is better; the report says whether that holds
                 (recjax/claims.py has the rule), by default for the first headline metric
    headline     metrics of the main tables (default ndcg@10, recall@10, mrr)
    published    {row label: {"PROTOCOL/METRIC": number}} to print beside ours: percent for shares,
                 as they are for errors
    data_rows    ((label, data set, {manifest key: published}), ...) to print beside ours, where
                 published is a text as printed ("622k"), None where it is not at hand, or
                 (published, why ours differs); "feature_coverage/NAME" is a key within a key
    cohort_size  how many runs that differ only in numbers are trained at once (default: 1)
    time_alone   True: the first of such runs is trained alone, to tell what the others saved
    bootstrap_draws, notes

Of these, title and data_dir are required, and of a run its config. A study has runs, then also
seeds, rows and one of baseline and baselines, or data_rows, or both. References are the rows that
every run of a kind brings along, as popularity.
"""

import dataclasses
import os
import pathlib
import re

from recjax import errors, results, spec
from recjax import report as report_lib
from recjax.data import kinds, sequences

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIRED = ("seeds", "runs", "rows")
STUDY_FIELDS = ("title", *REQUIRED, "baseline", "baselines", "data_dir", "prepare", "overrides",
                "tasks", "comparisons", "claims", "headline", "published", "data_rows",
                "bootstrap_draws", "notes", "cohort_size", "time_alone")
REFERENCES = (  # with values per user
  "popularity", "personal_frequency", "global_mean", "item_bias", "item_user_bias", "majority")
RUN_FIELDS = ("config", "overrides", "source", "mode", "seeds", "source_seeds", "cohort_size")
_ABSENT = "absent"
_PRINTED = re.compile(r"\d[\d,]*(\.\d+)?[kM]?")


@dataclasses.dataclass(frozen=True)
class Job:
  """One run to be trained: its folder and config, and the keys of the jobs it transfers from."""
  name: str
  seed: int
  folder: pathlib.Path
  config: object
  sources: tuple

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
  needed = ("title",) if config.get("data_rows") and not config.get("runs") else (
    "title", *REQUIRED, "baselines" if config.get("baselines") else "baseline")
  if missing := [name for name in needed if not config.get(name)]:
    raise errors.UserError(f"the study's config lacks {', '.join(missing)}")
  if not config.get("data_dir"):
    raise errors.UserError("--config.data_dir=DIR is required: where the prepared data sets are")
  _check_data_rows(config.get("data_rows") or ())
  if not config.get("runs"):
    return
  _unique("seeds", config.seeds)
  for name, run in config.runs.items():
    _check_run(name, run, config)
  labels, shown = [label for label, _ in config.rows], [run for _, run in config.rows]
  _unique("labels of rows", labels)
  _among("rows", shown, config.runs)
  if config.get("baseline"):
    _among("baseline", [config.baseline], shown)
  for run, baseline in (config.get("baselines") or {}).items():
    _among("baselines", [run, *([baseline] if baseline else [])], shown)
  _check_tasks(config.get("tasks") or (), shown)
  _check_pairs("comparisons", [pair[1:] for pair in config.get("comparisons") or ()], shown)
  for claim in config.get("claims") or ():
    _check_claim(claim, shown)
  _among("published", config.get("published") or (), labels)
  _check_names("published", [name for row in (config.get("published") or {}).values()
                             for name in row])
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
    for source in _sources(config.runs[name]):
      visit(source)
    path.pop()
    order.append(name)

  for name in [*(run for _, run in config.get("rows") or ()), *(config.get("runs") or ())]:
    visit(name)
  return order


def plan(config, workdir):
  """Returns the `Job`s in the order to run: seed by seed, so that an early report has all rows."""
  runs = config.get("runs") or ()
  waiting = [_job(config, pathlib.Path(workdir), name, seed)
             for seed in dict.fromkeys(s for name in runs for s in _seeds(config, name))
             for name in ordered(config) if seed in _seeds(config, name)]
  jobs, keys = [], set()
  while waiting:  # With source_seeds, the source may have a later seed than the run.
    job = next(job for job in waiting if keys.issuperset(job.sources))
    waiting.remove(job)
    jobs.append(job)
    keys.add(job.key)
  return jobs


def selected(jobs, only):
  """Returns the jobs of the runs named in `only` and what they transfer from; all without names."""
  _among("--only", only, [job.name for job in jobs])
  keep = {job.key for job in jobs if not only or job.name in only}
  for job in reversed(jobs):  # Sources come before what needs them, so one pass backwards will do.
    if job.key in keep:
      keep.update(job.sources)
  return [job for job in jobs if job.key in keep]


def check_data(config, jobs):
  """Raises `UserError` with the command to type where a data set of the study is not prepared."""
  data_dir = os.fspath(config.data_dir)
  command = config.get("prepare") or (
    "python -m recjax.prepare --config=configs/data/NAME.py --raw_dir=RAW --data_dir={data_dir}")
  names = {job.config.dataset for job in jobs} | {row[1] for row in config.get("data_rows") or ()}
  for name in sorted(names):
    if not (pathlib.Path(data_dir) / name / "manifest.json").is_file():
      raise errors.UserError(f"no prepared data set {name!r} in {data_dir!r}; run: "
                             f"{command.replace('{data_dir}', data_dir)}")
    kinds.load(data_dir, name)  # Says so itself if it is damaged or of another version.


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
  if "/" in name or name.startswith(".") or name in (*REFERENCES, "chance"):
    raise errors.UserError(f"{where}: choose another name; it is also the name of a folder, and "
                           f"{', '.join((*REFERENCES, 'chance'))} are taken")
  _unique(f"seeds of {where}", _seeds(config, name))
  source, mode = run.get("source"), run.get("mode")
  if bool(source) != (mode not in (None, "none")):
    raise errors.UserError(f"{where}: a source needs a transfer mode and a mode a source "
                           f"(source={source!r}, mode={mode!r})")
  if source:
    seeds, source_seeds = _seeds(config, name), _source_seeds(config, name)
    _among(f"source of {where}", _sources(run), config.runs)
    if len(source_seeds) != len(seeds):
      raise errors.UserError(f"{where}: source_seeds {source_seeds} must be one each for {seeds}")
    for source in _sources(run):
      _among(f"source_seeds of {where}", source_seeds, _seeds(config, source))


def _check_pairs(where, pairs, shown):
  for ours, theirs in pairs:
    _among(where, [ours], shown)
    _among(where, [theirs], [*shown, *REFERENCES])


def _check_claim(claim, shown):
  if not (2 <= len(claim) <= 3 and isinstance(claim[0], str) and len(claim[1])
          and all(len(pair) == 2 and not isinstance(pair, str) for pair in claim[1])):
    raise errors.UserError("claims: each is (text, ((run, run), ...)) or that and "
                           f"\"PROTOCOL/METRIC\", not {claim!r}")
  _check_pairs(f"claim {claim[0]!r}", claim[1], shown)
  _check_names(f"claim {claim[0]!r}", claim[2:])


def _check_tasks(tasks, shown):
  for task in tasks:
    if len(task) != 3 or isinstance(task, str) or isinstance(task[2], str):
      raise errors.UserError("tasks: each is (title, \"PROTOCOL/METRIC\", (run, ...)), not "
                             f"{task!r}")
    _among(f"task {task[0]!r}", task[2], shown)
    _check_names(f"task {task[0]!r}", [task[1]])
  _unique("titles of tasks", [title for title, *_ in tasks])
  if tasks:
    _among("rows without a task", shown, [run for *_, runs in tasks for run in runs])
  _unique("rows of all tasks", [run for *_, runs in tasks for run in runs])


def _check_names(where, names):
  for name in names:
    if name.count("/") != 1 or not all(name.split("/")):
      raise errors.UserError(f"{where}: {name!r} is not \"PROTOCOL/METRIC\"")


def _check_data_rows(rows):
  for row in rows:
    if len(row) != 3:
      raise errors.UserError(
        f"data_rows: each is (label, data set, {{manifest key: published}}), not {row!r}")
    for key, given in dict(row[2]).items():
      printed = given[0] if isinstance(given, (tuple, list)) else given
      if printed is not None and not _PRINTED.fullmatch(str(printed)):
        raise errors.UserError(f"data_rows: {row[0]}, {key}: {printed!r} is no printed number, as "
                               "\"6,040\", \"97.9\" or \"622k\"")


def _seeds(config, name):
  return tuple(config.runs[name].get("seeds") or config.seeds)


def _sources(run):
  return tuple(run["source"].split(",")) if run.get("source") else ()


def _source_seeds(config, name):
  return tuple(config.runs[name].get("source_seeds") or _seeds(config, name))


def _job(config, workdir, name, seed):
  run, sources = config.runs[name], ()
  folder = lambda name, seed: workdir / "runs" / name / f"seed{seed}"
  try:
    values = {"seed": seed, "data_dir": os.fspath(config.data_dir),
              **dict(config.get("overrides") or ()), **dict(run.get("overrides") or ())}
    if run.get("source"):
      index = _seeds(config, name).index(seed)
      sources = tuple((source, _source_seeds(config, name)[index]) for source in _sources(run))
      values |= {"transfer.mode": run.mode,
                 "transfer.checkpoint": ",".join(str(folder(*source)) for source in sources)}
    run_config = spec.override(spec.load_config(_resolve(run.config)), values)
  except errors.UserError as error:
    raise errors.UserError(f"run {name!r}: {error}") from error
  except Exception as error:  # A config file is code and may raise anything.
    raise errors.UserError(
      f"run {name!r}: config {run.config} fails: {type(error).__name__}: {error}") from error
  return Job(name, seed, folder(name, seed), run_config, sources)


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
