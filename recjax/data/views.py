"""A prepared data set as a run's config sees it: what is joined to it, held out, or added."""

import dataclasses

import numpy as np

from recjax import errors
from recjax.data import (
  behaviors,
  held_out,
  histories,
  profiles,
  providers,
  ratings,
  responses,
  sequences,
)


def as_configured(config, data):
  """Returns (Dataset, {feature: Provider} of items, and of users): as the config changes it.

  Fields that a config of an older version lacks are off.
  """
  if share := tuple(config.get("held_out_items") or ()):
    data = held_out.hold_out(data, share)
  if share := tuple(config.get("held_out_users") or ()):
    data = held_out.hold_out_users(data, share)
  if history := config.get("history", ""):
    data = histories.join(data, sequences.load(config.data_dir, history))
  provided = providers.read(data, config.model.get("features") or ())
  people = providers.read_users(data, config.model.get("user_features") or ())
  files = providers.digests(provided) | providers.digests(people, "user/")
  if files:  # A resumed run checks them as part of its data.
    data = dataclasses.replace(data, manifest={**data.manifest, "feature_files": files})
  return data, provided, people


def user_tables(data, config, people):
  """Returns the tables of what is known of users, "user/feature/NAME" and, bool [U + 2],

    user/item/unowned   users without a vector of their own: never trained on, see `item_flags`
  """
  if not people:
    return {}
  new = data.lengths("targets" if "targets" in data.parts else "train") == 0
  new[0] = False
  return {**providers.tables(people, of="user/"),
          "user/item/unowned": np.append(new & (not config.transfer.checkpoint), False)}


def facts(config, data, objective):
  """Returns {model attribute: function that finds it in the data}, for `models.make`."""
  properties = [name for name, _ in config.model.get("properties") or ()]
  return (ratings.facts(data) | profiles.facts(data, objective.profile)
          | responses.facts(data, objective.questions) | behaviors.facts(data, properties))


def item_flags(data, config, *, extra_tokens, features):
  """Returns the tables, bool [tokens], that say which items are set apart.

    item/barred    held out: in training they do not compete, so that nothing is learned against
                   them
    item/unowned   without a vector of their own, for `features`: held out, or never trained on
                   here nor (which the run cannot know) in a run that it transfers from
  """
  flags = {}
  apart = np.zeros(data.num_items + 1, bool)
  if data.held_out is not None:
    apart |= data.held_out
    flags["item/barred"] = apart
  if features:
    new = data.item_counts("train") == 0
    new[0] = False
    flags["item/unowned"] = apart | (new & (not config.transfer.checkpoint))
  return {name: np.append(flag, np.zeros(1 + extra_tokens, bool)) for name, flag in flags.items()}


def beside(data_dir, name, data):
  """Returns the data set `name`, whose users and items must be those of `data`."""
  other = sequences.load(data_dir, name)
  if data.shards is not None or other.shards is not None:
    raise errors.UserError("model.other: two domains are not learned from shards; prepare the data "
                           "with --config.shards=0")
  same = lambda field: np.array_equal(getattr(data, field), getattr(other, field))
  if not (same("user_ids") and same("item_ids")):
    raise errors.UserError(f"model.other: {name!r} numbers users and items otherwise than "
                           f"{data.name!r}; prepare both in one run of recjax.prepare")
  if data.held_out is not None and np.any(data.held_out & np.asarray(other.in_domain)):
    raise errors.UserError(f"held_out_items: items of {data.name!r} that are held out are in the "
                           f"domain of {name!r} too, and would be learned there; take domains "
                           "without common items, or leave held_out_items out")
  return other
