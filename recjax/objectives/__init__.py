"""Objectives by name, built from a config's `objective` fields.

An objective is a frozen dataclass that says what is learned from a batch and how the learned model
predicts. The loop and the compiled step know only this of it, for which `objective.Objective` has
defaults:

    trains         False: the model is computed from the data, without steps
    task           "ranking" or "rating": which evaluator judges it
    window         which part of a long sequence is sampled (`batches.WINDOWS`)
    min_length     users with fewer training items are left out
    extra_columns  columns of a sampled window beyond the model's positions
    slide          True: an epoch visits every window of every user, not one of each
    columns        what `batches.resident` adds: "ratings", "seen", "global"
    popularity     None, or the power of an item's count that `batches.resident` adds draws for
    prepare(rng, batch, resident)            -> inputs, [B, ...] each
    loss(apply_fn, params, inputs, ...)      -> (sum, weight, metrics)
    item_inputs    inputs that hold all items that the loss reads; () where it reads every item
    item_ids(inputs)                         -> arrays that hold them all (once is enough)
    label_statistics(lengths)                -> (mean, variance, most) labels of a row
    room(max_len)                            -> past items that fit the model
    predict(apply_fn, params, users, ...)    -> scores [B, N + 1], or what `readout` makes of
                                                them, or ratings

and, where a step goes on with further updates of the optimizer, of inputs made from the last ones,

    updates                                  how many updates a step takes
    again(apply_fn, params, inputs, rng)     -> inputs of the next; from before the last
"""

import inspect

from recjax import errors
from recjax.objectives import cross_pair
from recjax.objectives import masked_item
from recjax.objectives import masked_window
from recjax.objectives import next_item
from recjax.objectives import next_window
from recjax.objectives import pair
from recjax.objectives import rating
from recjax.objectives import untrained

OBJECTIVES = {
  "autoencode": rating.Autoencode,
  "masked_rating": rating.MaskedRating,
  "masked_item": masked_item.MaskedItem,
  "masked_window": masked_window.MaskedWindow,
  "next_item": next_item.NextItem,
  "next_window": next_window.NextWindow,
  "causal_next_item": next_item.CausalNextItem,
  "cross_pair": cross_pair.CrossPair,
  "pair": pair.Pair,
  "untrained": untrained.Untrained,
}


def make(name, *, num_items, known, window=None, **fields):
  """Returns the objective of `config.objective`.

  Args:
    name: a key of OBJECTIVES.
    num_items: N.
    known: names of the objectives that the model can be trained on.
    window: which part of a long sequence is trained on (None: the objective's own choice).
    **fields: {objective name: its fields}; those of other objectives are ignored, so that one
      config serves all.
  """
  cls = errors.choose(OBJECTIVES, name, "objective.name")
  if name not in known:
    raise errors.UserError(f"objective.name={name!r} does not fit this model; choose "
                           f"{' or '.join(known)}")
  if unknown := [key for key in fields if key not in OBJECTIVES]:
    raise errors.UserError(f"config.objective: unknown field {unknown[0]!r}")
  values = dict(fields.get(name) or {})
  if window is not None:
    values["window"] = window
  allowed = inspect.signature(cls).parameters
  if unknown := [key for key in values if key not in allowed]:
    raise errors.UserError(f"config.objective: {name} has no field {unknown[0]!r}; there are "
                           f"{', '.join(key for key in allowed if key != 'num_items')}")
  return cls(num_items=num_items, **values)
