"""Several objectives on one batch: their mean losses, weighted and added up."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax.objectives import objective


@dataclasses.dataclass(frozen=True)
class Part:
  """One objective of a Mix."""
  name: str
  weight: float
  objective: object


@dataclasses.dataclass(frozen=True)
class Mix(objective.Objective):
  """Learns sum_i w_i L_i, where L_i is part i's loss per label of the whole batch.

  Every part prepares inputs of its own from the one sampled batch and sees them in a forward pass
  of its own. The loss is written per row, B sum_i w_i (sum of part i) / (labels of part i in the
  batch): its weights are known before the batch is cut, so that micro-batches and devices add up to
  the gradient of the whole. (A part's labels that find no room, which capacities make all but
  impossible, count as labels here.)

  Inputs are named PART/NAME; metrics are each part's PART/loss and PART/weight, sums as ever.
  """
  parts: tuple  # Part
  evaluate: str  # name of the part that predicts
  window: str

  def __post_init__(self):
    if not self.parts:
      raise errors.UserError("objective.mix.parts is empty; write (('masked_item', 1.0), ...)")
    names = [part.name for part in self.parts]
    if len(set(names)) != len(names):
      raise errors.UserError(f"objective.mix.parts names one twice: {', '.join(names)}")
    for part in self.parts:
      if not part.objective.trains or part.objective.updates != 1:
        raise errors.UserError(f"objective.mix.parts: {part.name} is no loss of one update, which "
                               "is all that can be mixed")
      if part.objective.profile is not None:
        raise errors.UserError(f"objective.mix.parts: {part.name} learns from labeled users alone, "
                               "the others from all; they cannot share a batch")
      if not part.weight > 0:
        raise errors.UserError(f"objective.mix.parts: {part.name} has the weight {part.weight}; "
                               "weights are positive, or 0 where a part is left out")
    errors.choose({name: None for name, part in zip(names, self.parts, strict=True)
                   if part.objective.predicts}, self.evaluate, "objective.mix.evaluate")
    self._agreed("slide", "visit different windows")
    powers = {p.objective.popularity for p in self.parts} - {None}
    if len(powers) > 1:
      raise errors.UserError("objective.mix.parts draw negatives by different powers of popularity "
                             f"({', '.join(map(str, sorted(powers)))}); choose one")

  @property
  def task(self):
    return self._judge.task

  @property
  def slide(self):
    return self._agreed("slide", "visit different windows")

  @property
  def min_length(self):
    return max(part.objective.min_length for part in self.parts)

  @property
  def extra_columns(self):
    return max(part.objective.extra_columns for part in self.parts)

  @property
  def columns(self):
    return tuple(dict.fromkeys(c for part in self.parts for c in part.objective.columns))

  @property
  def questions(self):
    return tuple(q for part in self.parts for q in part.objective.questions)

  @property
  def auxiliary(self):
    """Returns ((name, options), ...) of all parts; those that share one ask for their `sides`."""
    found = {}
    for part in self.parts:
      for name, options in part.objective.auxiliary:
        known = found.setdefault(name, options)
        sides = {"sides": {**known["sides"], **options["sides"]}} if "sides" in options else {}
        if {**known, **sides} != {**options, **sides}:
          raise errors.UserError(f"objective.mix.parts share {name}, but {part.name} wants "
                                 f"{_listed(options)} where another has {_listed(known)}")
        found[name] = {**options, **sides}
    return tuple(found.items())

  @property
  def rows_together(self):
    found = [part.objective.rows_together for part in self.parts]
    return None if None in found else math.lcm(*found)

  @property
  def popularity(self):
    return next((part.objective.popularity for part in self.parts
                 if part.objective.popularity is not None), None)

  @property
  def item_inputs(self):
    """Returns the inputs that hold all items that the losses read; () where one reads every item.
    """
    if not all(part.objective.item_inputs for part in self.parts):
      return ()
    return tuple(f"{part.name}/{name}" for part in self.parts
                 for name in part.objective.item_inputs)

  def item_ids(self, inputs):
    """Returns arrays that hold the items of `item_inputs`."""
    return [ids for part in self.parts
            for ids in part.objective.item_ids(_own(part, inputs))]

  @property
  def trim(self):
    """Returns (inputs, columns) -> inputs cut to their last columns.

    None where a part has none, or parts have different columns.
    """
    widths = {part.objective.width(part.objective.extra_columns) for part in self.parts}
    return self._trim if len(widths) == 1 and all(p.objective.trim for p in self.parts) else None

  def width(self, length):
    """Returns how many columns the inputs of windows of `length` columns have."""
    one = self.parts[0].objective
    return one.width(length - self.extra_columns + one.extra_columns)

  def _trim(self, inputs, columns):
    out = dict(inputs, items=inputs["items"][:, -columns:])
    for part in self.parts:
      out |= _named(part, part.objective.trim(_own(part, inputs), columns))
    return out

  def prepare(self, rng, batch, resident):
    """Returns {PART/NAME: [B, ...]} of what the parts prepare, and {PART/share: [B]}.

    The first part draws what it would draw alone. A part that reads fewer columns than another gets
    the last ones. "items" tell how long rows are, where they can be cut.
    """
    out, rows = {}, batch["users"].shape[0]
    for index, part in enumerate(self.parts):
      key = rng if index == 0 else jax.random.fold_in(rng, 0x10000 + index)
      drop = self.extra_columns - part.objective.extra_columns
      seen = {name: x[:, drop:] if x.ndim > 1 else x for name, x in batch.items()}
      own = part.objective.prepare(key, seen, resident)
      labels = jnp.sum(part.objective.labels(own).astype(jnp.float32))
      share = part.weight * rows / jnp.maximum(labels, 1)
      out |= _named(part, {**own, "share": jnp.full(rows, share)})
    if self.trim:
      out["items"] = functools.reduce(jnp.maximum, (
        out[name] for part in self.parts if (name := f"{part.name}/items") in out))
    return out

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, rows, {"dropped", PART/loss, PART/weight, ...}).

    Args:
      apply_fn: of `step.make_apply`.
      params: the model's parameters.
      inputs: of `prepare`.
      shards: see `item_loss.ItemLoss.loss`.
      capacity: of `capacity`.
      rng: dropout key or None.
    """
    total, metrics = 0.0, {"dropped": jnp.int32(0)}
    for index, (part, room) in enumerate(zip(self.parts, capacity, strict=True)):
      key = rng if index == 0 or rng is None else jax.random.fold_in(rng, 0x10000 + index)
      own = _own(part, inputs)
      share = own.pop("share")
      value, weight, more = part.objective.loss(apply_fn, params, own, shards=shards,
                                                capacity=room, rng=key)
      total += share[0] * value
      metrics["dropped"] += more.pop("dropped")
      metrics |= _named(part, {"loss": value, "weight": weight, **more})
    return total, jnp.float32(share.shape[0]), metrics

  def capacity(self, lengths, *, rows, columns=None):
    """Returns every part's own, as a tuple."""
    fewer = [self.extra_columns - part.objective.extra_columns for part in self.parts]
    return tuple(part.objective.capacity(np.minimum(lengths, lengths.max() - less), rows=rows,
                                         columns=columns)
                 for part, less in zip(self.parts, fewer, strict=True))

  def room(self, max_len):
    """Returns how many past items fit the part that predicts."""
    return self._judge.room(max_len)

  def predict(self, apply_fn, params, *arrays, **fields):
    """Returns what the part named `evaluate` predicts; answers to questions, what all parts do."""
    if self.task != "response":
      return self._judge.predict(apply_fn, params, *arrays, **fields)
    found = [part.objective.predict(apply_fn, params, *arrays, **fields)
             for part in self.parts if part.objective.task == "response"]
    return functools.reduce(lambda a, b: {**a, **b}, found)

  @property
  def _judge(self):
    return next(part.objective for part in self.parts if part.name == self.evaluate)

  def _agreed(self, field, what):
    found = {part.name: getattr(part.objective, field) for part in self.parts}
    if len(set(found.values())) > 1:
      raise errors.UserError(f"objective.mix.parts {what} ({_listed(found)}); they cannot share a "
                             "batch")
    return next(iter(found.values()))


def agreed_window(objectives):
  """Returns the window that all of {name: objective} sample; UserError where they differ."""
  found = {name: window for name, one in objectives.items()
           if (window := getattr(one, "window", "last")) is not None}
  if len(set(found.values())) > 1:
    raise errors.UserError(f"objective.mix.parts sample different windows ({_listed(found)}), but "
                           "share a batch; set objective.window")
  return next(iter(found.values()), "last")


def _listed(found):
  return ", ".join(f"{name}: {value}" for name, value in found.items())


def _own(part, inputs):
  """Returns what of `inputs` is the part's, by its own names."""
  prefix = f"{part.name}/"
  return {name.removeprefix(prefix): x for name, x in inputs.items() if name.startswith(prefix)}


def _named(part, inputs):
  return {f"{part.name}/{name}": x for name, x in inputs.items()}
