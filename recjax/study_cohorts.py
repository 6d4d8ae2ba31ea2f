"""Which jobs of a study are trained at once (recjax/cohort.py), and what that saved."""

from recjax import cohort_plan, errors, tables
from recjax import report as report_lib


def sizes(config):
  """Returns {run name: how many runs at most may be trained at once with it}; 1 is alone."""
  found = {}
  for name, run in (config.get("runs") or {}).items():
    size = run.get("cohort_size") or config.get("cohort_size") or 1
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
      raise errors.UserError(f"run {name!r}: cohort_size must be a number of runs, not {size!r}")
    found[name] = size
  return found


class Cohorts:
  """Decides which jobs are trained at once.

  Args:
    jobs: all jobs of this start, in their order.
    sizes: of `sizes`.
    time_alone: whether the first job of each kind is trained alone.
  """

  def __init__(self, jobs, sizes, *, time_alone):
    self._jobs, self._sizes, self._time_alone = {job.key: job for job in jobs}, sizes, time_alone
    several = max(sizes.values(), default=1) > 1
    self._kinds = {job.key: cohort_plan.key(job.config) for job in jobs} if several else {}

  def next(self, waiting):
    """Returns the first of `waiting` and those that are trained with it.

    That depends only on what is complete: a cohort that was cut is formed again.
    """
    first, size = waiting[0], self._sizes[waiting[0].name]
    ready = lambda job: not job.is_complete() and (
      all(self._jobs[key].is_complete() for key in job.sources))
    if size == 1 or not ready(first):
      return [first]
    kind = self._kinds[first.key]
    alike = [job for job in self._jobs.values() if self._kinds[job.key] == kind]
    if self._time_alone and len(alike) > 2 and not any(map(_was_alone, alike)):
      return [first]
    found = [job for job in alike
             if job in waiting and ready(job) and self._sizes[job.name] > 1]
    return sorted(found, key=lambda job: job.name != first.name)[:size]


def saved(jobs):
  """Returns [{runs, names, programs, each_s, alone_s}]: what training at once cost and saved.

  One entry for each kind of run that was trained at once: how many runs, their names, in how many
  programs, the seconds that a run took of its cohort's, and that one alone took (None: none did).
  """
  kinds = {}
  for job in jobs:
    if job.is_complete():
      kinds.setdefault(cohort_plan.key(job.config), []).append((job.name, _speed(job)))
  found = []
  for alike in kinds.values():
    together = [speed for _, speed in alike if "cohort" in speed]
    alone = [speed["wall_s"] for _, speed in alike if _of_one(speed)]
    if together:
      found.append({
        "runs": len(together), "names": list(dict.fromkeys(name for name, _ in alike)),
        "programs": round(sum(1 / speed["cohort"] for speed in together)),
        "each_s": sum(speed["wall_s"] for speed in together) / len(together),
        "alone_s": sum(alone) / len(alone) if alone else None})
  return found


def describe(entry):
  """Returns an entry of `saved` as a line of the report's notes."""
  line = (f"- {', '.join(entry['names'])}: {entry['runs']} runs trained at once in "
          f"{entry['programs']} programs, {tables.duration(entry['each_s'])} a run")
  if entry["alone_s"] is None:
    return f"{line}; none was timed alone."
  difference = entry["runs"] * (entry["alone_s"] - entry["each_s"])
  word = "saved" if difference >= 0 else "cost"
  return (f"{line}; alone one took {tables.duration(entry['alone_s'])}, so that it {word} "
          f"{tables.duration(abs(difference))} ({entry['alone_s'] / entry['each_s']:.2f} times as "
          "fast; the machine may have been busier at one time than at the other).")


def _speed(job):
  return report_lib.read_json(job.folder / "report.json").get("speed", {})


def _was_alone(job):
  return job.is_complete() and _of_one(_speed(job))


def _of_one(speed):
  return "wall_s" in speed and "cohort" not in speed
