"""Trains runs that differ in numbers alone at once: seeds, learning rates, what they start from.

    python -m recjax.cohort --config=configs/NAME.py[:arg] --workdir=W --config.data_dir=DIR \\
      --trials='{"seed=0": {"seed": 0}, "seed=1": {"seed": 1, "optim.lr": 1e-4}}'

trains W/seed=0 and W/seed=1. `recjax.cohort_plan.VARY` lists the fields that may differ.

One program is compiled for all: every member is a lane with a state, a key, an order of the data
and a learning rate of its own. On an accelerator the lanes are the step under `jax.vmap`; on a CPU,
whose cores one small model keeps busy and whose cache several overflow, they take their steps in
turn (`jax.lax.map`). A member's numbers are those that it has alone up to rounding (a batched
product may add in another order), whoever is in the other lanes; with the same members they are the
same bits, however often they are interrupted. All else is the code of `train.run`: each member
validates, stops early and saves into its own folder, which ends up as that of a single run, so that
nobody else can tell. A member that has stopped or diverged leaves its lane to compute what nobody
reads. In "speed" a member has its share of the cohort's time, with `cohort` (members),
`cohort_lanes` and `cohort_wall_s` (of all of them). launch/bench/cohort.py measures what it saves.

Members that start from one backbone and train patches of it (`transfer.mode=patch`) have it once:
lanes hold what each of them trains. (Until its first log a member keeps what it was started with.)
They may learn different labels of users, as gender and age, see recjax/cohort_tasks.py.

The members' parameters and slots are held at once, `MAX_BYTES` at most, else they are trained in
several parts; activations come on top. Multi-host runs, runs on a sharded data set, and runs whose
tables are split over devices, are trained one by one.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from recjax import clock as clock_lib
from recjax import (
  cli,
  cohort_plan,
  cohort_tasks,
  digests,
  errors,
  experiment,
  partition,
  record,
  results,
  spec,
  train,
  trees,
)
from recjax import setting as setting_lib

FLAGS = flags.FLAGS
MAX_BYTES = 2**30  # of parameters and Adam's slots
LANES = ("vmap", "map")


class Share(clock_lib.Clock):
  """A member's view of the cohort's clock: its share of what passes for all of them.

  Args:
    whole: Clock of the cohort.
    members: a collection of them, filled by the time somebody asks.
  """

  def __init__(self, whole, members):
    super().__init__()
    self._whole, self._members = whole, members

  def measure(self, name):
    return self._whole.measure(name)

  def total(self, name):
    return self._whole.total(name) / len(self._members)

  def wall(self):
    return self._whole.wall() / len(self._members)


def train_and_evaluate(configs, workdirs, *, lanes=None):
  """Returns the report of every run, in their order, or the UserError that ended it.

  Finished runs are left as they are, and the others are trained as the smaller cohort.

  Args:
    configs: ConfigDicts of the runs.
    workdirs: their folders.
    lanes: one of LANES; None is map on CPUs and vmap elsewhere.

  Raises:
    UserError: the configs are not of one cohort, or data and config fit none of them.
    Preempted: a SIGTERM came; all members are saved and the same call goes on from there.
  """
  clock = clock_lib.Clock()
  if len({cohort_plan.key(config) for config in configs}) != 1:
    raise errors.UserError(f"the runs of a cohort may differ in {', '.join(cohort_plan.VARY)} "
                           "alone, and these do not, or are none")
  workdirs = [pathlib.Path(workdir) for workdir in workdirs]
  if len(set(workdirs)) != len(configs):
    raise errors.UserError(f"{len(configs)} runs need as many folders, not {len(set(workdirs))}")
  partition.initialize(configs[0].num_devices)
  partition.enable_compilation_cache()
  ended = {}
  rest = [i for i, workdir in enumerate(workdirs) if results.finished(workdir) is None]
  if len(rest) > 1 and jax.process_count() == 1:
    exp = experiment.build(configs[rest[0]])
    # Streams of all members cost as many; tables too large for a device leave room for no other.
    if exp.objective.trains and exp.data.shards is None and not exp.split:
      lanes = lanes or ("map" if jax.devices()[0].platform == "cpu" else "vmap")
      for group in cohort_tasks.groups(exp, {i: configs[i] for i in rest}):
        parts = -(-len(group) // room(cohort_tasks.widest(group.values()).exp))
        for part in (list(group)[i::parts] for i in range(parts)):
          if len(part) > 1:
            found = _together([group[i] for i in part], [configs[i] for i in part],
                              [workdirs[i] for i in part], lanes, clock)
            ended |= dict(zip(part, found, strict=True))
            clock = clock_lib.Clock()
  for i in range(len(configs)):
    if i not in ended:
      try:
        ended[i] = train.train_and_evaluate(configs[i], workdirs[i])
      except errors.UserError as error:
        ended[i] = error
  return [ended[i] for i in range(len(configs))]


@dataclasses.dataclass(frozen=True)
class Backbone:
  """Splits the state of a run into what it trains, and the frozen rest that all members share.

  Optimizer slots know nothing of frozen leaves but their places: those of the split state have the
  same leaves in the same order, in another structure.
  """
  frozen: dict  # {leaf name: array}
  whole: object  # tree structures of the slots, with places for frozen leaves
  part: object  # and without

  def narrow(self, state):
    """Returns the state without what is frozen."""
    own = {leaf: x for leaf, x in trees.flatten(state.params).items() if leaf not in self.frozen}
    return state.replace(params=trees.unflatten(own), opt_state=jax.tree.unflatten(
      self.part, jax.tree.leaves(state.opt_state)))

  def widen(self, state):
    """Returns the whole state of a narrow one."""
    return state.replace(params=trees.join(state.params, self.frozen), opt_state=jax.tree.unflatten(
      self.whole, jax.tree.leaves(state.opt_state)))


def shared_backbone(setting, config, states):
  """Returns the Backbone that all `states` have in common, or None: they share nothing frozen."""
  _, _, trainable = setting.make_optimizer(config, states[0].params)
  split = lambda state, own: {leaf: x for leaf, x in trees.flatten(state.params).items()
                              if trainable[leaf] == own}
  frozen = split(states[0], False)
  marks = [digests.of(split(state, False)) for state in states] if frozen else []
  if not frozen or any(mark != marks[0] for mark in marks):
    return None
  own = trees.unflatten(split(states[0], True))
  tx, _, _ = setting.make_optimizer(config, states[0].params, part=own)
  return Backbone(frozen, jax.tree.structure(states[0].opt_state),
                  jax.tree.structure(jax.eval_shape(tx.init, own)))


def room(exp):
  """Returns how many members fit `MAX_BYTES`, at least one."""
  shapes = jax.eval_shape(exp.init_params, 0)
  plan = setting_lib.make_plan(exp, exp.config, shapes)
  frozen = trees.nbytes({leaf: x for leaf, x in trees.flatten(shapes).items()
                         if plan[leaf]["freeze"]})
  each = 3 * (trees.nbytes(shapes) - frozen)
  if exp.config.transfer.mode == "patch":  # They start alike in all members, who have them once.
    return max((MAX_BYTES - frozen) // max(each, 1), 1)
  return max(MAX_BYTES // (frozen + each), 1)


def _together(settings, configs, workdirs, lanes, clock):
  """Returns [report or UserError] of the runs, trained in one program."""
  ended, stopped, members, stories, states = {}, [], [], [], []

  def ask(member, call):
    """Returns what a member answers, 0 where it ends instead."""
    try:
      return call()
    except errors.UserError as error:
      ended[member] = error
      record.warn(f"{workdirs[member]}: {error}")
    except errors.Preempted as error:
      stopped.append(error)
    return 0

  for member, (config, workdir) in enumerate(zip(configs, workdirs, strict=True)):
    mine = settings[member]
    mine = dataclasses.replace(mine, exp=dataclasses.replace(mine.exp, config=config))
    stories.append(train.run(config, workdir, mine, Share(clock, members)))
    if start := ask(member, functools.partial(next, stories[member])):
      members.append(member)
      states.append(start.state)
  if not members:
    return [ended[member] for member in range(len(configs))]

  settings = [settings[member] for member in members]
  setting, heads = cohort_tasks.widest(settings), cohort_tasks.heads(settings)
  tables, _ = setting.feed.at(0)
  own = cohort_tasks.tables(settings)
  numbers = {name: np.array([configs[member].optim[name] for member in members], np.float32)
             for name in cohort_plan.NUMBERS}
  stack, take = _stacking(setting.exp.mesh)
  backbone = shared_backbone(setting, configs[members[0]], states)
  narrow, widen, frozen = (lambda state: state), (lambda state: state), {}
  if backbone is not None:
    narrow, widen, frozen = backbone.narrow, backbone.widen, backbone.frozen
  with clock.measure("compile"):
    states = stack(*(heads.pad(narrow(state)) for state in states))
    take = take.lower(states, np.int32(0)).compile()
    steps = partition.compile_steps(make_steps(setting, configs[members[0]], lanes=lanes).lower(
      states, numbers, tables, np.int32(1), frozen, own))
  def state_of(states, lane):
    state = take(states, np.int32(lane))
    return widen(heads.cut(state, cohort_tasks.width(settings[lane])))

  # Members that were cut at different steps go on from where they are, in equal strides.
  taken = 0
  with partition.Preemption() as preemption:
    wanted = {member: ask(member, functools.partial(next, stories[member])) for member in members}
    while any(wanted.values()):
      group = train.group_size(taken, clock.total("train"))
      count = min(group, *(number for number in wanted.values() if number))
      with clock.measure("train"):
        states, sums = steps(states, numbers, tables, np.int32(count), frozen, own)
        taken += count
        leave = preemption.requested(taken)
      get_sums = functools.cache(functools.partial(jax.device_get, sums))
      for lane, member in enumerate(members):
        if wanted[member]:
          told = setting_lib.Taken(
            count, functools.partial(_sums_of, get_sums, lane),
            functools.partial(state_of, states, lane), leave)
          wanted[member] = ask(member, functools.partial(stories[member].send, told))
      if stopped:
        raise errors.Preempted(f"{stopped[0]} (and so for {len(members) - 1} more)")

  # All are evaluated before one is finished: either the whole cohort is left to do, or nothing.
  for member in members:
    if member not in ended:
      ask(member, functools.partial(next, stories[member]))
  facts = {"cohort": len(members), "cohort_lanes": lanes, "cohort_wall_s": clock.wall()}
  for member in members:
    if member not in ended:
      ended[member] = train.finish(stories[member], facts)
  return [ended[member] for member in range(len(configs))]


def make_steps(setting, config, *, lanes):
  """Returns the jitted `(states, numbers, resident, count, frozen, own) -> (states, sums)`.

  States, `numbers` {name of `cohort_plan.NUMBERS`: float32}, what takes the place of `resident` for
  each member, `own`, and sums have an axis of members in front; states are donated. Where states
  are without them, `frozen` {leaf name: array} are the parameters that all members share; they have
  no such axis. See `step.make_train_steps` for the rest.

  Args:
    setting: of `setting.set_up`.
    config: of any member.
    lanes: one of LANES.
  """
  def lane(state, numbers, own, resident, count, frozen):
    mine = spec.override(config.copy_and_resolve_references(),
                         {f"optim.{name}": number for name, number in numbers.items()})
    tx, _, trainable = setting.make_optimizer(mine, trees.join(state.params, frozen),
                                             part=state.params)
    apply_fn = None
    if frozen:
      apply_fn = lambda params, *args, **kwargs: setting.exp.apply_fn(
        trees.join(params, frozen), *args, **kwargs)
    return setting.make_steps(tx, trainable, apply_fn=apply_fn)(state, {**resident, **own}, count)

  def in_turn(states, numbers, own, *shared):
    return jax.lax.map(lambda mine: lane(*mine, *shared), (states, numbers, own))

  every = errors.choose({"vmap": jax.vmap(lane, in_axes=(0, 0, 0, None, None, None)),
                         "map": in_turn}, lanes, "lanes")
  step = lambda states, numbers, resident, count, frozen=None, own=None: every(
    states, numbers, own or {}, resident, count, frozen or {})
  return jax.jit(step, donate_argnums=0, out_shardings=partition.replicated(setting.exp.mesh))


def _stacking(mesh):
  """Returns (stack, take), jitted: from trees to one with an axis more, and one of them again."""
  everywhere = partition.replicated(mesh)
  stack = lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  take = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
  return jax.jit(stack, out_shardings=everywhere), jax.jit(take, out_shardings=everywhere)


def _sums_of(get_sums, lane):
  return {name: values[lane] for name, values in get_sums().items()}


def read_trials(text, config):
  """Returns {folder name: ConfigDict} of --trials, JSON {folder name: {"a.b": value}}."""
  try:
    trials = json.loads(text)
    trials = {name: dict(values) for name, values in trials.items()}
  except (ValueError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"--trials is not JSON like {{\"NAME\": {{\"seed\": 1}}, ...}}: {error}") from error
  for name in trials:
    if not name or pathlib.PurePath(name).name != name:
      raise errors.UserError(f"--trials: {name!r} is no name of a folder")
  return {name: spec.override(config.copy_and_resolve_references(), values)
          for name, values in trials.items()}


def main(argv):
  del argv
  cli.require(FLAGS, "config", "workdir", "trials")
  configs = read_trials(FLAGS.trials, FLAGS.config)
  found = train_and_evaluate(list(configs.values()),
                             [os.path.join(FLAGS.workdir, name) for name in configs])
  failed = False
  for name, report in zip(configs, found, strict=True):
    if isinstance(report, errors.UserError):
      failed = True
      print(f"error: {name}: {' '.join(str(report).split())}", file=sys.stderr)
    else:
      print(f"{name}\n{results.summary(report)}")
  if failed:
    sys.exit(1)


if __name__ == "__main__":
  cli.define_config("config")
  flags.DEFINE_string("workdir", None, "Folder of the runs' folders.")
  flags.DEFINE_string("trials", None, "JSON {folder name: {\"a.b\": value}}: what runs change.")
  cli.run(main)
