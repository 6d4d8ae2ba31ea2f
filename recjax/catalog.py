"""Scores of all items of a catalog, as a head leaves them: positions, rows, and what is asked.

Nothing here holds positions x items unless `all` asks for it. Whatever needs every score (the log
of the partition sum, ranks, the best k) is folded over blocks of the catalog.

Letters: S shards, C positions a shard, W width, N items, K candidates, V items of a block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# A CPU gathers one row in the time in which a matmul scores so many (3,200 positions, W = 128).
ROWS_FOR_ONE = 32
# Scores in one block. On a CPU, what its cache holds: 3,200 positions and W = 64 against 3,708
# items take 103 ms of its cores (forward and backward) in blocks and 141 at once, against 20,000
# items 508 and 718. Below `WHOLE` at once is no slower. Not measured on accelerators.
BLOCK = {"cpu": 2**20}
BLOCK_ELSEWHERE = 2**25
WHOLE = 4  # blocks
HELD = 2**26  # scores of a batch of users that are held at once; beyond, they are only folded


@dataclasses.dataclass(frozen=True)
class Scores:
  """Inner products x . row + bias with the rows of ids 0..N.

    x      [..., W] in what is computed in; [S, C, W] for all but `all`
    table  [N + 1, W]; [W, N + 1] where `axis` is 1
    bias   [N + 1] or None
    axis   of the items in `table`
    count  N + 1, where `table` and `bias` have more rows (of tokens that are no items)
  """
  x: jax.Array
  table: jax.Array
  bias: jax.Array | None = None
  axis: int = 0
  count: int | None = None

  def __len__(self):
    return self.count or self.table.shape[self.axis]

  def all(self):
    """Returns the scores of all ids, [..., N + 1]."""
    rows = jax.lax.slice_in_dim(self.table, 0, len(self), axis=self.axis)
    scores = self.x @ (rows if self.axis else rows.T).astype(self.x.dtype)
    return scores if self.bias is None else scores + self.bias[:len(self)].astype(self.x.dtype)

  def of(self, ids):
    """Returns the scores of chosen ids, [S, C, K].

    Ids of a run are scored by a matmul with their rows. Ids of one position are picked from the
    scores of all ids where the catalog is small, since gathering (and, backward, scattering) K rows
    of every position costs more than that matmul; see ROWS_FOR_ONE.

    Args:
      ids: int32 [S, C, K], or [S, 1, K] for all positions of a run.
    """
    own = ids.shape[1] > 1
    if own and len(self) <= ROWS_FOR_ONE * ids.shape[2]:
      return jnp.take_along_axis(self.all(), ids, axis=-1)
    found = jnp.take(self.table, ids if own else ids[:, 0], axis=self.axis)
    found = (jnp.moveaxis(found, 0, -1) if self.axis else found).astype(self.x.dtype)
    scores = jnp.einsum("scw,sckw->sck" if own else "scw,skw->sck", self.x, found)
    if self.bias is None:
      return scores
    return scores + jnp.take(self.bias, ids, axis=0).astype(self.x.dtype)

  def against_all(self, labels):
    """Returns (score of each label, log sum over ids 0..N of exp(score)), float32 [S, C] each.

    In blocks it is exact, as is its gradient, for which the scores of each block are computed once
    more: three matmuls become four, and memory no longer grows with positions x items.
    """
    width = self.width()
    if width == len(self):
      scores = self.all().astype(jnp.float32)
      picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
      return picked, jax.nn.logsumexp(scores, axis=-1)
    blocks = _Blocks(len(self), width, self.axis)
    return _against_all(self.x, self.table, self.bias, labels, blocks)

  def width(self):
    """Returns V: how many items are scored at once."""
    size = BLOCK.get(jax.default_backend(), BLOCK_ELSEWHERE)
    positions = self.x.shape[0] * self.x.shape[1]
    if positions * len(self) <= WHOLE * size:
      return len(self)
    # Odd multiples of 64: rows of 256 or 512 scores meet in the same places of a cache.
    return min(max((size // positions - 64) // 128, 0) * 128 + 64, len(self))

  def fold(self, start, *steps):
    """Returns start -> step(carry, scores, ids, fresh) -> ... over all blocks, in order of ids.

    Scores are float32 [S, C, V], of `ids` int32 [V]. The last block may begin with ids that have
    been seen already: `fresh` bool [V] is False there. Of several steps the second goes over all
    blocks after the first has; they see the same bits, since the same operation computes them.
    """
    blocks = _Blocks(len(self), self.width(), self.axis)
    def body(index, carry):
      begin, ids, fresh = blocks.place(index % blocks.count)
      scores = self.block(blocks, begin, ids)
      return jax.lax.switch(index // blocks.count, steps, carry, scores, ids, fresh)
    return jax.lax.fori_loop(0, len(steps) * blocks.count, body, start)

  def block(self, blocks, begin, ids):
    """Returns float32 [S, C, V], the scores of one of `blocks`: of `ids` int32 [V] from `begin`."""
    del ids
    scores = blocks.score(self.x, blocks.rows(self.table, begin))
    return scores if self.bias is None else scores + blocks.bias(self.bias, begin)


@dataclasses.dataclass(frozen=True)
class Given(Scores):
  """Scores that somebody has computed already: x is [S, C, N + 1], and there is no table."""
  table: None = None

  def __len__(self):
    return self.x.shape[-1]

  def all(self):
    return self.x

  def of(self, ids):
    return jnp.take_along_axis(self.x, ids, axis=-1)

  def width(self):
    return len(self)

  def fold(self, start, *steps):
    scores, fresh = self.x.astype(jnp.float32), jnp.ones(len(self), bool)
    for step in steps:
      start = step(start, scores, jnp.arange(len(self)), fresh)
    return start


@dataclasses.dataclass(frozen=True)
class Pairs(Scores):
  """Scores of a function of two sides that need be no inner product, such as a network over both.

    x         tree of [S, C, W], one side at every position
    describe  ids [...] -> tree of [..., W'], the other side of these ids
    function  (tree of [S, C, 1, W], tree of [S, C or 1, K, W'] or [V, W']) -> [S, C, K or V]
    cost      numbers that the function holds for one pair: what a block is as wide as

  Blocks keep [S, C, N + 1] times that from ever being there.
  """
  table: None = None
  describe: object = None
  function: object = None
  cost: int = 1

  def __len__(self):
    return self.count

  def all(self):
    def write(scores, found, ids, fresh):
      del fresh
      return jax.lax.dynamic_update_slice_in_dim(scores, found, ids[0], 2)
    return self.fold(jnp.zeros((*self._positions, len(self)), jnp.float32), write)

  def of(self, ids):
    return self._score(ids)

  def against_all(self, labels):
    # Each block's partition is computed once more for its gradient, so that only one is held.
    blocks = _Blocks(len(self), self.width(), 0)
    @jax.checkpoint
    def partition(index):
      _, ids, fresh = blocks.place(index)
      return jax.nn.logsumexp(jnp.where(fresh, self.block(blocks, None, ids), -jnp.inf), axis=-1)
    parts = jax.lax.map(partition, jnp.arange(blocks.count))
    return self.of(labels[..., None])[..., 0].astype(jnp.float32), jax.nn.logsumexp(parts, axis=0)

  def width(self):
    size = BLOCK.get(jax.default_backend(), BLOCK_ELSEWHERE)
    shards, positions = self._positions
    return min(max(size // (shards * positions * self.cost), 64), len(self))

  def block(self, blocks, begin, ids):
    del blocks, begin
    return self._score(ids).astype(jnp.float32)

  def _score(self, ids):
    return self.function(jax.tree.map(lambda x: x[:, :, None], self.x), self.describe(ids))

  @property
  def _positions(self):
    return jax.tree.leaves(self.x)[0].shape[:2]


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
  shape = (*barred.shape[:2], k)
  return scores.fold((jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)), step)


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """Cuts ids 0..size-1 into blocks of one width; the last one reaches back to be as wide."""
  size: int
  width: int
  axis: int  # of the items in a table

  @property
  def count(self):
    return -(-self.size // self.width)

  def place(self, index):
    """Returns (first id, ids int32 [V], which of them no block before has had)."""
    begin = jnp.minimum(index * self.width, self.size - self.width)
    ids = begin + jnp.arange(self.width)
    return begin, ids, ids >= index * self.width

  def rows(self, table, begin):
    return jax.lax.dynamic_slice_in_dim(table, begin, self.width, self.axis)

  def bias(self, bias, begin):
    return jax.lax.dynamic_slice_in_dim(bias, begin, self.width).astype(jnp.float32)

  def score(self, x, rows):
    """Returns float32 [S, C, V], without a bias."""
    return _product("scw,wv->scv" if self.axis else "scw,vw->scv", x, rows.astype(x.dtype))


def _product(form, *operands):
  """Returns the einsum, summed in float32."""
  if jax.default_backend() == "cpu":  # which has no such product of bfloat16 in every layout
    operands = (x.astype(jnp.float32) for x in operands)
  return jnp.einsum(form, *operands, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _against_all(x, table, bias, labels, blocks):
  return _forward(x, table, bias, labels, blocks)[0]


def _forward(x, table, bias, labels, blocks):
  def step(index, carry):
    highest, total, picked = carry
    begin, _, fresh = blocks.place(index)
    shift = 0.0 if bias is None else blocks.bias(bias, begin)
    scores = blocks.score(x, blocks.rows(table, begin)) + jnp.where(fresh, shift, -jnp.inf)
    place = labels - begin
    here = jnp.take_along_axis(scores, jnp.clip(place, 0, blocks.width - 1)[..., None], -1)[..., 0]
    inside = (labels >= index * blocks.width) & (place < blocks.width)
    above = jnp.maximum(highest, jnp.max(scores, -1))
    total = total * jnp.exp(highest - above) + jnp.sum(jnp.exp(scores - above[..., None]), -1)
    return above, total, jnp.where(inside, here, picked)
  zeros = jnp.zeros(labels.shape, jnp.float32)
  highest, total, picked = jax.lax.fori_loop(
    0, blocks.count, step, (jnp.full_like(zeros, -jnp.inf), zeros, zeros))
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
    change = (jnp.exp(scores - partition[..., None]) * d_partition
              + jnp.where(ids == labels[..., None], d_picked, 0))
    if bias is not None:
      d_bias = jax.lax.dynamic_update_slice_in_dim(
        d_bias, jnp.sum(change, (0, 1)).astype(bias.dtype), begin, 0)
    change = change.astype(x.dtype)
    # Rows that a block before has had get the same values again, but count only once for x.
    new = jnp.where(jnp.expand_dims(fresh, 1 - blocks.axis), rows, 0).astype(x.dtype)
    d_rows = _product("wsc,scv->wv", across, change).astype(table.dtype)
    d_table = jax.lax.dynamic_update_slice_in_dim(
      d_table, d_rows if blocks.axis else d_rows.T, begin, blocks.axis)
    d_x = d_x + _product("scv,wv->scw" if blocks.axis else "scv,vw->scw", change, new)
    return d_x, d_table, d_bias
  start = (jnp.zeros(x.shape, jnp.float32), jnp.zeros_like(table),
           None if bias is None else jnp.zeros_like(bias))
  d_x, d_table, d_bias = jax.lax.fori_loop(0, blocks.count, step, start)
  return d_x.astype(x.dtype), d_table, d_bias, None


_against_all.defvjp(_forward, _backward)
