"""Trains one run: set up, data, model, optimizer, restore, evaluators, loop, report.

    python -m recjax.train --config=configs/NAME.py[:arg] --workdir=W --config.data_dir=DIR

How a run starts, in this order of cases:
  1. W holds the report of a finished run: nothing is left to do, it is returned.
  2. W holds checkpoints: the newest sound one is resumed; a transfer is not repeated.
  3. the config names a source checkpoint: fresh parameters, then the transfer, then the optimizer.
  4. otherwise: fresh parameters.

`run` is the story from top to bottom. It is a generator that asks for its steps to be taken, so
that runs which differ only in numbers can take them in one program (recjax/cohort.py).
"""

import collections
import dataclasses
import functools
import pathlib

import jax
import numpy as np
from absl import flags

from recjax import (
  checkpoint,
  cli,
  errors,
  experiment,
  optim,
  partition,
  record,
  results,
  task_trees,
  transfer,
  trees,
)
from recjax import clock as clock_lib
from recjax import setting as setting_lib
from recjax.evaluators import metrics

FLAGS = flags.FLAGS
IN_FLIGHT = 2  # dispatches not waited for; simulated devices abort with many more
DISPATCH_S = 0.5  # steps are dispatched in groups of about this long: what a SIGTERM waits for


@dataclasses.dataclass
class Progress:
  """What a resumed run must know beside the TrainState; saved with every checkpoint."""
  best_step: int | None = None
  best_value: float | None = None
  worse: int = 0  # validations since the best one
  stopped: str = ""  # why training ended before its last step
  train_s: float = 0.0
  examples: int = 0
  logged_s: float = 0.0  # train_s at the last row of metrics.jsonl
  sums: dict = dataclasses.field(default_factory=dict)  # of the steps since that row
  orders: list = dataclasses.field(default_factory=list)  # [first step, order of the feed]

  def follow(self, step, order):
    """Notes what the order of batches depends on; says so where that is not what it was."""
    if self.orders and self.orders[-1][1] == order:
      return
    if self.orders:
      record.warn(f"fed by {self.orders[-1][1]} until step {step}, from now on by {order}: batches "
                  "come in another order, and of the users of this epoch some come twice and "
                  "others not. The run goes on, but is not the one that would not have stopped")
    self.orders.append([step, order])

  def add(self, sums):
    """Adds the metrics of a group of steps."""
    self.examples += sums["examples"]
    for name, value in sums.items():
      self.sums[name] = self.sums.get(name, 0) + value

  def update(self, step, value, patience, *, smaller=False):
    """Returns whether `value` is the best so far; asks to stop after `patience` that are not."""
    better = lambda a, b: a < b if smaller else a > b
    if self.best_value is None or better(value, self.best_value):
      self.best_step, self.best_value, self.worse = step, value, 0
      return True
    self.worse += 1
    if patience and self.worse >= patience:
      self.stopped = f"no better validation since step {self.best_step}"
    return False


def train_and_evaluate(config, workdir):
  """Trains to the config's end, evaluates the best checkpoint on test, returns the report.

  Raises:
    UserError: the config, the data or the stored run do not fit, or training diverged.
    Preempted: a SIGTERM came; the state is saved and the same call goes on from there.
  """
  clock = clock_lib.Clock()
  if (stored := results.finished(workdir)) is not None:
    results.check_same_config(workdir, config)
    return stored
  partition.initialize(config.num_devices)
  partition.enable_compilation_cache()
  exp = experiment.build(config)
  if not exp.objective.trains:
    return fit(config, pathlib.Path(workdir), exp, clock)
  setting = setting_lib.set_up(exp)
  story = run(config, workdir, setting, clock)
  start = next(story)
  state, step = start.state, int(start.state.step)
  first_step, group = step, 1

  # The step is compiled apart from the time that counts as training.
  tables, _ = setting.feed.at(step)
  with clock.measure("compile"):
    train_steps = partition.compile_steps(start.train_steps.lower(state, tables, np.int32(1)))
  with partition.Preemption() as preemption:
    wanted = next(story)
    while wanted:
      with clock.measure("train"):
        tables, served = setting.feed.at(step)
        count = min(wanted, group, served)
        state, sums = train_steps(state, tables, np.int32(count))
        step += count
        leave = preemption.requested(step)
      get_sums = functools.partial(jax.device_get, sums)
      wanted = story.send(setting_lib.Taken(count, get_sums, lambda x=state: x, leave))
      if jax.process_count() == 1:  # Hosts must agree on the groups; only a lone one adapts them.
        group = group_size(step - first_step, clock.total("train"))
  next(story)
  return finish(story, {})


def finish(story, facts):
  """Returns the report of a run that is evaluated; `facts` are added to its "speed"."""
  try:
    story.send(facts)
  except StopIteration as end:
    return end.value
  raise RuntimeError("the run goes on after its end")


def run(config, workdir, setting, clock):
  """A run, as a generator: returns its report, or raises what `train_and_evaluate` does.

  Yields a Start; then how many steps it wants at most, to be sent a Taken of some of them, until
  that is 0; then, once it is evaluated, None, to be sent facts for "speed".

  Args:
    config: of the run.
    workdir: its folder.
    setting: of `setting.set_up`, for a config that differs from this one in numbers at most.
    clock: Clock whose "train" counts the steps that others take for the run.
  """
  exp, workdir = setting.exp, pathlib.Path(workdir)
  total_steps, cadence = setting.total_steps, setting.cadence
  smaller = metrics.is_error(config.eval.metric)

  # Parameters, what crosses from a source run, optimizer.
  resuming = checkpoint.has_checkpoint(workdir)
  if resuming:
    results.check_same_config(workdir, config)
  params, tx, schedule, trainable = setting.fresh(config)
  crossing = task = None
  if config.transfer.mode != "none" and not config.transfer.checkpoint:
    raise errors.UserError(f"transfer.mode={config.transfer.mode} needs transfer.checkpoint, the "
                           "--workdir of the source run")
  if config.transfer.checkpoint and (not resuming or config.transfer.get("task_tree")):
    params, crossing = transfer_from(config.transfer, params, exp, trainable)
  if config.transfer.get("task_tree"):
    task = task_trees.of(crossing)
  train_steps = setting.make_steps(tx, trainable)

  # From here on the run writes: what a user can get wrong was checked above.
  results.start(workdir, config, crossing, resuming=resuming, write=partition.is_first())
  checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep, split=exp.split,
                                       task=task)
  progress = Progress()
  origin = {"rows": exp.rows(task and task.leaves), "data": exp.data.identity()}
  stored_config, found = results.plain(config), None
  if resuming:
    found = checkpoints.restore_latest(exp.abstract_state(params, tx, config.seed), **origin,
                                       report=record.warn, frozen=task and exp.place(params))
    if found is None and config.transfer.checkpoint:  # All damaged: start as the first time.
      params, crossing = transfer_from(config.transfer, params, exp, trainable)
  if found is None:
    state = exp.create_state(params, tx, config.seed)
  else:
    state, host = found
    progress = Progress(**host)
  step = int(state.step)
  progress.follow(step, setting.feed.order)
  recorder = record.Recorder(workdir, start_step=step, total_steps=total_steps,
                             active=partition.is_first(), tensorboard=config.log.tensorboard)
  shapes = exp.params_shapes() if exp.split else jax.eval_shape(lambda x: x, params)
  del params  # the state has its own
  announce(recorder, exp, shapes, trainable, crossing, step)

  with clock.measure("compile"):
    setting.norm(state.params)
  yield setting_lib.Start(state, train_steps)

  def save():
    progress.train_s += clock.lap("train")
    checkpoints.save(state, **origin, config=stored_config, best_step=progress.best_step,
                     host=dataclasses.asdict(progress))

  # The loop: groups of steps that end where something is due, waited for a few groups later.
  waiting = collections.deque()
  def collect(keep):
    while len(waiting) > keep:
      progress.add(fetch_sums(*waiting.popleft(), checkpoints))
    if not keep:  # Something may be evaluated or saved now, and the last update can overflow too.
      check_finite(step, "parameter norm", setting.norm(state.params), checkpoints)

  while step < total_steps and not progress.stopped:
    due = min([total_steps] + [(step // n + 1) * n for n in cadence.values()])
    taken = yield due - step
    with clock.measure("train"):
      waiting.append((step, taken.get_sums))
      step += taken.count
      recorder.tick(step)
      if step == due or taken.leave:
        state = taken.get_state()
      collect(keep=0 if step == due or taken.leave else IN_FLIGHT)
    at = {name: step % n == 0 or step == total_steps for name, n in cadence.items()}
    if at["log"]:
      log(recorder, step, clock, progress, schedule)
    improved = False
    if at["eval"]:
      with clock.measure("evaluate"):
        value = validate(recorder, step, setting.validation, exp.predict, state.params,
                         config.eval.metric)
      improved = progress.update(step, value, config.eval.patience, smaller=smaller)
    if improved or progress.stopped or at["checkpoint"] or taken.leave:
      save()
    if taken.leave and step < total_steps and not progress.stopped:
      checkpoints.close()
      recorder.close()
      raise errors.Preempted(f"saved step {step} of {total_steps} in {workdir}; run the same "
                             "command to go on")
  checkpoints.wait()
  yield 0

  # The report: the best checkpoint on the test split, beside popularity and chance.
  if progress.stopped:
    recorder.say(f"stopped at step {step}: {progress.stopped}")
  best = state.params
  if progress.best_step not in (None, step):
    best = checkpoints.restore_params(progress.best_step, state.params)
  with clock.measure("evaluate"):
    report = results.evaluate(exp, setting.test, best, workdir, write=partition.is_first())
  trained = {leaf: x for leaf, x in trees.flatten(shapes).items() if trainable[leaf]}
  report["run"].update(
    steps=step, total_steps=total_steps, best_step=progress.best_step or step,
    best_validation=progress.best_value, stopped=progress.stopped, parameters=trees.count(shapes),
    trained_parameters=trees.count(trained), trained_bytes=trees.nbytes(trained))
  if len(progress.orders) > 1:
    report["run"]["orders"] = progress.orders
  facts = yield
  report["speed"] = speed(exp, clock, examples=progress.examples, train_s=progress.train_s) | facts
  for context, table in report["contexts"].items():
    for protocol, values in table.items():
      recorder.write(step, "test", {f"{context}/{protocol}/{m}": v for m, v in values.items()})
  checkpoints.close()
  recorder.close()
  results.finish(workdir, report, write=partition.is_first())
  return report


def fit(config, workdir, exp, clock):
  """Returns the report of a model that is computed from the data at once, without steps."""
  if config.transfer.checkpoint:
    raise errors.UserError(f"model.name={config.model.name} is not trained; it takes no transfer")
  test = results.make_evaluator(exp, "test")
  results.start(workdir, config, None, resuming=False, write=partition.is_first())
  with clock.measure("train"):
    params = exp.init_params(config.seed)
  state = exp.create_state(params, optim.none(), config.seed)
  checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
  checkpoints.save(state, rows=exp.rows(), data=exp.data.identity(), config=results.plain(config),
                   best_step=0, host={})
  checkpoints.wait()
  checkpoints.close()
  with clock.measure("evaluate"):
    report = results.evaluate(exp, test, state.params, workdir, write=partition.is_first())
  report["run"].update(steps=0, total_steps=0, best_step=0, parameters=trees.count(params),
                       trained_parameters=0)
  report["speed"] = speed(exp, clock, examples=0, train_s=clock.total("train"))
  results.finish(workdir, report, write=partition.is_first())
  return report


def speed(exp, clock, *, examples, train_s):
  """Returns the report's account of time and memory."""
  return {"examples_per_s": examples / max(train_s, 1e-9), "train_s": train_s,
          "compile_s": clock.total("compile"), "evaluate_s": clock.total("evaluate"),
          "wall_s": clock.wall(), "peak_memory_gb": partition.peak_memory_gb(),
          "devices": exp.mesh.devices.size, "platform": jax.devices()[0].platform}


def transfer_from(config, params, exp, trainable):
  """Returns (parameters with what crosses from the source run, the restore report).

  Args:
    config: `config.transfer`.
    params: the target's fresh parameters.
    exp: the target's Experiment.
    trainable: {leaf name: bool}, for the report.
  """
  merged, plan, readers = exp.carry(config, params)
  for line in transfer.frozen_as_started(plan, trainable, exp.needed_rows()):
    record.warn(line)
  steps = [reader.step for reader in readers]
  report = {"source": config.checkpoint, "source_step": steps[0] if len(steps) == 1 else steps,
            "backbone": readers[0].backbone(transfer.sources(plan)) if len(steps) == 1 else None,
            "leaves": [dict(entry.describe(), trainable=trainable[entry.target]) for entry in plan],
            "table": transfer.describe(plan, trainable), "mode": config.mode}
  return merged, report


def announce(recorder, exp, params, trainable, crossing, step):
  """Says what is about to be trained: data, parameters, what was transferred or resumed."""
  if exp.data.manifest.get("generated"):
    recorder.say(f"{exp.data.name}: GENERATED data; its numbers say nothing about real users")
  recorder.say(f"{exp.data.name}: {exp.size()}; {exp.mesh.devices.size} devices")
  for line in exp.describe_features():
    recorder.say(line)
  recorder.say(trees.overview(params, trainable))
  if crossing is not None:
    recorder.say(f"transfer from {crossing['source']} step {crossing['source_step']}, mode "
                 f"{crossing['mode']}:\n{crossing['table']}")
  if step:
    recorder.say(f"resumed at step {step}")


def fetch_sums(first_step, get_sums, checkpoints):
  """Returns the metrics of a group of steps as Python numbers; raises where training diverged."""
  sums = {name: value.item() for name, value in get_sums().items()}
  check_finite(first_step, "loss", sums["loss"], checkpoints)
  check_finite(first_step, "gradient norm", sums["grad_norm"], checkpoints)
  return sums


def check_finite(step, name, value, checkpoints):
  """Raises UserError where `value` shows that training has diverged."""
  if not np.isfinite(value):
    kept = checkpoints.steps()
    raise errors.UserError(
      f"training diverged ({name} {value}) after step {step}; the newest checkpoint is of step "
      f"{kept[0] if kept else 'none'}. Lower optim.lr or set optim.clip_norm, in a new --workdir")


def group_size(steps, seconds):
  """Returns how many steps make up a dispatch, after `steps` took `seconds`."""
  return max(int(DISPATCH_S * steps / max(seconds, 1e-9)), 1)


def log(recorder, step, clock, progress, schedule):
  """Writes the mean loss, the rate and the rest since the last row, across interruptions."""
  sums = progress.sums
  progress.train_s += clock.lap("train")
  seconds, progress.logged_s = progress.train_s - progress.logged_s, progress.train_s
  rate = sums["examples"] / max(seconds, 1e-9)
  loss = sums["loss"] / max(sums["weight"], 1)
  parts = {}  # of a mix of objectives, whose own labels are rows
  for name in (name for name in sums if "/" in name):
    part, _, what = name.partition("/")
    labels = sums[f"{part}/weight"]
    parts |= ({f"{part}/labels": labels} if what == "weight" else
              {name: sums[name] / max(labels, 1)})
  recorder.write(step, "train", {
    "loss": loss, "learning_rate": float(schedule(step - 1)), "examples_per_s": rate,
    "tokens_per_s": sums["tokens"] / max(seconds, 1e-9), "labels": sums["weight"],
    "labels_dropped": sums["dropped"], **parts})
  recorder.progress(step, {"loss": loss}, examples_per_s=rate)
  sums.clear()


def validate(recorder, step, evaluator, predict, params, metric):
  """Writes the validation metrics of `params` and returns the deciding one."""
  try:
    means = evaluator.run(predict, params).means()["train"]
  except FloatingPointError as error:  # Finite parameters whose scores overflow.
    raise errors.UserError(f"training diverged by step {step}: {error}. Lower optim.lr or set "
                           "optim.clip_norm, in a new --workdir") from error
  values = {f"{protocol}/{name}": v for protocol, table in means.items()
            for name, v in table.items()}
  recorder.write(step, "val", values)
  recorder.say(f"step {step}: validation {metric} {values[metric]:.4f}")
  return values[metric]


def main(argv):
  del argv
  cli.require(FLAGS, "config", "workdir")
  print(results.summary(train_and_evaluate(FLAGS.config, FLAGS.workdir)))


if __name__ == "__main__":
  cli.define_config("config")
  flags.DEFINE_string("workdir", None, "Folder of the run; the same folder resumes it.")
  cli.run(main)
