"""Batches sampled on the device: data stays resident, batch n is a function of (seed, n).

What `streams` needs to choose the same batches on the host, of data that do not fit, is here too.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import errors
from recjax import hashing
from recjax.data import proposals
from recjax.data import sequences

ROUNDS = 8
WINDOWS = ("last", "prefix", "random")


def resident(data, *, split="train", min_length=1, slide=None, columns=(), popularity=None,
             labels=None, further=None):
  """Returns the host arrays that batches are sampled from.

  Args:
    data: `sequences.Dataset`.
    split: whose interactions are trained on.
    min_length: users with fewer are left out.
    slide: every window of so many items is an example (a shorter user gives one). None: every user
      is one, whole.
    columns: "ratings" adds what users gave, "baskets" in which basket of the user each row is,
      "seen" which items of the pool they own in `split` (see `objectives.negatives`), "targets"
      what they own in "targets" (see `histories`); with "global"
      the pool is all items, those of other domains included.
    popularity: adds the tables of `proposals.popularity`, with this power of an item's count.
    labels: int32 [U + 1], adds a label of every user; those without one (0) are left out.
    further: {"KIND/NAME": [R]}, further columns of the rows, which batches hold as well.

  Returns:
    {**further, "items" int32 [R], "users" int32 [n], "begin" and "end" [n] rows of each example,
    "pool" int32 [M] the domain's item ids}; "ratings" float32 [R]; "baskets" int32 [R];
    "seen_gaps" int32 [R' + 1], "seen_begin" and "seen_end" [U + 1]; "targets_begin" and
    "targets_end" [U + 1];
    "labels" [U + 1]. Row numbers are int32 while they fit.
  """
  begin, end = data.span(split)
  if labels is not None:
    end = np.where(labels > 0, end, begin)
  users, begin, end = examples(begin, end, min_length=min_length, slide=slide)
  if not len(users):
    raise errors.UserError(f"data set {data.name!r}: no user has {min_length} {split} interactions")
  if len(data.items) >= 2**31:
    raise errors.UserError(f"data set {data.name!r}: {len(data.items)} rows do not fit int32 rows "
                           "on a device; prepare it with --config.shards")
  arrays = {**(further or {}), "items": np.asarray(data.items), "users": users.astype(np.int32),
            "begin": begin.astype(np.int32), "end": end.astype(np.int32),
            "pool": pool(data, columns)}
  if "ratings" in columns:
    if data.ratings is None:
      raise errors.UserError(f"data set {data.name!r} has no ratings")
    arrays["ratings"] = np.asarray(data.ratings, np.float32)
  if "baskets" in columns:
    arrays["baskets"] = data.basket_numbers()
  if "seen" in columns:
    arrays |= _seen(data, split, arrays["pool"])
  if "targets" in columns:
    if "targets" not in data.parts:
      raise errors.UserError(f"data set {data.name!r} has no history before it; set config.history "
                             "to the data set that users are known from")
    for name, edge in zip(("targets_begin", "targets_end"), data.span("targets"), strict=True):
      arrays[name] = edge.astype(np.int32)
  if labels is not None:
    arrays["labels"] = labels
  if popularity is not None:
    arrays |= proposals.popularity(data.item_counts(split), arrays["pool"], popularity)
  return arrays


def beside(data):
  """Returns the host arrays of a second data set, whose train items are drawn beside a batch.

  Its users and items are numbered as the batch's: {"items" int32 [R], "begin" and "end" int32
  [U + 1] the train rows of every user, "pool", "seen_*"} as in `resident`.
  """
  begin, end = data.span("train")
  domain = pool(data, ())
  return {"items": np.asarray(data.items), "begin": begin.astype(np.int32),
          "end": end.astype(np.int32), "pool": domain, **_seen(data, "train", domain)}


def companions(data):
  """Returns int32 [U + 1]: the last train item of every user, 0 where there is none."""
  begin, end = data.span("train")
  return np.where(end > begin, np.asarray(data.items)[np.maximum(end - 1, 0)], 0).astype(np.int32)


def examples(begin, end, *, min_length=1, slide=None):
  """Returns (users, begin, end), int64 [n] each: what an epoch visits of users' rows begin..end.

  `min_length` and `slide` as in `resident`.
  """
  users = np.flatnonzero(end - begin >= min_length)
  begin, end = begin[users], end[users]
  if slide is not None:
    count = np.maximum(end - begin - slide, 0) + 1
    back = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    users, begin, end = np.repeat(users, count), np.repeat(begin, count), (
      np.repeat(end, count) - back)
    begin = np.maximum(begin, end - slide)
  return users, begin, end


def pool(data, columns):
  """Returns int32 [M]: the items of the domain, or with "global" in `columns` of all domains."""
  offered = np.ones_like(data.in_domain) if "global" in columns else np.array(data.in_domain)
  offered[0] = False
  if data.held_out is not None:
    offered &= ~data.held_out
  return np.flatnonzero(offered).astype(np.int32)


def make_sampler(*, num_users, batch_size, length, window):
  """Returns sample(resident, rng, step) -> batch, to be called inside jit.

  Every epoch visits each of the `num_users` examples once, in an order of its own; the last batch
  of an epoch is filled up with rows of user 0 and padding. The batch is {"items" int32 [B, length]
  left-padded, "users" int32 [B]}, and where they are resident "ratings" float32 [B, length],
  "baskets" int32 [B, length] and the further columns of rows.

  Windows: "last" ends at a user's last item; "prefix" at the k-th, k uniform over 3..n (shorter
  sequences: over n alone), as the survey's next-item task; "random" at a uniform end among those
  that fill the window.
  """
  check_window(window)

  def sample(tables, rng, step):
    row, real = _rows_of_step(rng, step, num_users, batch_size)
    begin, end = tables["begin"][row], tables["end"][row]
    least = first_end(begin, end, length, window, jnp)
    if window != "last":
      end = least + _draw(step_key(rng, step), end - least)
    index = end[:, None] - length + jnp.arange(length)
    inside = (index >= begin[:, None]) & real[:, None]
    take = lambda name: jnp.where(inside, tables[name][jnp.maximum(index, 0)], 0)
    return {"users": jnp.where(real, tables["users"][row], 0),
            **{name: take(name) for name in tables
               if name in ("items", "ratings", "baskets") or "/" in name}}

  return sample


def make_row_sampler(*, num_rows, batch_size):
  """Returns sample(resident, rng, step) -> {"rows" int32 [B], "mask" bool [B]}.

  Every epoch visits each of the `num_rows` rows once, in an order of its own; the last batch of an
  epoch is filled up with rows that the mask leaves out.
  """
  def sample(tables, rng, step):
    del tables
    rows, real = _rows_of_step(rng, step, num_rows, batch_size)
    return {"rows": rows, "mask": real}

  return sample


def _rows_of_step(rng, step, count, batch_size):
  """Returns (rows int32 [B] of 0..count-1 that a step visits, bool [B] which do not fill up)."""
  per_epoch = -(-count // batch_size)
  epoch, place = step // per_epoch, step % per_epoch
  slot = place * batch_size + jnp.arange(batch_size)
  rows = permute(jnp.minimum(slot, count - 1), count, epoch_key(rng, epoch))
  return rows, slot < count


def check_window(window):
  """Raises UserError for the name of a window that there is not."""
  if window not in WINDOWS:
    raise errors.UserError(f"objective.window is {window!r}; there are {', '.join(WINDOWS)}")


def first_end(begin, end, length, window, xp=np):
  """Returns where a `window` of rows begin..end may end at the earliest."""
  return {"last": end, "prefix": xp.minimum(begin + 3, end),
          "random": xp.minimum(begin + length, end)}[window]


def epoch_key(rng, epoch):
  """Returns the key that an epoch's order comes from."""
  return jax.random.fold_in(jax.random.fold_in(rng, 0), epoch)


def step_key(rng, step):
  """Returns the key that a step draws the ends of its windows with."""
  return jax.random.fold_in(jax.random.fold_in(rng, 1), step)


def _draw(key, spans):
  return jax.random.randint(key, spans.shape, 0, spans + 1)


def host_key(seed, host=None):
  """Returns the key that the train steps of a run with this seed hand to their sampler.

  Of several hosts each has a key of its own.
  """
  with _on_cpu():
    key = jax.random.split(jax.random.key(seed), 3)[0]  # as `step.make_train_steps` splits it
    return key if host is None else jax.random.fold_in(key, 2 + host)


def order_bits(rng, epoch, part):
  """Returns the `keys` of `permute_on_host` for an epoch, or for one of its parts (not None)."""
  with _on_cpu():
    key = epoch_key(rng, epoch)
    key = key if part is None else jax.random.fold_in(key, part)
    return np.asarray(jax.random.bits(key, (ROUNDS,), jnp.uint32))


def draw_on_host(rng, steps, spans):
  """Returns int32 [K, B]: what the sampler adds to the first ends of K steps' windows.

  Args:
    rng: of `host_key`.
    steps: [K].
    spans: int32 [K, B], from the first end to the last one.
  """
  with _on_cpu():
    return np.asarray(_draw_many(rng, np.asarray(steps, np.int32), spans))


@jax.jit
def _draw_many(rng, steps, spans):
  return jax.vmap(lambda step, span: _draw(step_key(rng, step), span))(steps, spans)


def _on_cpu():
  """Returns a context for small computations that should not wait for an accelerator's steps."""
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS leaves out the CPU; the bits are the same everywhere.
    return contextlib.nullcontext()


def permute(index, size, key):
  """Returns p(index) for a random permutation p of range(size), without materializing it.

  A Feistel network over the next power of two, walked until it lands inside (Black & Rogaway 2002):
  cost and memory grow with `index`, not with `size`, so an epoch over millions of users is shuffled
  a batch at a time.
  """
  scramble = functools.partial(_scramble, size, jax.random.bits(key, (ROUNDS,), jnp.uint32))
  outside = lambda x: jnp.any(x >= size)
  walk = lambda x: jnp.where(x >= size, scramble(x), x)
  return jax.lax.while_loop(outside, walk, scramble(index.astype(jnp.uint32))).astype(jnp.int32)


def permute_on_host(index, size, keys):
  """Returns what `permute` does, computed with numpy.

  Args:
    index: integers [n].
    size: of the permuted range.
    keys: uint32 [ROUNDS], `jax.random.bits` of `permute`'s key.
  """
  x = _scramble(size, keys, index.astype(np.uint32))
  while (outside := x >= size).any():
    x[outside] = _scramble(size, keys, x[outside])
  return x.astype(np.int64)


def _scramble(size, keys, x):
  """Returns a permutation of the uint32 `x`, of a range that holds `size`; numpy or jax."""
  bits = max((size - 1).bit_length(), 2)
  low = bits // 2
  low_mask, high_mask = np.uint32(2**low - 1), np.uint32(2**(bits - low) - 1)
  left, right = x >> low, x & low_mask
  for turn in range(ROUNDS):
    if turn % 2:
      right = right ^ (hashing.mix(left ^ keys[turn], hashing.LOWBIAS) & low_mask)
    else:
      left = left ^ (hashing.mix(right ^ keys[turn], hashing.LOWBIAS) & high_mask)
  return (left << low) | right


def attribute_tables(data, fields, *, extra_tokens=0):
  """Returns {field: int32 [N + 2 + extra_tokens, slots]}: attribute ids of every token.

  Ids are 1..K, and K + 1 says "unknown": for items without a value, for MASK (a masked item must
  not leak through its attributes) and for the extra tokens. Padding, and places after an item's
  last value, hold 0.

  Args:
    data: `sequences.Dataset`.
    fields: (name, width, slots) from `config.model.fields`.
    extra_tokens: ids after MASK.
  """
  tables = {}
  for name, _, slots in fields:
    if name not in data.features:
      raise errors.UserError(f"model.fields names {name!r}, but data set {data.name!r} has "
                             f"{', '.join(data.features) or 'no attributes'}")
    feature = data.features[name]
    unknown = len(feature.ids)
    table = np.zeros((data.num_items + 2 + extra_tokens, slots), np.int32)
    values = np.asarray(feature.values)[:, :slots]
    table[:data.num_items + 1, :values.shape[1]] = values
    nothing = ~np.any(table > 0, axis=1)
    nothing[0] = False
    table[nothing] = unknown
    tables[name] = table
  return tables


def field_rows(data):
  """Returns {attribute: rows of its table}: its values and one for "unknown"."""
  return {name: len(feature.ids) for name, feature in data.features.items()}


def _seen(data, split, pool):
  """Returns the table that `objectives.negatives` searches.

  User u's entries seen_begin[u]:seen_end[u] are s_i - i for the ascending distinct places s_i in
  `pool` of what it owns; one entry more at the end, which is nobody's, keeps look-ups in range.
  """
  begin, end = data.span(split)
  place = np.full(data.num_items + 1, -1, np.int64)
  place[pool] = np.arange(len(pool))
  places = place[sequences.take_ranges(data.items, begin, end)]
  keys = np.repeat(np.arange(len(begin)), end - begin) * len(pool) + places
  owner, places = np.divmod(np.unique(keys[places >= 0]), len(pool))
  last = np.cumsum(np.bincount(owner, minlength=len(begin)))
  first = np.concatenate([[0], last[:-1]])
  gaps = places - (np.arange(len(places)) - first[owner])
  return {"seen_gaps": np.append(gaps, 0).astype(np.int32), "seen_begin": first.astype(np.int32),
          "seen_end": last.astype(np.int32)}
