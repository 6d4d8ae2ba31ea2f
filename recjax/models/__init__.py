"""Models by name, built from a config's `model` fields.

A model is a linen module (or, where nothing is learned by gradients, an object with the same
methods). Beside `__call__(..., tables, train)`, whose other arguments are the inputs that its
objectives prepare, it has

    objectives           names of the objectives that it can be trained on
    max_len              positions that it reads
    fields, extra_tokens attribute tables that it reads, ids after MASK
    features             `features.Spec`s of what it aggregates with items, where it can
    user_features        likewise, with users
    choices              {attribute: values allowed}
    check()              raises UserError where sizes do not fit together
    example_inputs()     inputs that start its parameters
    row_tables()         leaves whose rows stand for named things
    transfer_rules(mode) what a transfer mode carries
    optim_rules(mode)    rules of `recjax.optim` that it adds, after the config's (optional)
    leaf_options()       ((regex, options of `optim.plan`), ...), where leaves have constraints or
                         are running averages

where a score costs more than an inner product,

    costly               True: evaluators score no more items than they must

where it answers questions about the next behavior (`recjax.objectives.responses`),

    responses            ((name, classes), ...): its heads; 0 classes where an item is scored
    properties           ((name, width), ...) of past behaviors that it reads, if any
    profile              ((attribute of users, width), ...) that it reads, if any

where it learns two domains at once,

    other                the data set of the second one

and, where its parameters are computed from the data instead of trained,

    fit(data)            the parameters; `init` then only says their shapes

and, where devices may split the rows of its item tables: it reads these through `layers.ItemTable`,
`layers.held` and `catalog.Scores` alone,

    splits_items         True
"""

import dataclasses

from recjax import errors
from recjax.models import autoencoder
from recjax.models import auxiliary
from recjax.models import basket_bert
from recjax.models import bert4rec
from recjax.models import bert4rec_rating
from recjax.models import bert4sessrec
from recjax.models import caser
from recjax.models import complex_embeddings
from recjax.models import conet
from recjax.models import content_cosine
from recjax.models import dot
from recjax.models import dupn
from recjax.models import features as features_lib
from recjax.models import fm
from recjax.models import gru4rec
from recjax.models import item_knn
from recjax.models import neumf
from recjax.models import nextitnet
from recjax.models import node_vectors
from recjax.models import proje
from recjax.models import sasrec
from recjax.models import translation
from recjax.models import tucker
from recjax.models import user_knn

MODELS = {
  "autoencoder": autoencoder.Autoencoder,
  "basket_bert": basket_bert.BasketBERT,
  "bert4rec": bert4rec.BERT4Rec,
  "bert4rec_rating": bert4rec_rating.BERT4RecRating,
  "bert4sessrec": bert4sessrec.BERT4SessRec,
  "caser": caser.Caser,
  "complex": complex_embeddings.ComplEx,
  "conet": conet.CoNet,
  "content_cosine": content_cosine.ContentCosine,
  "dot": dot.Dot,
  "dupn": dupn.DUPN,
  "fm": fm.FM,
  "gru4rec": gru4rec.GRU4Rec,
  "item_knn": item_knn.ItemKNN,
  "neumf": neumf.NeuMF,
  "nextitnet": nextitnet.NextItNet,
  "node_vectors": node_vectors.NodeVectors,
  "proje": proje.ProjE,
  "sasrec": sasrec.SASRec,
  "transd": translation.TransD,
  "transe": translation.TransE,
  "transh": translation.TransH,
  "transr": translation.TransR,
  "tucker": tucker.TuckER,
  "user_knn": user_knn.UserKNN,
}
VARIANTS = {
  "autoencoder": autoencoder.VARIANTS,
  "basket_bert": basket_bert.VARIANTS,
  "bert4rec": bert4rec.VARIANTS,
  "bert4rec_rating": bert4rec_rating.VARIANTS,
  "bert4sessrec": bert4sessrec.VARIANTS,
  "caser": caser.VARIANTS,
  "complex": complex_embeddings.VARIANTS,
  "conet": conet.VARIANTS,
  "content_cosine": content_cosine.VARIANTS,
  "dot": dot.VARIANTS,
  "dupn": dupn.VARIANTS,
  "fm": fm.VARIANTS,
  "gru4rec": gru4rec.VARIANTS,
  "item_knn": item_knn.VARIANTS,
  "neumf": neumf.VARIANTS,
  "nextitnet": nextitnet.VARIANTS,
  "node_vectors": node_vectors.VARIANTS,
  "proje": proje.VARIANTS,
  "sasrec": sasrec.VARIANTS,
  "transd": translation.TRANSD_VARIANTS,
  "transe": translation.TRANSE_VARIANTS,
  "transh": translation.TRANSH_VARIANTS,
  "transr": translation.TRANSR_VARIANTS,
  "tucker": tucker.VARIANTS,
  "user_knn": user_knn.VARIANTS,
}
AUXILIARY = {
  "knowledge": auxiliary.SharedLinks,
  "attributes": auxiliary.AttributeScores,
  "social": auxiliary.UserVectors,
}
SCORERS = ("transe", "complex")  # of knowledge, with the width of items
RESERVED = ("item", "user", "rating", "segment", "layer_norm", "drop")


def make(name, *, variant, field_rows, fields=(), features=(), feature_sizes=None,
         user_features=(), user_feature_sizes=None, facts=None, num_items=None, num_users=None,
         num_entities=None, num_relations=None, **overrides):
  """Returns the model of `config.model`.

  Args:
    name: a key of MODELS.
    variant: a key of VARIANTS[name], the defaults of everything below.
    field_rows: {attribute: rows of its table} of what the data offers.
    fields: (attribute, width, slots) of those that the model reads.
    features: {NAME: options} of providers whose vectors are aggregated with the items'.
    feature_sizes: {NAME: columns or rows} of what they provide.
    user_features: {NAME: options} of what is known of users, likewise.
    user_feature_sizes: likewise.
    facts: {attribute: function that finds it in the data}, for attributes that a model may have
      (`rating_mean`); those that it has not are never looked for.
    num_items: N, and
    num_users: U, of sequences.
    num_entities: E, and
    num_relations: R, of a graph.
    **overrides: attributes of the model; None leaves the variant's.
  """
  variants = errors.choose(VARIANTS, name, "model.name")
  values = dict(errors.choose(variants, variant, "model.variant"))
  # A config that was stored has lists for tuples, which could not be hashed.
  values.update({key: _tuples(value) for key, value in overrides.items() if value is not None})
  for field, *_ in fields:
    if not field.isidentifier() or field in RESERVED:
      raise errors.UserError(f"model.fields: {field!r} cannot name a table; rename the attribute")
  values["fields"] = tuple((field, errors.choose(field_rows, field, "model.fields"), width, slots)
                           for field, width, slots in fields)
  cls = MODELS[name]
  sizes = {"num_items": num_items, "num_users": num_users} if num_entities is None else {
    "num_entities": num_entities, "num_relations": num_relations}
  allowed = [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
  if not set(sizes) <= set(allowed):
    raise errors.UserError(f"model.name={name} does not learn from data with "
                           f"{' and '.join(key.removeprefix('num_') for key in sizes)}; choose "
                           "another model or another dataset")
  values["features"] = features_lib.specs(features, feature_sizes) if features else ()
  values["user_features"] = features_lib.specs(
    user_features, user_feature_sizes, field="model.user_features") if user_features else ()
  for optional in ("fields", "features", "user_features"):
    if not values[optional] and optional not in allowed:
      del values[optional]
  values = {**{key: find() for key, find in (facts or {}).items()
               if key in allowed and key not in values}, **values}
  if unknown := [key for key in values if key not in allowed]:
    raise errors.UserError(f"config.model: {name} has no field {unknown[0]!r}; there are "
                           f"{', '.join(allowed)}")
  model = cls(**sizes, **values)
  for attribute, known in cls.choices.items():
    errors.choose(dict.fromkeys(known), getattr(model, attribute), f"model.{attribute}")
  model.check()
  return model


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def make_auxiliary(name, *, initializer, item_width, width_of_x, sides=None, **sizes):
  """Returns the module `name` of AUXILIARY beside a model of sequences.

  Args:
    name: a key of AUXILIARY.
    initializer: of the model's tables.
    item_width: of its item table.
    width_of_x: of the vectors that it compares with items.
    sides: {side: width of the answer}, of what is asked about vectors.
    **sizes: of `data.auxiliary`, and for knowledge how triples are scored.
  """
  if name == "knowledge":
    return _shared_links(initializer, item_width, **sizes)
  if name == "attributes":
    widths = tuple((side, item_width if side == "item" else width_of_x) for side in sides)
    return auxiliary.AttributeScores(**sizes, sides=widths)
  return auxiliary.UserVectors(initializer=initializer, sides=tuple(
    (side, width_of_x, answer) for side, answer in sides.items()))


def _shared_links(initializer, width, *, scorer, norm, normalize, num_own, num_entities,
                  num_relations):
  errors.choose(dict.fromkeys(SCORERS), scorer, "objective.knowledge.scorer")
  fields = dict(variant="free", width=width, norm=norm)
  if scorer == "complex":
    if width % 2:
      raise errors.UserError(f"objective.knowledge.scorer=complex: items of width {width} have no "
                             "half that is imaginary; set model.item_width to an even number")
    fields = dict(variant="wn18", width=width // 2)
  link = make(scorer, field_rows={}, num_entities=num_entities, num_relations=num_relations,
              **fields)
  return auxiliary.SharedLinks(
    score=link.apply, num_own=num_own, num_relations=num_relations, width=width,
    initializer=initializer, normalize=normalize)
