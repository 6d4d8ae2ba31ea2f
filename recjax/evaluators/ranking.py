"""Ranks each evaluated user's held-out items under several candidate protocols in one pass.

    uniform100_global, uniform100_domain, pop100   positives + sampled negatives, see candidates.py
    full   every item of the domain, less the user's train and val items
    full_repeats   every item of the domain: where choosing again is the rule, as in baskets. It has
           F1 and hit rate as further metrics and personal frequency as a reference
    cold   the held-out items alone, less those that the user owns: cold items among themselves, of
           which popularity says no more than chance. Of the test split only, and of its users who
           own one there; others have NaN
    survey_caser_legacy   A KNOWN DEFECT, only to reproduce published numbers: uniform100_global,
           where every positive is replaced by another item (see `candidates.item_before`)

A positive is always a candidate, even if the user owned it before. The device counts for each
positive how many candidates beat and tie it; that needs no sort and no [B, N] mask, and the host
turns the counts into metrics. Where a batch of users has too many scores to hold (`catalog.HELD`),
they are counted over blocks of the catalog; there, and where scores are costly, only the candidates
are scored if no protocol asks for all items.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax import catalog, collective, errors
from recjax.data import sequences
from recjax.evaluators import candidates, held_out, metrics, popularity, values

PROTOCOLS = (*candidates.SAMPLED, "full")
REPEATS = "full_repeats"
COLD = "cold"
WHOLE = ("full", REPEATS, COLD)
LEGACY = "survey_caser_legacy"  # Never a default: it must be asked for by name.
CONTEXTS = held_out.CONTEXTS


def metric_names(ks):
  """Returns {protocol: names of its metrics} of those that may decide on a checkpoint."""
  usual = metrics.names(ks)
  return {**dict.fromkeys(PROTOCOLS, usual), REPEATS: [*usual, *metrics.set_names(ks)]}


class Ranking:
  """Evaluates score functions on the users who own at least one item in `split`."""

  def __init__(self, data, *, split="test", contexts=None, protocols=PROTOCOLS,
               ks=(3, 5, 10), num_negatives=100, seed=0, batch_size=256, history_length=100,
               cache_dir=None, max_users=None, costly=False, put=jnp.asarray, baskets=False):
    """Prepares users, positives, negatives and exclusions once.

    Args:
      data: `sequences.Dataset`.
      split: "val" or "test".
      contexts: what the model sees of a user, "train" or "train+val" (the latter for the test split
        only); all that the split allows by default.
      protocols: names out of `PROTOCOLS`, `REPEATS`, `COLD` or `LEGACY`.
      ks: cut-offs of NDCG and recall.
      num_negatives: negatives per user in the sampled protocols.
      seed: fixes the negatives and the choice of `max_users`; not the run's seed.
      batch_size: users per batch, always filled up; a multiple of the data-parallel devices.
      history_length: most recent items that a score function gets.
      cache_dir: folder that keeps the negatives, or None.
      max_users: evaluate a fixed random subset of this size.
      costly: score candidates alone where that is all that the protocols ask for.
      put: places one host array, [batch_size, ...], on the devices.
      baskets: whether score functions also get the numbers of the histories' baskets.

    Raises:
      UserError: an unknown name, a split without users, or a positive that is no candidate.
    """
    contexts = held_out.choose_contexts(split, contexts)
    held_out.check("protocol", protocols, (*PROTOCOLS, REPEATS, COLD, LEGACY))
    if split != "test":
      protocols = tuple(name for name in protocols if name != COLD)
    if min(*ks, batch_size, history_length, num_negatives) < 1:
      raise errors.UserError("evaluation: ks, batch_size, history_length and num_negatives must be "
                             f"at least 1, not {(ks, batch_size, history_length, num_negatives)}")
    self._data, self._split, self._put = data, split, put
    self._batch_size, self._history_length = batch_size, history_length
    self.contexts, self.protocols, self.ks = tuple(contexts), tuple(protocols), tuple(ks)
    self.users = held_out.choose_users(data, split, max_users, seed)
    self._positives = candidates.distinct_items(data, self.users, (split,))
    if not data.in_domain[self._positives[0]].all():
      raise errors.UserError(f"data set {data.name!r} holds out items that are not in its domain; "
                             "prepare the data again")
    self._excluded = None
    if "full" in protocols:
      # What was held out of a user's history is in no split, and nothing to be recommended again.
      owned = candidates.EVERYTHING if data.withholds else tuple(
        part for part in data.parts if part != "test")
      self._excluded = candidates.distinct_items(data, self.users, owned, without=(split,))
    elif REPEATS in protocols:
      self._excluded = np.zeros(0, np.int32), np.zeros(len(self.users) + 1, np.int64)
    self._negatives = {
      name: candidates.load_or_sample(
        data, self.users, split, "uniform100_global" if name == LEGACY else name,
        num_negatives=num_negatives, seed=seed, cache_dir=cache_dir)
      for name in protocols if name not in WHOLE}
    self._cold = _Cold(data, self.users, self._positives[0]) if COLD in protocols else None
    self._before = candidates.item_before(data) if LEGACY in protocols else None
    self._in_domain = np.array(data.in_domain)
    self._in_domain[0] = False
    # Users with alike numbers of positives share a batch: its width is that of its largest row.
    self._order = np.argsort(np.diff(self._positives[1]), kind="stable")
    self._spans = {context: held_out.history_span(data, self.users, split, context)
                   for context in self.contexts}
    self._read = (data.items, *((data.basket_numbers(),) if baskets else ()))
    self._streams = (batch_size * (data.num_items + 1) > catalog.HELD
                     or costly and "full" not in protocols)
    self._score = (None, None)

  def run(self, score_fn, params, *, contexts=None, history_length=None):
    """Returns the `Results` of `score_fn(params, users [B], histories [B, T])`, scores [B, N + 1].

    Histories are left-padded with the most recent item last, all of them as long as
    `history_length` says instead of the evaluator's own; column 0 of the scores is ignored.
    `score_fn` is compiled once per function object: pass the same one each time. Batches are filled
    up with user 0 and an empty history. In a large catalog (and where it is costly) it is also
    given `readout`, a function of the `catalog.Scores` [B, 1] (a `jax.tree_util.Partial` of arrays
    [B, ...]) whose answer it returns instead.

    Raises:
      FloatingPointError: a score of an evaluated user is NaN (if it is looked at: all are, but for
        sampled protocols alone in a large catalog).
    """
    if score_fn != self._score[0]:  # Not `is`: each look-up of a method is a new object.
      self._score = (score_fn, jax.jit(functools.partial(self._stream, score_fn)
                                       if self._streams else score_fn))
    def dispatch():
      for piece in held_out.pieces(len(self.users), self._batch_size):
        rows = self._order[piece]
        mask, batch = self._batch(rows)
        for context in contexts or self.contexts:
          histories = self._histories(rows, context, history_length or self._history_length)
          yield (context, rows, mask), self._counts(params, batch, histories)
    found, each = {}, {}
    for label, counts in held_out.fetched(dispatch()):
      self._collect(found, each, *label, counts)
    items, offsets = self._positives
    owners = np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(offsets))
    return values.Results(self.users, found, values.Positives(owners, items, each))

  def references(self):
    """Returns {"popularity": Results, "chance": Results}, what every table shows beside models."""
    found = {"popularity": popularity.popularity(self, self._data)}
    if REPEATS in self.protocols:
      longest = max(int((end - begin).max()) for begin, end in self._spans.values())
      found["personal_frequency"] = popularity.personal_frequency(self, self._data, longest)
    return {**found, "chance": popularity.chance(self, self._data)}

  def _batch(self, rows):
    """Returns (mask [n, P] on the host, the arrays of a batch that no context changes)."""
    positives = self._rows(_pad(*self._positives, rows))
    batch = {"users": self._rows(self.users[rows]), "positives": positives}
    batch["negatives"] = {name: self._rows(ids[rows]) for name, ids in self._negatives.items()}
    if self._cold is not None:
      batch["negatives"][COLD] = self._rows(self._cold.others(rows))
      batch["cold"] = self._cold.held[positives]
    if self._before is not None:
      batch["before"] = self._before[positives]
    if self._excluded is not None:
      batch["excluded"] = self._rows(_pad(*self._excluded, rows))
    return positives[:len(rows)] > 0, jax.tree.map(self._put, batch)

  def _histories(self, rows, context, width):
    """Returns the arrays [batch_size, width] that a score function reads of users' histories."""
    begin, end = (edge[rows] for edge in self._spans[context])
    return [self._put(self._rows(sequences.pad(x, begin, end, width=width, align="right")))
            for x in self._read]

  def _counts(self, params, batch, histories):
    if self._streams:
      return self._score[1](params, batch, *histories)
    # Two compiled functions on purpose: inside one, a score may be computed twice with different
    # rounding (fused into the gather and into the comparison), and a positive must tie with itself.
    scores = self._score[1](params, batch["users"], *histories)
    shape = (self._batch_size, self._data.num_items + 1)
    if scores.shape != shape:
      raise ValueError(f"score_fn returned scores {scores.shape}, not [B, N + 1] = {shape}")
    return _count(scores, batch, self._in_domain)

  def _stream(self, score_fn, params, batch, *histories):
    readout = jax.tree_util.Partial(functools.partial(_stream, self._in_domain), batch)
    return score_fn(params, batch["users"], *histories, readout=readout)

  def _collect(self, found, each, context, rows, mask, counts):
    """Writes metrics of users to `found` and of positives to `each`, from one batch's counts."""
    if counts["nan"][:len(rows)].any():
      user = self.users[rows[np.argmax(counts["nan"][:len(rows)])]]
      raise FloatingPointError(f"NaN among the scores of user {user} (context {context!r}); "
                               "ranking them would be meaningless")
    place = (self._positives[1][rows][:, None] + np.arange(mask.shape[1]))[mask]
    for name in self.protocols:
      greater, equal = (count[:len(rows)] for count in counts[name])
      if name == COLD:  # Of single items, the slice of those without train items tells as much.
        _write(found, (context, name), len(self.users), rows,
               self._cold.compute(self._positives[0][place], greater, equal, mask, self.ks))
        continue
      _write(found, (context, name), len(self.users), rows,
             metrics.compute(greater, equal, mask, self.ks))
      if name == REPEATS:
        _write(found, (context, name), len(self.users), rows,
               metrics.compute_sets(greater, equal, mask, self.ks))
      cut = 10 if 10 in self.ks else max(self.ks)
      _write(each, (context, name), len(self._positives[0]), place,
             metrics.per_positive(greater[mask], equal[mask], cut))

  def _rows(self, array):
    return held_out.fill(array, self._batch_size)


@jax.jit
def _count(scores, batch, in_domain):
  """Returns {protocol: (greater, equal), each int32 [B, P]} and "nan" bool [B]."""
  found = jax.tree.map(functools.partial(jnp.take_along_axis, scores, axis=1), _asked(batch))
  counts = {"nan": jnp.isnan(scores[:, 1:]).any(axis=1)}
  domain = None
  if "excluded" in batch:
    domain = _compare(found["positives"], scores, in_domain[None])
  return counts | _tally(batch, found, domain, in_domain)


def _stream(in_domain, batch, scores):
  """Returns what `_count` does, of `catalog.Scores` [B, 1]."""
  asked, in_domain = _asked(batch), jnp.asarray(in_domain)
  ids, shape_of = jnp.concatenate(jax.tree.leaves(asked), axis=1), jax.tree.structure(asked)
  cuts = np.cumsum([x.shape[1] for x in jax.tree.leaves(asked)])[:-1]
  split = lambda found: shape_of.unflatten(jnp.split(found, cuts, axis=1))
  if "excluded" not in batch:
    found = scores.of(ids[:, None])[:, 0].astype(jnp.float32)
    nan = (jnp.isnan(found) & (ids > 0)).any(axis=1)
    return {"nan": nan, **_tally(batch, split(found), None, in_domain)}

  def pick(carry, block, names, fresh):
    found, nan, domain = carry
    place = ids - names[0]
    here = jnp.take_along_axis(block[:, 0], jnp.clip(place, 0, len(names) - 1), axis=1)
    found = jnp.where((place >= 0) & (place < len(names)), here, found)
    return found, nan | (jnp.isnan(block[:, 0]) & (names > 0) & fresh).any(axis=1), domain

  def compare(carry, block, names, fresh):
    found, nan, domain = carry
    more = _compare(split(found)["positives"], block[:, 0], (in_domain[names] & fresh)[None])
    return found, nan, jax.tree.map(jnp.add, domain, more)

  def join_picked(carry):  # One device has found each.
    found, nan, domain = carry
    return collective.leave(found), collective.leave(nan.astype(jnp.int32)) > 0, domain

  def join_compared(carry):
    return *carry[:2], collective.leave(carry[2])

  none = jnp.zeros(batch["positives"].shape, jnp.int32)
  found, nan, domain = scores.fold(
    (jnp.zeros(ids.shape, jnp.float32), jnp.zeros(len(ids), bool), (none, none)), pick, compare,
    joins=(join_picked, join_compared))
  return {"nan": nan, **_tally(batch, split(found), domain, in_domain)}


def _asked(batch):
  """Returns the ids, int32 [B, ...] each, whose scores `_tally` must know."""
  return {name: batch[name] for name in ("positives", "negatives", "before", "excluded")
          if name in batch}


def _tally(batch, found, domain, in_domain):
  """Returns {protocol: (greater, equal)} from the scores that were found of `_asked`.

  `domain` is what `_compare` says of the positives and all items of the domain.
  """
  positives, target = batch["positives"], found["positives"]  # [B, P]
  peers = _compare(target, target, positives > 0)
  counts = {}
  for name, ids in batch["negatives"].items():
    mine, rivals = target, peers
    if name == LEGACY:
      mine = found["before"]
      rivals = _compare(mine, mine, positives > 0)
    if name == COLD:
      rivals = _compare(target, target, batch["cold"])
    others = _compare(mine, found["negatives"][name], ids > 0)
    counts[name] = (rivals[0] + others[0], rivals[1] + others[1] - 1)  # One ties with itself.
  if "excluded" in batch:
    counts[REPEATS] = domain[0], domain[1] - 1
    ids = batch["excluded"]  # Distinct and free of positives, so each is subtracted once.
    gone = _compare(target, found["excluded"], in_domain[ids])
    counts["full"] = (domain[0] - gone[0], domain[1] - gone[1] - 1)
  return counts


def _compare(target, others, valid):
  """Returns int32 [B, P] twice: how many valid `others` [B, K] are above and level with `target`.

  One positive at a time: XLA does not always fuse the comparison into the sum, and [B, P, K] of a
  user with hundreds of positives fills the memory.
  """
  count = functools.partial(jnp.sum, axis=-1, dtype=jnp.int32)
  one = lambda value: (count((others > value[:, None]) & valid),
                       count((others == value[:, None]) & valid))
  return tuple(column.T for column in jax.lax.map(one, target.T))


class _Cold:
  """The candidates of COLD, and whom it measures.

  Args:
    data: `sequences.Dataset` that holds out items.
    users: [n], of an evaluator.
    positives: int32 [P], items of theirs.

  `held` is bool [N + 1].
  """

  def __init__(self, data, users, positives):
    if data.held_out is None or not data.held_out[positives].any():
      raise errors.UserError(f"protocol {COLD}: no test item of data set {data.name!r} is held out "
                             "of training; set held_out_items to (share, seed)")
    self.held, self._ids = data.held_out, np.flatnonzero(data.held_out).astype(np.int32)
    self._owned = candidates.distinct_items(data, users, candidates.EVERYTHING)

  def others(self, rows):
    """Returns int32 [n, C]: the held-out items, 0 in place of those that each user owns."""
    items, offsets = self._owned
    owned = sequences.take_ranges(items, offsets[rows], offsets[rows + 1])
    owner = np.repeat(np.arange(len(rows)), offsets[rows + 1] - offsets[rows])
    place = np.minimum(np.searchsorted(self._ids, owned), len(self._ids) - 1)
    hit = self._ids[place] == owned
    out = np.tile(self._ids, (len(rows), 1))
    out[owner[hit], place[hit]] = 0
    return out

  def compute(self, items, greater, equal, mask, ks):
    """Returns what `metrics.compute` does, over the positives that are held out; NaN without one.

    Args:
      items: those that `mask` marks, one after the other.
      greater: see `metrics.compute`, as are the others.
    """
    cold = np.zeros_like(mask)
    cold[mask] = self.held[items]
    found = metrics.compute(greater, equal, cold, ks)
    return {name: np.where(cold.any(axis=1), value, np.nan) for name, value in found.items()}


def _write(nesting, keys, size, rows, part):
  """Writes {metric: values of `rows`} to nesting[keys][metric], float32 [size]."""
  for key in keys:
    nesting = nesting.setdefault(key, {})
  for metric, value in part.items():
    nesting.setdefault(metric, np.zeros(size, np.float32))[rows] = value


def _pad(values, offsets, rows):
  """Returns int32 [n, W], 0-padded; W is 1, 4, 16, ... so that few shapes are ever compiled."""
  lengths = np.diff(offsets)
  bits = int(max(lengths[rows].max(), 1) - 1).bit_length()
  width = min(1 << (bits + bits % 2), max(int(lengths.max()), 1))
  return sequences.pad(values, offsets[rows], offsets[rows + 1], width=width, align="left")
