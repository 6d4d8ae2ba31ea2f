"""Objectives by name, built from a config's `objective` fields."""

from recjax import errors
from recjax.objectives import masked_item
from recjax.objectives import next_item

OBJECTIVES = {
  "masked_item": masked_item.MaskedItem,
  "next_item": next_item.NextItem,
  "causal_next_item": next_item.CausalNextItem,
}


def make(name, *, num_items, model_is_causal, masked_item=None, window=None):
  """Returns the objective of `config.objective`.

  Args:
    name: masked_item, next_item, causal_next_item.
    num_items: N.
    model_is_causal: what the model can see, which must fit.
    masked_item: fields of MaskedItem, ignored by the others so that one config serves all.
    window: which part of a long sequence is trained on (None: the objective's own choice).
  """
  cls = errors.choose(OBJECTIVES, name, "objective.name")
  if cls.causal != model_is_causal:
    fits = [n for n, c in OBJECTIVES.items() if c.causal == model_is_causal]
    raise errors.UserError(f"objective.name={name!r} does not fit a "
                           f"{'causal' if model_is_causal else 'bidirectional'} model; "
                           f"choose {' or '.join(fits)}")
  values = dict(masked_item or {}) if name == "masked_item" else {}
  if window is not None:
    values["window"] = window
  return cls(num_items=num_items, **values)
