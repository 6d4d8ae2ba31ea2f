"""Members of a cohort that learn different labels of users: one program, heads of several widths.

Gender has two labels and occupation 21. In the program every head is as wide as the widest: its
further columns have weights of 0 and a bias that no softmax gives any weight, `catalog.BARRED`.
They get no gradient, and are cut off wherever the state of a member leaves the program, so that it
learns what it learns alone, up to rounding. Tasks that train patches of one backbone (gender, age
and occupation of the same users) are then one step over one backbone in memory.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from recjax import catalog, experiment, trees
from recjax import setting as setting_lib


@dataclasses.dataclass(frozen=True)
class Heads:
  """Makes the heads of all members as wide as the widest, and as wide as they were."""
  axes: dict  # {leaf of a head: its axis of labels}
  width: int  # columns in the program

  def pad(self, state):
    """Returns a member's state with heads as wide as the program's."""
    return self._change(state, lambda x, axis, nothing: jnp.pad(
      x, [(0, (self.width - x.shape[axis]) * (i == axis)) for i in range(x.ndim)],
      constant_values=nothing))

  def cut(self, state, width):
    """Returns the state with heads of `width` columns, the inverse of `pad`."""
    return self._change(state, lambda x, axis, _: jax.lax.slice_in_dim(x, 0, width, axis=axis))

  def _change(self, state, change):
    # Of the leaves of a head, the bias alone has no other axis; slots have nothing to bar.
    params = trees.map_slots(
      lambda x, axis: change(x, axis, catalog.BARRED if x.ndim == 1 else 0), self.axes,
      state.params)
    slots = trees.map_slots(lambda x, axis: change(x, axis, 0), self.axes, state.opt_state)
    return state.replace(params=params, opt_state=slots)


def groups(exp, configs):
  """Returns [{member: Setting}, ...]: members of a group visit the same users in the same order.

  Args:
    exp: Experiment of one of them, which need not be built again.
    configs: {member: ConfigDict}, of one cohort.
  """
  settings, found = {}, []
  for member, config in configs.items():
    label = _label(config)
    if label not in settings:
      setting = setting_lib.set_up(exp if label == _label(exp.config) else experiment.build(config))
      # Compiled once for all that learn it.
      settings[label] = dataclasses.replace(setting, init_params=jax.jit(setting.init_params))
    mine = settings[label]
    group = next((group for group in found if _alike(next(iter(group.values())), mine)), None)
    if group is None:
      found.append(group := {})
    group[member] = mine
  return found


def widest(settings):
  """Returns the Setting whose head scores the most labels: its model is the program's."""
  return max(settings, key=width)


def width(setting):
  """Returns how many columns a head of labels has; 1 where there is none."""
  return 1 + getattr(setting.exp.model, "labels", 0)


def heads(settings):
  """Returns the Heads of members with these Settings."""
  widths, model = set(map(width, settings)), widest(settings).exp.model
  axes = {leaf: axis for leaf, (vocabulary, axis) in model.row_tables().items()
          if vocabulary == "label"}
  return Heads(axes if len(widths) > 1 else {}, max(widths))


def tables(settings):
  """Returns {"labels": int32 [members, U + 1]} where members learn different ones, else {}."""
  if len({id(setting) for setting in settings}) == 1:
    return {}
  return {"labels": np.stack([setting.feed.labels for setting in settings])}


def _label(config):
  """Returns which attribute of users a run learns; None for other tasks."""
  if config.objective.name != "profile":
    return None
  return dict(config.objective.get("profile") or {}).get("attribute")


def _alike(ours, theirs):
  return ours is theirs or ours.feed.same_examples(theirs.feed)
