"""Models by name, built from a config's `model` fields."""

from recjax import errors
from recjax.models import bert4rec
from recjax.models import layers
from recjax.models import sasrec
from recjax.models import transformer

MODELS = {"bert4rec": bert4rec.BERT4Rec, "sasrec": sasrec.SASRec}
VARIANTS = {"bert4rec": bert4rec.VARIANTS, "sasrec": sasrec.VARIANTS}
CHOICES = {"act": tuple(layers.ACTIVATIONS), "norm": ("pre", "post"),
           "output": ("untied", "tied", "tied_transform"), "initializer": ("torch", "bert"),
           "dtype": ("float32", "bfloat16")}


def make(name, *, variant, num_items, num_users, field_rows, fields=(), **overrides):
  """Returns the linen module of `config.model`.

  Args:
    name: a key of MODELS.
    variant: a key of VARIANTS[name], the defaults of everything below.
    num_items: N.
    num_users: U.
    field_rows: {attribute: rows of its table} of what the data offers.
    fields: (attribute, width, slots) of those that the model reads.
    **overrides: attributes of the module; None leaves the variant's.
  """
  variants = errors.choose(VARIANTS, name, "model.name")
  values = dict(errors.choose(variants, variant, "model.variant"))
  values.update({key: value for key, value in overrides.items() if value is not None})
  for field, *_ in fields:
    if not field.isidentifier() or field in ("item", "user") or hasattr(
        transformer.SequenceEmbed, field):
      raise errors.UserError(f"model.fields: {field!r} cannot name a table; rename the attribute")
  full = tuple((field, errors.choose(field_rows, field, "model.fields"), width, slots)
               for field, width, slots in fields)
  try:
    model = MODELS[name](num_items=num_items, num_users=num_users, fields=full, **values)
  except TypeError as error:
    raise errors.UserError(f"config.model: {error}") from error
  for attribute, known in CHOICES.items():
    errors.choose(dict.fromkeys(known), getattr(model, attribute), f"model.{attribute}")
  width = model.item_width + model.user_width + sum(slots * wide for *_, wide, slots in full)
  if width % model.heads:
    raise errors.UserError(f"config.model: the width {width} (item, user and attributes together) "
                           f"does not split into {model.heads} heads")
  return model
