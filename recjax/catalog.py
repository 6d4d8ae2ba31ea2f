"""Scores of all items of a catalog, as a head leaves them: positions, rows, and what is asked.

Nothing here holds positions x items unless `all` asks for it. Whatever needs every score (the log
of the partition sum, ranks, the best k) is folded over blocks of the catalog.

Where the rows are split over the devices of the model axis (see recjax/collective.py), each device
goes over its own, and they exchange what has the size of positions: the highest score, the sum of
exponentials, the label's score, the k best; backward the gradient of x.

Letters: S shards, C positions a shard, W width, N items, K candidates, V items of a block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from recjax import collective
from recjax import softmax

# A CPU gathers one row in the time in which a matmul scores so many (3,200 positions, W = 128).
ROWS_FOR_ONE = 32
# Scores in one block. On a CPU, what its cache holds: 3,200 positions and W = 64 against 3,708
# items take 103 ms of its cores (forward and backward) in blocks and 141 at once, against 20,000
# items 508 and 718. Below `WHOLE` at once is no slower. Not measured on accelerators.
BLOCK = {"cpu": 2**20}
BLOCK_ELSEWHERE = 2**25
WHOLE = 4  # blocks
BARRED = -1e9  # finite, so that nothing becomes NaN
HELD = 2**26  # scores of a batch of users that are held at once; beyond, they are only folded


@dataclasses.dataclass(frozen=True)
class Scores:
  """Inner products x . row + bias with the rows of ids 0..N.

    x      [..., W] in what is computed in; [S, C, W] for all but `all`
    table  [N + 1, W]; [W, N + 1] where `axis` is 1
    bias   [N + 1] or None
    axis   of the items in `table`
    count  N + 1, where `table` and `bias` have more rows (of tokens that are no items), or fewer:
           this device's share
    operand  type that products of a softmax may read, if not that of x
  """
  x: jax.Array
  table: jax.Array
  bias: jax.Array | None = None
  axis: int = 0
  count: int | None = None
  operand: jnp.dtype | None = None

  def __len__(self):
    return self.count or self.table.shape[self.axis]

  @property
  def shared(self):
    """Returns whether `table` and `bias` are this device's share of the rows."""
    return self.table is not None and self.table.shape[self.axis] < len(self)

  @property
  def held(self):
    """Returns how many rows are scored here: N + 1, or those of the share."""
    return min(self.table.shape[self.axis], len(self))

  def without(self, barred):
    """Returns these scores with `BARRED` as the bias of the ids that `barred`, bool [N + 1], has.

    In a softmax over all ids they weigh nothing, and get no gradient.
    """
    bias = jnp.zeros(self.held) if self.bias is None else self.bias[:self.held]
    if self.shared:
      ids = collective.first_row(self.held) + jnp.arange(self.held)
      barred = jnp.take(barred, ids, mode="fill", fill_value=False)
    return dataclasses.replace(self, bias=jnp.where(barred[:self.held], BARRED, bias))

  def all(self):
    """Returns the scores of all ids, [..., N + 1]."""
    if not self.shared:
      return self._here(self.x)
    scores = self._here(collective.enter(self.x))
    return collective.join(scores, scores.ndim - 1)[..., :len(self)]

  def _here(self, x):
    rows, bias = self._rows()
    scores = x @ (rows if self.axis else rows.T).astype(x.dtype)
    return scores if bias is None else scores + bias.astype(x.dtype)

  def _rows(self):
    """Returns (rows, bias or None) of the `held` ids alone."""
    rows = jax.lax.slice_in_dim(self.table, 0, self.held, axis=self.axis)
    return rows, None if self.bias is None else self.bias[:self.held]

  def of(self, ids):
    """Returns the scores of chosen ids, [S, C, K].

    Ids of a run are scored by a matmul with their rows. Ids of one position are picked from the
    scores of all ids where the catalog is small, since gathering (and, backward, scattering) K rows
    of every position costs more than that matmul; see ROWS_FOR_ONE.

    Args:
      ids: int32 [S, C, K], or [S, 1, K] for all positions of a run.
    """
    if not self.shared:
      return self._of(self.x, ids)
    place, here = collective.own(ids, self.held)
    scores = self._of(collective.enter(self.x), place)
    return collective.leave(jnp.where(here, scores, jnp.zeros((), scores.dtype)))

  def _of(self, x, ids):
    own = ids.shape[1] > 1
    if own and self.held <= ROWS_FOR_ONE * ids.shape[2]:
      return jnp.take_along_axis(self._here(x), ids, axis=-1)
    found = jnp.take(self.table, ids if own else ids[:, 0], axis=self.axis)
    found = (jnp.moveaxis(found, 0, -1) if self.axis else found).astype(x.dtype)
    scores = jnp.einsum("scw,sckw->sck" if own else "scw,skw->sck", x, found)
    if self.bias is None:
      return scores
    return scores + jnp.take(self.bias, ids, axis=0).astype(x.dtype)

  def against_all(self, labels):
    """Returns (score of each label, log sum over ids 0..N of exp(score)), float32 [S, C] each.

    In blocks it is exact, as is its gradient, for which the scores of each block are computed once
    more: three matmuls become four, and memory no longer grows with positions x items.
    """
    if not self.shared and self.width() == len(self):
      scores = self.all().astype(jnp.float32)
      picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
      return picked, jax.nn.logsumexp(scores, axis=-1)
    return _against_all(self.x, self.table, self.bias, labels, self._blocks())

  def cross_entropy(self, labels, weights):
    """Returns the sum over positions of weight x -log softmax(score of the label), float32.

    What `against_all` gives, of many positions by a quicker way (see `softmax`).

    Args:
      labels: int32 [S, C].
      weights: float32 [S, C], 0 where there is no label; they get no gradient.
    """
    product = self.as_product()
    block = None if product is None else softmax.block(labels.size, len(self))
    if block is None:
      picked, partition = self.against_all(labels)
      return jnp.sum((partition - picked) * weights)
    x, table, bias = product
    return softmax.cross_entropy(x.reshape(-1, x.shape[-1]), table, bias, labels.ravel(),
                                 weights.ravel(), self.axis, block, self.operand or x.dtype)

  def as_product(self):
    """Returns (x, rows of all ids, bias or None), or None where this device does not have them.

    Their inner products are the scores, but for what is the same for all ids.
    """
    return None if self.table is None or self.shared else (self.x, *self._rows())

  def width(self):
    """Returns V: how many items are scored at once."""
    size = BLOCK.get(jax.default_backend(), BLOCK_ELSEWHERE)
    positions = self.x.shape[0] * self.x.shape[1]
    if positions * self.held <= WHOLE * size:
      return self.held
    # Odd multiples of 64: rows of 256 or 512 scores meet in the same places of a cache.
    return min(max((size // positions - 64) // 128, 0) * 128 + 64, self.held)

  def fold(self, start, *steps, joins=()):
    """Returns start -> step(carry, scores, ids, fresh) -> ... over all blocks, in order of ids.

    Scores are float32 [S, C, V], of `ids` int32 [V]. The last block may begin with ids that have
    been seen already, or end with some that are no items: `fresh` bool [V] is False there. Of
    several steps the second goes over all blocks after the first has; they see the same bits, since
    the same operation computes them.

    Args:
      start: a tree of arrays.
      *steps: functions.
      joins: for each step what follows it where devices go over their own rows alone: a function
        that makes of their different carries one that is the same on all (by `collective`).
    """
    blocks = self._blocks()
    def body(index, carry):
      begin, ids, fresh = blocks.place(index % blocks.count)
      scores = self.block(blocks, begin, ids)
      carry = jax.lax.switch(index // blocks.count, steps, carry, scores, ids, fresh)
      if not self.shared:
        return carry
      together = functools.partial(jax.lax.switch, index // blocks.count, joins)
      return jax.lax.cond((index + 1) % blocks.count == 0, together, lambda own: own, carry)
    return jax.lax.fori_loop(0, len(steps) * blocks.count, body, start)

  def block(self, blocks, begin, ids):
    """Returns float32 [S, C, V], the scores of one of `blocks`: of `ids` int32 [V] from `begin`."""
    del ids
    scores = blocks.score(self.x, blocks.rows(self.table, begin))
    return scores if self.bias is None else scores + blocks.bias(self.bias, begin)

  def _blocks(self):
    return Blocks(self.held, self.width(), self.axis, len(self) if self.shared else None)


@dataclasses.dataclass(frozen=True)
class Given(Scores):
  """Scores that somebody has computed already: x is [S, C, N + 1], and there is no table."""
  table: None = None

  def __len__(self):
    return self.x.shape[-1]

  def without(self, barred):
    return dataclasses.replace(self, x=jnp.where(barred[:len(self)], BARRED, self.x))

  def all(self):
    return self.x

  def of(self, ids):
    return jnp.take_along_axis(self.x, ids, axis=-1)

  def width(self):
    return len(self)

  def fold(self, start, *steps, joins=()):
    del joins
    scores, fresh = self.x.astype(jnp.float32), jnp.ones(len(self), bool)
    for step in steps:
      start = step(start, scores, jnp.arange(len(self)), fresh)
    return start


def read(scores, candidates=None, readout=None):
  """Returns what a model's caller asked of its Scores: all, those of `candidates`, or `readout`.

  Args:
    scores: Scores.
    candidates: tuple of int32 [S, C or 1, K]; what comes back is a tuple of [S, C, K].
    readout: a function of Scores; what it returns comes back.
  """
  if readout is not None:
    return readout(scores)
  return scores.all() if candidates is None else tuple(map(scores.of, candidates))


def barring(barred, candidates=None, readout=None):
  """Returns (candidates, readout) with which `read` does the same to `Scores.without(barred)`.

  Args:
    barred: bool [N + 1 or more].
    candidates: see `read`.
    readout: likewise.
  """
  return None, lambda scores: read(scores.without(barred), candidates, readout)


def top(scores, k, allowed, barred):
  """Returns the k best: (scores float32, ids int32), [S, C, k] each; of equals the lower id first.

  Args:
    scores: Scores.
    k: at most N.
    allowed: bool [N + 1], ids that may come back; others score -inf.
    barred: int32 [S, C, H], ids that may not, each position its own.
  """
  rows = jnp.arange(barred.shape[0])[:, None, None], jnp.arange(barred.shape[1])[:, None]
  def step(best, found, ids, fresh):
    found = jnp.where(allowed[ids] & fresh, found, -jnp.inf)
    # A place below 0 would count from behind.
    place = jnp.where(barred >= ids[0], barred - ids[0], len(ids))
    found = found.at[(*rows, place)].set(-jnp.inf, mode="drop")
    values = jnp.concatenate([best[0], found], -1)
    names = jnp.concatenate([best[1], jnp.broadcast_to(ids, found.shape)], -1)
    values, which = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(names, which, -1)
  def join(best):  # in order of ids: of equals the lower one comes first again
    values, names = (collective.join(x, 2) for x in best)
    values, which = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(names, which, -1)
  shape = (*barred.shape[:2], k)
  start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
  return scores.fold(start, step, joins=(join,))


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Cuts rows 0..size-1 into blocks of one width; the last one reaches back to be as wide."""
  size: int
  width: int
  axis: int  # of the items in a table
  total: int | None = None  # ids of all devices, where the rows are a share: more have no item

  @property
  def count(self):
    return -(-self.size // self.width)

  def place(self, index):
    """Returns (first row, ids int32 [V], which of them are items that no block before has had)."""
    begin = jnp.minimum(index * self.width, self.size - self.width)
    rows = begin + jnp.arange(self.width)
    fresh = rows >= index * self.width
    if self.total is None:
      return begin, rows, fresh
    ids = rows + self.first
    return begin, ids, fresh & (ids < self.total)

  @property
  def first(self):
    """Returns the id of row 0."""
    return 0 if self.total is None else collective.first_row(self.size)

  def rows(self, table, begin):
    return jax.lax.dynamic_slice_in_dim(table, begin, self.width, self.axis)

  def bias(self, bias, begin):
    return jax.lax.dynamic_slice_in_dim(bias, begin, self.width).astype(jnp.float32)

  def score(self, x, rows):
    """Returns float32 [S, C, V], without a bias."""
    return softmax.product("scw,wv->scv" if self.axis else "scw,vw->scv", x, rows.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _against_all(x, table, bias, labels, blocks):
  return _forward(x, table, bias, labels, blocks)[0]


def _forward(x, table, bias, labels, blocks):
  own = labels - blocks.first
  def step(index, carry):
    highest, total, picked = carry
    begin, _, fresh = blocks.place(index)
    shift = 0.0 if bias is None else blocks.bias(bias, begin)
    scores = blocks.score(x, blocks.rows(table, begin)) + jnp.where(fresh, shift, -jnp.inf)
    place = own - begin
    here = jnp.take_along_axis(scores, jnp.clip(place, 0, blocks.width - 1)[..., None], -1)[..., 0]
    inside = (own >= index * blocks.width) & (place < blocks.width)
    above = jnp.maximum(highest, jnp.max(scores, -1))
    total = total * jnp.exp(highest - above) + jnp.sum(jnp.exp(scores - above[..., None]), -1)
    return above, total, jnp.where(inside, here, picked)
  zeros = jnp.zeros(labels.shape, jnp.float32)
  lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)  # finite: a share may have no item
  highest, total, picked = jax.lax.fori_loop(0, blocks.count, step, (lowest, zeros, zeros))
  if blocks.total is not None:
    above = jax.lax.pmax(highest, collective.AXIS)
    total, picked = collective.leave((total * jnp.exp(highest - above), picked))
    highest = above
  partition = highest + jnp.log(total)
  return (picked, partition), (x, table, bias, labels, partition)


def _backward(blocks, kept, pull):
  """d score = softmax d partition + [the id is the label] d picked, a block at a time."""
  x, table, bias, labels, partition = kept
  d_picked, d_partition = (d[..., None] for d in pull)
  # Of the ways to write d rows = change^T x this keeps the large matrix as it lies: the obvious one
  # takes 1.6 to 4 times as long on a CPU.
  across = jnp.moveaxis(x, -1, 0)  # [W, S, C]
  def step(index, carry):
    d_x, d_table, d_bias = carry
    begin, ids, fresh = blocks.place(index)
    rows = blocks.rows(table, begin)
    scores = blocks.score(x, rows)
    if bias is not None:
      scores = scores + blocks.bias(bias, begin)
    if blocks.total is not None:
      scores = jnp.where(ids < blocks.total, scores, -jnp.inf)
    change = (jnp.exp(scores - partition[..., None]) * d_partition
              + jnp.where(ids == labels[..., None], d_picked, 0))
    if bias is not None:
      d_bias = jax.lax.dynamic_update_slice_in_dim(
        d_bias, jnp.sum(change, (0, 1)).astype(bias.dtype), begin, 0)
    change = change.astype(x.dtype)
    # Rows that a block before has had get the same values again, but count only once for x.
    new = jnp.where(jnp.expand_dims(fresh, 1 - blocks.axis), rows, 0).astype(x.dtype)
    d_rows = softmax.product("wsc,scv->wv", across, change).astype(table.dtype)
    d_table = jax.lax.dynamic_update_slice_in_dim(
      d_table, d_rows if blocks.axis else d_rows.T, begin, blocks.axis)
    d_x = d_x + softmax.product("scv,wv->scw" if blocks.axis else "scv,vw->scw", change, new)
    return d_x, d_table, d_bias
  start = (jnp.zeros(x.shape, jnp.float32), jnp.zeros_like(table),
           None if bias is None else jnp.zeros_like(bias))
  d_x, d_table, d_bias = jax.lax.fori_loop(0, blocks.count, step, start)
  if blocks.total is not None:
    d_x = collective.leave(d_x)
  return d_x.astype(x.dtype), d_table, d_bias, None


_against_all.defvjp(_forward, _backward)
