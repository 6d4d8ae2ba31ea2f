"""Objectives by name, built from a config's `objective` fields.

An objective is a frozen dataclass that says what is learned from a batch and how the learned model
predicts. The loop and the compiled step know only this of it, for which `objective.Objective` has
defaults:

    trains         False: the model is computed from the data, without steps
    task           "ranking", "rating", "classification", "response", "links" or "edges": which
                   evaluator judges it
    counts(batch)  "examples" and "tokens" of a batch, for rates
    window         which part of a long sequence is sampled (`batches.WINDOWS`)
    min_length     users with fewer training items are left out
    extra_columns  columns of a sampled window beyond the model's positions
    slide          True: an epoch visits every window of every user, not one of each
    columns        what `batches.resident` adds: "ratings", "baskets", "seen", "global", "targets";
                   with "baskets" `predict` gets those of the histories, too
    profile        None, or which label of users is learned, as `data.profiles.labels` takes it
    questions      what is asked about the next behavior, as `data.responses` has it; () is nothing
    popularity     None, or the power of an item's count that `batches.resident` adds draws for
    prepare(rng, batch, resident)            -> inputs, [B, ...] each
    loss(apply_fn, params, inputs, ...)      -> (sum, weight, metrics)
    item_inputs    inputs that hold all items that the loss reads; () where it reads every item
    item_ids(inputs)                         -> arrays that hold them all (once is enough)
    labels(inputs)                           -> [B] how many labels each row has
    label_statistics(lengths)                -> (mean, variance, most) labels of a row
    capacity(lengths, rows=, columns=)       -> what `loss` gets as its capacity
    rows_together  how many rows, that lie together, the loss compares; None: the whole batch
    width(length)                            -> columns of inputs from a window of so many
    trim           None, or (inputs, columns) -> inputs without all but the last columns
    filled(lengths, rows=)                   -> room for what is read of so many rows together
    fit            None, or (inputs, positions) -> (inputs that fill no more of them, the oldest
                   items going first; how many labels went with them)
    auxiliary      ((name of `models.AUXILIARY`, options of `data.auxiliary`), ...): what is
                   learned beside the model; arrays to draw from are in resident[name]
    predicts       False: it scores no items, and is for mixes alone, beside one that does
    room(max_len)                            -> past items that fit the model
    predict(apply_fn, params, users, ...)    -> scores [B, N + 1], or what `readout` makes of
                                                them, or ratings

and, on graphs (see `links` and `edges`),

    examples       the array of `graphs.resident` whose rows an epoch visits

and, where a step goes on with further updates of the optimizer, of inputs made from the last ones,

    updates                                  how many updates a step takes
    again(apply_fn, params, inputs, rng)     -> inputs of the next; from before the last
"""

import functools
import inspect

from recjax import errors
from recjax.objectives import attributes
from recjax.objectives import baskets
from recjax.objectives import candidate_softmax
from recjax.objectives import contrast
from recjax.objectives import cross_pair
from recjax.objectives import edge_sampling
from recjax.objectives import friends
from recjax.objectives import knowledge
from recjax.objectives import logistic
from recjax.objectives import margin_ranking
from recjax.objectives import masked_item
from recjax.objectives import masked_window
from recjax.objectives import mix
from recjax.objectives import next_item
from recjax.objectives import next_window
from recjax.objectives import one_to_all
from recjax.objectives import pair
from recjax.objectives import rating
from recjax.objectives import responses
from recjax.objectives import skip_gram
from recjax.objectives import untrained
from recjax.objectives import user_task

OBJECTIVES = {
  "autoencode": rating.Autoencode,
  "basket_items": baskets.BasketItems,
  "candidate_softmax": candidate_softmax.CandidateSoftmax,
  "contrast": contrast.Contrast,
  "edge_sampling": edge_sampling.EdgeSampling,
  "connected": friends.Connected,
  "friends": friends.Friends,
  "item_attribute": attributes.ItemAttribute,
  "knowledge": knowledge.Knowledge,
  "logistic": logistic.Logistic,
  "margin_ranking": margin_ranking.MarginRanking,
  "masked_attribute": attributes.MaskedAttribute,
  "masked_rating": rating.MaskedRating,
  "masked_item": masked_item.MaskedItem,
  "masked_window": masked_window.MaskedWindow,
  "masked_basket": baskets.MaskedBasket,
  "mix": mix.Mix,
  "next_basket": baskets.NextBasket,
  "next_item": next_item.NextItem,
  "next_window": next_window.NextWindow,
  "causal_next_item": next_item.CausalNextItem,
  "click": responses.Click,
  "cross_pair": cross_pair.CrossPair,
  "first_item": user_task.FirstItem,
  "one_to_all": one_to_all.OneToAll,
  "pair": pair.Pair,
  "price_preference": responses.PricePreference,
  "profile": user_task.Profile,
  "shop_preference": responses.ShopPreference,
  "skip_gram": skip_gram.SkipGram,
  "untrained": untrained.Untrained,
}


def make(name, *, known=None, num_items=None, num_entities=None, window=None, **fields):
  """Returns the objective of `config.objective`.

  Args:
    name: a key of OBJECTIVES; "mix" weights and adds several (`objective.mix.parts`).
    known: names of the objectives that the model can be trained on; None: any, where there is no
      model yet.
    num_items: N, of sequences.
    num_entities: E, of a graph.
    window: which part of a long sequence is trained on (None: the objective's own choice).
    **fields: {objective name: its fields}; those of other objectives are ignored, so that one
      config serves all.
  """
  errors.choose(OBJECTIVES, name, "objective.name")
  if unknown := [key for key in fields if key not in OBJECTIVES]:
    raise errors.UserError(f"config.objective: unknown field {unknown[0]!r}")
  sizes = {"num_items": num_items, "num_entities": num_entities}
  build = functools.partial(_one, sizes=sizes, known=known, window=window, fields=fields)
  if name != "mix":
    if not OBJECTIVES[name].predicts:
      raise errors.UserError(f"objective.name={name} scores no items; learn it beside a task that "
                             "does, with objective.name=mix and objective.mix.parts")
    return build(name, what="objective.name")
  given = dict(fields.get("mix") or {})
  parts = {}
  for part in given.get("parts") or ():
    if len(part) != 2 or isinstance(part, str):
      raise errors.UserError("objective.mix.parts: each is (name, weight), not "
                             f"{part!r}")
  weighed = [part for part in given.get("parts") or () if part[1] != 0]
  parts = {part: build(part, what="objective.mix.parts") for part, _ in weighed}
  return mix.Mix(
    tuple(mix.Part(part, float(weight), parts[part]) for part, weight in weighed),
    evaluate=given.get("evaluate") or next(iter(parts), ""),
    window=mix.agreed_window(parts))


def _one(name, *, what, sizes, known, window, fields):
  """Returns the objective `name`, which the config's field `what` asks for; see `make`."""
  cls = errors.choose(OBJECTIVES, name, what)
  if known is not None and name not in known:
    raise errors.UserError(f"{what}={name!r} does not fit this model; choose "
                           f"{' or '.join(known)}")
  values = dict(fields.get(name) or {})
  allowed = inspect.signature(cls).parameters
  if window is not None and not (what == "objective.mix.parts" and "window" not in allowed):
    values["window"] = window
  if unknown := [key for key in values if key not in allowed]:
    raise errors.UserError(f"config.objective: {name} has no field {unknown[0]!r}; there are "
                           f"{', '.join(key for key in allowed if key not in sizes)}")
  known = {key: size for key, size in sizes.items() if size is not None and key in allowed}
  return cls(**known, **values)
