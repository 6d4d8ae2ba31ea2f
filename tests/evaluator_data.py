"""Small data sets and score functions for the tests of `recjax.evaluators`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from recjax.data import sequences, shards


def dataset(users, num_items, *, in_domain=None):
  """Returns a `Dataset` of [(train, val, test), ...] item lists, in that order in time."""
  rows = [[*train, *val, *test] for train, val, test in users]
  lengths = np.array([0] + [len(row) for row in rows])
  cuts = np.array([[0, 0, 0]] + [[len(part) for part in user] for user in users])
  ends = np.cumsum(cuts, axis=1)
  domain = np.ones(num_items + 1, bool)
  if in_domain is not None:
    domain[:] = np.isin(np.arange(num_items + 1), in_domain)
  domain[0] = False
  items = np.array([item for row in rows for item in row], np.int32)
  return sequences.Dataset(
    manifest={"name": "small"}, in_domain=domain, items=items, times=np.arange(len(items)),
    user_ids=np.arange(len(users) + 1).astype("S6"), item_ids=np.arange(num_items + 1).astype("S6"),
    offsets=np.concatenate([[0], np.cumsum(lengths)]), splits=np.stack([ends - cuts, ends], -1))


def random_dataset(num_users=40, num_items=300, *, domain=200, seed=0, positives=(1, 5)):
  """Returns a data set of two domains: items 1..`domain` are its own; train items can repeat."""
  rng = np.random.default_rng(seed)
  users = []
  for _ in range(num_users):
    held_out = rng.choice(domain, size=8, replace=False) + 1
    train = rng.integers(1, domain + 1, rng.integers(3, 30))
    train = train[~np.isin(train, held_out)]
    users.append((train, held_out[:2], held_out[2:2 + rng.integers(*positives)]))
  return dataset(users, num_items, in_domain=range(1, domain + 1))


def lookup(table, users, histories):
  """A score function whose parameters are the scores, [U + 1, N + 1]."""
  del histories
  return jnp.asarray(table)[users]


def oracle(data, split="test"):
  """Returns scores [U + 1, N + 1]: 1 for what the user has in `split`, random below 1 elsewhere."""
  scores = np.random.default_rng(1).uniform(size=(data.num_users + 1, data.num_items + 1))
  begin, end = data.span(split)
  for user in range(1, data.num_users + 1):
    scores[user, data.items[begin[user]:end[user]]] = 1
  return scores.astype(np.float32)


def shard(data, folder, count):
  """Writes `data` to `folder`/NAME in `count` shards, as prepared ones; returns them, loaded."""
  draft = folder / data.name
  draft.mkdir(parents=True)
  texts = [name.decode() for name in np.asarray(data.user_ids)[1:]]
  out = shards.Writer(draft, texts, np.asarray(data.offsets), np.asarray(data.splits),
                      num_items=data.num_items, shards=count)
  values = {"items": data.items, "times": data.times, "ratings": data.ratings}
  out.append({name: np.asarray(x) for name, x in values.items() if x is not None})
  out.close()
  listed = {"columns": out.columns, "files": out.entries}
  rows = sequences.sharded(draft, listed, data.offsets)
  sequences.write(draft, dataclasses.replace(
    data, manifest={**data.manifest, "shards": listed}, counts=out.counts, **rows))
  return sequences.load(folder, data.name)
