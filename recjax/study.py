"""Runs a graph of dependent runs, one after the other, and writes one report over them.

    python -m recjax.study --config=configs/studies/NAME.py[:arg] --workdir=W --config.data_dir=DIR

Run NAME of seed K lives in W/runs/NAME/seedK. Started again, a study skips complete runs and
resumes cut ones; a failed run is reported and blocks only what transfers from it. What a study's
config holds is listed in recjax/study_plan.py.

With `cohort_size` runs that differ only in numbers (seed, learning rate, what they start from) are
trained at once, see recjax/cohort.py; with `time_alone` the first of each kind is trained alone, so
that the report can say what that saved.
"""

import gc
import os
import pathlib
import shlex
import sys
import time
import traceback

from absl import flags

from recjax import cli, errors, record, study_cohorts, study_plan, tables
from recjax import report as report_lib

FLAGS = flags.FLAGS


def run_study(config, workdir, *, train=None, train_together=None, only=(), report_only=False,
              command=""):
  """Trains what is not complete yet, writes the report and returns it.

  `report["finished"]` says whether every run of the study is complete, and `report["states"]` how
  each one stands.

  Args:
    config: ConfigDict, see recjax/study_plan.py.
    workdir: folder of the report and of runs/.
    train: `train(config, workdir)` of one run (default: recjax.train.train_and_evaluate).
    train_together: `train_together(configs, workdirs)` (default: recjax.cohort.train_and_evaluate).
    only: names of runs; these and what they transfer from are trained, nothing else.
    report_only: trains nothing and reports what is complete.
    command: what was typed, for the report.

  Raises:
    UserError: the study is not well-formed, data are missing, or a run in `workdir` was made with
      another config. All of it is found before anything runs.
    Preempted: passed on from a run, or a SIGTERM came as one ended; the same call goes on.
  """
  workdir = pathlib.Path(workdir)
  study_plan.check(config)
  sizes = study_cohorts.sizes(config)
  jobs = study_plan.plan(config, workdir)
  wanted = study_plan.selected(jobs, only)
  status = workdir / "status.json"
  earlier = report_lib.read_json(status) if status.is_file() else {}
  past = {(s["name"], s["seed"]): s for s in earlier.get("states", ())}
  fresh = {}
  if report_only:
    command = earlier.get("command") or command
  else:
    study_plan.check_data(config, wanted)
    study_plan.check_stored(wanted)
    workdir.mkdir(parents=True, exist_ok=True)
    record.write_json(workdir / "config.json", config.to_dict())
    choose = study_cohorts.Cohorts(wanted, sizes, time_alone=bool(config.get("time_alone")))
    fresh = _run_all(wanted, choose, train or _trainer(), train_together or _together,
                     lambda states: record.write_json(status, {
                       "command": command, "states": list({**past, **states}.values())}))
  metrics = report_lib.needed_metrics(config)
  finished, states = _collect(jobs, metrics, {**past, **fresh}, fresh)
  if report_only and jobs and not finished:
    raise errors.UserError(f"no run in {os.fspath(workdir / 'runs')!r} is complete; "
                           "run the study without --report_only")
  result = report_lib.build(config, finished, states=states, command=command)
  result["cohorts"] = study_cohorts.saved(jobs)
  lines = [study_cohorts.describe(entry) for entry in result["cohorts"]]
  result["notes"] = "\n".join(filter(None, [result["notes"].rstrip(), *lines]))
  report_lib.write(workdir, result)
  return result


def _run_all(jobs, cohorts, train, together, save):
  """Returns {job key: state}; saves them and prints a line as each run ends."""
  from recjax import partition  # Here, because a report of finished runs needs no jax.

  states, waiting = {}, list(jobs)
  names = {job.key: f"[{number}/{len(jobs)}] {job.name} seed {job.seed}"
           for number, job in enumerate(jobs, 1)}
  with partition.Preemption() as preemption:
    while waiting:
      if preemption.asked:
        raise errors.Preempted(f"{len(waiting)} runs are left; run the same command to go on")
      chosen = cohorts.next(waiting)
      done = _run_together(chosen, together, names) if len(chosen) > 1 else {}
      for job in chosen:
        waiting.remove(job)
        where = names[job.key]
        states[job.key] = state = done.get(job.key) or _run_one(job, states, train, where)
        cached = " (cached)" if state.get("cached") else ""
        took = f" in {tables.duration(state['wall_s'])}" if state["wall_s"] is not None else ""
        reason = f": {state['error']}" if state.get("error") else ""
        print(f"{where}: {state['state']}{took}{cached}{reason}", flush=True)
        save(states)
      gc.collect()  # A run's arrays sit in cycles with its compiled steps; the next needs memory.
  return states


def _run_together(jobs, together, names):
  """Returns {job key: state} of jobs trained at once; who is not in it is to be trained alone."""
  for job in jobs:
    print(f"{names[job.key]}: running with {len(jobs) - 1} others", flush=True)
  start = time.monotonic()
  try:
    found = together([job.config for job in jobs], [str(job.folder) for job in jobs])
  except errors.Preempted:
    raise
  except Exception as error:  # What one of them cannot do, the others may.
    record.warn(f"training {len(jobs)} runs at once failed ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); they are trained one by one")
    return {}
  each_s, states = (time.monotonic() - start) / len(jobs), {}
  for job, report in zip(jobs, found, strict=True):
    state = {"name": job.name, "seed": job.seed, "wall_s": each_s}
    if isinstance(report, errors.UserError):
      states[job.key] = state | {"state": "failed", "error": " ".join(str(report).split())}
    elif job.is_complete():
      states[job.key] = state | {"state": "done"}
  return states


def _run_one(job, states, train, where):
  state = {"name": job.name, "seed": job.seed, "wall_s": None}
  for name, seed in (key for key in job.sources if states[key]["state"] != "done"):
    return state | {"state": "blocked", "error": f"{name} seed {seed} is not done"}
  if job.is_complete():
    wall_s = report_lib.read_json(job.folder / "report.json").get("speed", {}).get("wall_s")
    return state | {"state": "done", "wall_s": wall_s, "cached": True}
  print(f"{where}: running", flush=True)
  start = time.monotonic()
  try:
    train(job.config, str(job.folder))
    if not job.is_complete():
      raise RuntimeError("the run ended without a finished report.json")
  except errors.Preempted:
    raise
  except Exception as error:  # One broken run must not cost the others of the night.
    kind = "" if isinstance(error, errors.UserError) else f"{type(error).__name__}: "
    return state | {"state": "failed", "error": " ".join(f"{kind}{error}".split()),
                    "traceback": traceback.format_exc(), "wall_s": time.monotonic() - start}
  return state | {"state": "done", "wall_s": time.monotonic() - start}


def _collect(jobs, metrics, known, fresh):
  """Returns ({run name: [finished Run, ...]}, [state of every job])."""
  finished, states = {}, []
  for job in jobs:
    state = {**known.get(job.key, {}), "name": job.name, "seed": job.seed}
    state.pop("traceback", None)
    if job.is_complete():
      run = report_lib.load_run(job.folder, job.name, job.seed, metrics=metrics)
      finished.setdefault(job.name, []).append(run)
      # What earlier commands made was not checked above, and a report of it must say so.
      changed = "" if job.key in fresh else study_plan.changes(job)
      note = f"made with another config than the study's: {changed}" if changed else None
      state |= {"state": "done", "error": None, "note": note}
    elif state.get("state") in (None, "done"):
      state["state"] = "unfinished" if job.folder.exists() else "not run"
    states.append(state)
  return finished, states


def _trainer():
  from recjax import train  # Here, because a report of finished runs needs no jax.

  return train.train_and_evaluate


def _together(configs, workdirs):
  from recjax import cohort

  return cohort.train_and_evaluate(configs, workdirs)


def main(argv):
  del argv
  cli.require(FLAGS, "config", "workdir")
  report = run_study(
    FLAGS.config, FLAGS.workdir, only=tuple(FLAGS.only), report_only=FLAGS.report_only,
    command=shlex.join(["python", "-m", "recjax.study", *sys.argv[1:]]))
  print(f"\n{tables.headline(report)}\n\nreport: {os.path.join(FLAGS.workdir, 'report.md')}")
  bad = [s for s in report["states"] if s["state"] in ("failed", "blocked")]
  if bad and not FLAGS.report_only:
    which = ", ".join(f"{s['name']} seed {s['seed']} ({s['state']})" for s in bad)
    print(f"error: the study is not complete: {which}; see {FLAGS.workdir}/status.json",
          file=sys.stderr)
    sys.exit(1)


def define_flags():
  """Defines the command's flags; not at import, as recjax.train has flags of the same names."""
  cli.define_config("config")
  flags.DEFINE_string("workdir", None, "Folder of the report and of runs/NAME/seedK.")
  flags.DEFINE_list("only", [], "Train only these runs, and what they transfer from.")
  flags.DEFINE_bool("report_only", False, "Train nothing; write the report of what is complete.")


if __name__ == "__main__":
  define_flags()
  cli.run(main)
