"""Models by name, built from a config's `model` fields.

A model is a linen module (or, where nothing is learned by gradients, an object with the same
methods). Beside `__call__(..., tables, train)`, whose other arguments are the inputs that its
objectives prepare, it has

    objectives           names of the objectives that it can be trained on
    max_len              positions that it reads
    fields, extra_tokens attribute tables that it reads, ids after MASK
    choices              {attribute: values allowed}
    check()              raises UserError where sizes do not fit together
    example_inputs()     inputs that start its parameters
    row_tables()         leaves whose rows stand for named things
    transfer_rules(mode) what a transfer mode carries

where a score costs more than an inner product,

    costly               True: evaluators score no more items than they must

where it learns two domains at once,

    other                the data set of the second one

and, where its parameters are computed from the data instead of trained,

    fit(data)            the parameters; `init` then only says their shapes
"""

import dataclasses

from recjax import errors
from recjax.models import autoencoder
from recjax.models import bert4rec
from recjax.models import bert4rec_rating
from recjax.models import caser
from recjax.models import conet
from recjax.models import dot
from recjax.models import fm
from recjax.models import gru4rec
from recjax.models import item_knn
from recjax.models import neumf
from recjax.models import sasrec

MODELS = {
  "autoencoder": autoencoder.Autoencoder,
  "bert4rec": bert4rec.BERT4Rec,
  "bert4rec_rating": bert4rec_rating.BERT4RecRating,
  "caser": caser.Caser,
  "conet": conet.CoNet,
  "dot": dot.Dot,
  "fm": fm.FM,
  "gru4rec": gru4rec.GRU4Rec,
  "item_knn": item_knn.ItemKNN,
  "neumf": neumf.NeuMF,
  "sasrec": sasrec.SASRec,
}
VARIANTS = {
  "autoencoder": autoencoder.VARIANTS,
  "bert4rec": bert4rec.VARIANTS,
  "bert4rec_rating": bert4rec_rating.VARIANTS,
  "caser": caser.VARIANTS,
  "conet": conet.VARIANTS,
  "dot": dot.VARIANTS,
  "fm": fm.VARIANTS,
  "gru4rec": gru4rec.VARIANTS,
  "item_knn": item_knn.VARIANTS,
  "neumf": neumf.VARIANTS,
  "sasrec": sasrec.VARIANTS,
}
RESERVED = ("item", "user", "rating", "segment", "layer_norm", "drop")


def make(name, *, variant, num_items, num_users, field_rows, fields=(), facts=None,
         **overrides):
  """Returns the model of `config.model`.

  Args:
    name: a key of MODELS.
    variant: a key of VARIANTS[name], the defaults of everything below.
    num_items: N.
    num_users: U.
    field_rows: {attribute: rows of its table} of what the data offers.
    fields: (attribute, width, slots) of those that the model reads.
    facts: {attribute: function that finds it in the data}, for attributes that a model may have
      (`rating_mean`); those that it has not are never looked for.
    **overrides: attributes of the model; None leaves the variant's.
  """
  variants = errors.choose(VARIANTS, name, "model.name")
  values = dict(errors.choose(variants, variant, "model.variant"))
  values.update({key: value for key, value in overrides.items() if value is not None})
  for field, *_ in fields:
    if not field.isidentifier() or field in RESERVED:
      raise errors.UserError(f"model.fields: {field!r} cannot name a table; rename the attribute")
  values["fields"] = tuple((field, errors.choose(field_rows, field, "model.fields"), width, slots)
                           for field, width, slots in fields)
  cls = MODELS[name]
  allowed = [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
  if not fields and "fields" not in allowed:
    del values["fields"]
  values = {**{key: find() for key, find in (facts or {}).items()
               if key in allowed and key not in values}, **values}
  if unknown := [key for key in values if key not in allowed]:
    raise errors.UserError(f"config.model: {name} has no field {unknown[0]!r}; there are "
                           f"{', '.join(allowed)}")
  model = cls(num_items=num_items, num_users=num_users, **values)
  for attribute, known in cls.choices.items():
    errors.choose(dict.fromkeys(known), getattr(model, attribute), f"model.{attribute}")
  model.check()
  return model
