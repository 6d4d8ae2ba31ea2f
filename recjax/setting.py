"""What a config settles before a run's first parameter: examples, durations, evaluators, steps.

Runs that differ only in numbers share it, and can have their steps taken together; `Start` and
`Taken` are what they say to whoever takes them.
"""

import dataclasses
import functools

import jax

from recjax import errors, experiment, optim, partition, results, sparse, spec, trees
from recjax import feed as feed_lib
from recjax import state as state_lib
from recjax import step as step_lib


@dataclasses.dataclass(frozen=True)
class Setting:
  """What runs that differ only in numbers have in common."""
  exp: experiment.Experiment
  feed: object  # of `feed.make`
  duration: dict  # what `spec.steps` must know
  total_steps: int
  cadence: dict  # {log, eval, checkpoint: every how many steps}
  validation: object
  test: object
  init_params: object  # seed -> fresh parameters
  norm: object  # parameters -> their L2 norm, jitted

  def fresh(self, config):
    """Returns (parameters, tx, schedule, {leaf name: bool, whether it is trained}) of a run.

    What transfer mode "patch" freezes starts the same in all runs, rows that the source never
    trained included: the backbone is one, whatever a task's seed.
    """
    params = self.init_params(config.seed)
    tx, schedule, trainable = self.make_optimizer(config, params)
    if config.transfer.mode == "patch" and config.seed:
      backbone = trees.flatten(self.init_params(0))
      params = trees.map_names(lambda leaf, x: x if trainable[leaf] else backbone[leaf], params)
    return params, tx, schedule, trainable

  def make_optimizer(self, config, params, *, part=None):
    """Returns (tx, schedule, {leaf name: bool, whether it is trained}) of a run's `config`.

    Args:
      config: of the run.
      params: its parameters.
      part: those that `tx` is for; all by default.
    """
    plan = make_plan(self.exp, config, params)
    schedule = optim.make_schedule(config.optim, total_steps=self.total_steps, **self.duration)
    updates = self.exp.objective.updates  # of a step; the schedule counts steps
    tx = optim.make(config.optim, params if part is None else part, plan=plan,
                    schedule=lambda n: schedule(n // updates))
    return tx, schedule, {leaf: not options["freeze"] for leaf, options in plan.items()}

  def make_steps(self, tx, trainable, *, apply_fn=None):
    """Returns the jitted train steps; see `step.make_train_steps`.

    Args:
      tx: optimizer of `recjax.optim`.
      trainable: {leaf name: bool}.
      apply_fn: instead of the experiment's, of what `tx` is for.
    """
    exp, feed, config = self.exp, self.feed, self.exp.config
    size, devices = config.batch_size, partition.data_devices(exp.mesh)
    micro = min(config.micro_batch or size, max(size // devices, 1))
    if size % (micro * devices):
      raise errors.UserError(f"batch_size={size} must be a multiple of micro_batch={micro} times "
                             f"the {devices} devices that a batch is split over")
    together = exp.objective.rows_together or size
    if micro % together:
      raise errors.UserError(
        f"objective.name={config.objective.name} compares {together} users of a batch with each "
        f"other, and parts of {micro} (batch_size={size}, {devices} devices) cut them apart; set "
        "its group to a divisor of the parts, or micro_batch=None and num_devices=1")
    room = functools.partial(exp.objective.capacity, feed.lengths, rows=micro)
    rooms = {exp.objective.width(feed.length): room()}
    if shorter := tuple(config.micro_lengths):
      if exp.objective.trim is None:
        raise errors.UserError(f"micro_lengths: {config.objective.name} has no columns to cut; set "
                               "it to ()")
      widths = {*rooms, *(n for n in shorter if n < max(rooms))}
      rooms = {n: room(columns=n) for n in widths}
    filled = self._filled(micro)
    rows = None if apply_fn else sparse.make(config.optim.sparse_rows, model=exp.model,
                                             tables=exp.tables, objective=exp.objective)
    experiment.forget_start()  # a run needs the most memory when this is compiled
    return step_lib.make_train_steps(
      apply_fn=apply_fn or exp.apply_fn, objective=exp.objective, tx=tx, sample=feed.sample,
      mesh=exp.mesh, trainable=trainable, micro_batches=size // micro, rooms=rooms, filled=filled,
      rows=rows, split=exp.split)

  def _filled(self, rows):
    """Returns how many positions of `rows` examples hold something; None where all are computed."""
    model, objective = self.exp.model, self.exp.objective
    cut = tuple(self.exp.config.micro_lengths)
    if getattr(model, "streams", False) and objective.fit and not cut:
      return objective.filled(self.feed.lengths, rows=rows)
    if getattr(model, "layout", None) == "stream":
      why = f"micro_lengths={cut}" if cut else f"objective.name={self.exp.config.objective.name}"
      raise errors.UserError(f"config.model: layout=stream is not there with {why}; set "
                             "layout=auto")
    return None


def make_plan(exp, config, params):
  """Returns {leaf name: options} of `optim.plan`: what a run's `config` makes of each parameter.

  Args:
    exp: the run's Experiment.
    config: of the run.
    params: its parameters, or their shapes.
  """
  freeze = ((config.transfer.freeze, {"freeze": True}),) if config.transfer.freeze else ()
  return optim.plan(config.optim, params, extra_rules=freeze,
                    last_rules=exp.optim_rules(config.transfer.mode),
                    defaults=getattr(exp.model, "leaf_options", tuple)())


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run hands over to have its steps taken."""
  state: state_lib.TrainState  # given away: donated to the first steps
  train_steps: object  # of `Setting.make_steps`, not compiled yet


@dataclasses.dataclass(frozen=True)
class Taken:
  """What a run is told of its steps."""
  count: int  # as many as it asked for, or fewer
  get_sums: object  # () -> their metrics, once they are there
  get_state: object  # () -> TrainState after them; while no more are taken
  leave: bool  # a SIGTERM came


def set_up(exp):
  """Returns the Setting of runs of `exp.config`; mistakes in it show before anything is written."""
  config = exp.config
  feed = feed_lib.make(exp)
  duration = dict(batch_size=config.batch_size, examples=feed.examples)
  total_steps = spec.steps(config, "total", **duration)
  def every(name, default):
    return max(spec.steps(config[name], "every", default=default, total=total_steps, **duration), 1)
  cadence = {"log": every("log", total_steps), "eval": every("eval", total_steps)}
  cadence["checkpoint"] = every("checkpoint", cadence["eval"])

  # Both evaluators before training, so that a mistake in config.eval does not wait for its end.
  if config.eval.metric not in (known := exp.metric_names()):
    raise errors.UserError(f"eval.metric is {config.eval.metric!r}; there are {', '.join(known)}")
  validation = exp.evaluator("val", contexts=("train",),
                             protocols=(config.eval.metric.split("/")[0],))
  return Setting(exp, feed, duration, total_steps, cadence, validation,
                 results.make_evaluator(exp, "test"), exp.init_params,
                 jax.jit(optim.global_norm))
