"""Batches of a sharded data set, read ahead on the host: batch n is a function of (seed, n).

Of H hosts each owns every H-th shard, reads no other and fills its part of every batch. An epoch
visits the host's shards in an order of its own, a few at a time: these are held in memory, and
their users are permuted together. Where one host holds all shards at once, that is the order of
`batches.make_sampler`, and the batches are the same, bit for bit.

Memory: three groups of held shards at most (one to come, and two where a stack goes from one to the
next), whatever the number of shards.
"""

import collections
import concurrent.futures
import functools

import numpy as np

from recjax import errors
from recjax.data import batches, sequences

HELD = 8  # shards
STACK_BYTES = 8 << 20
MAX_STEPS = 64  # in a stack
AHEAD = 2  # stacks


class Stream:
  """One host's part of the batches of a data set.

  Attributes:
    lengths: int32 [n], columns that each example of an epoch fills, of all hosts.
    length: columns of a batch.
    per_epoch: steps of an epoch, in which every host visits each of its examples once.
    depth: steps of a stack.

  Args:
    data: `sequences.Dataset` with shards.
    batch_size: of all hosts together.
    longest: columns of a batch at most.
    window: see `batches.make_sampler`.
    seed: of the run.
    split: whose interactions are trained on.
    min_length: see `batches.resident`, as are the next two.
    slide: or None.
    columns: "ratings", "global".
    held: how many shards are mixed at once.
    hosts: how many there are.
    host: which of them this is.
  """

  def __init__(self, data, *, batch_size, longest, window, seed, split="train", min_length=1,
               slide=None, columns=(), held=None, hosts=1, host=0):
    batches.check_window(window)
    held = HELD if held is None else held
    if "seen" in columns:
      raise errors.UserError(
        f"data set {data.name!r} is sharded, and this objective draws negatives that users have "
        "not seen, which needs all interactions on the device; set unseen=False or prepare the "
        "data with --config.shards=0")
    if "baskets" in columns:
      data.basket_numbers()  # Says that there are none.
    if "ratings" in columns and data.ratings is None:
      raise errors.UserError(f"data set {data.name!r} has no ratings")
    if batch_size % hosts or len(data.shards) < hosts or held < 1:
      raise errors.UserError(
        f"{hosts} hosts need a batch_size ({batch_size}) that they divide and a shard each (there "
        f"are {len(data.shards)}), and mixed_shards ({held}) is at least 1")
    self._data, self._split, self._window, self._held = data, split, window, held
    self._names = ("items", "ratings") if "ratings" in columns else ("items",)
    self._options = dict(min_length=min_length, slide=slide)
    self._rows = batch_size // hosts
    self._mine = np.arange(len(data.shards))[host::hosts]
    self._key = batches.host_key(seed, None if hosts == 1 else host)
    self._bits = functools.lru_cache(64)(functools.partial(batches.order_bits, self._key))

    lengths = data.lengths(split)[1:].astype(np.int32)
    count = np.where(lengths >= min_length, 1, 0)
    if slide is not None:
      count *= np.maximum(lengths - slide, 0) + 1
    if not count.any():
      raise errors.UserError(f"data set {data.name!r}: no user has {min_length} {split} "
                             "interactions")
    self._count = np.add.reduceat(count, data.shards.users[:-1] - 1)  # [S]
    self.lengths = np.repeat(np.minimum(lengths, longest), count)
    self.length = int(self.lengths.max())
    self.per_epoch = max(-(-int(self._count[h::hosts].sum()) // self._rows) for h in range(hosts))
    size = self._rows * self.length * len(self._names) * 4
    self.depth = min(max(STACK_BYTES // size, 1), MAX_STEPS)

    self._reader = concurrent.futures.ThreadPoolExecutor(1)
    self._loading = {}

  def stacks(self, first, stop):
    """Returns an iterator of `stack(step)` for step = first, first + depth, ... below `stop`."""
    import grain  # Takes seconds, and most runs need none.
    starts = grain.MapDataset.range(first, stop, self.depth)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(starts.map(self.stack).to_iter_dataset(options))

  def stack(self, first):
    """Returns the host's rows of the batches of steps first..first + depth - 1.

    That is {"items" int32 [K, b, length] left-padded, "users" int32 [K, b]}, and "ratings" float32.
    """
    steps = int(first) + np.arange(self.depth)
    epoch, place = np.divmod(steps, self.per_epoch)
    slot = place[:, None] * self._rows + np.arange(self._rows)  # [K, b]
    users, begin, end = (np.zeros(slot.shape, np.int32) for _ in range(3))
    parts = []
    for number in np.unique(epoch).tolist():
      groups = self.groups(number)
      where = np.where((epoch == number)[:, None], slot, -1)
      for index, group in enumerate(groups):
        mine = (where >= group.low) & (where < group.high)
        if mine.any():
          following = groups[index + 1] if index + 1 < len(groups) else self.groups(number + 1)[0]
          table = self._table(group.shards, following.shards)
          row = batches.permute_on_host(slot[mine] - group.low, group.high - group.low,
                                        self._bits(number, group.part))
          users[mine], begin[mine], end[mine] = (
            table[name][row] for name in ("users", "begin", "end"))
          parts.append((mine, table))
    least = batches.first_end(begin, end, self.length, self._window)
    if self._window != "last":
      end = least + batches.draw_on_host(self._key, steps, end - least)
    out = {name: np.zeros((*slot.shape, self.length), getattr(self._data, name).dtype)
           for name in self._names}
    for mine, table in parts:
      for name, values in out.items():
        values[mine] = sequences.pad(table[name], begin[mine], end[mine], width=self.length,
                                     align="right")
    return {"users": users, **out}

  def groups(self, epoch):
    """Returns the epoch's `Group`s of shards that are mixed, in order."""
    shards, held = self._mine, self._held
    alone = len(shards) <= held
    if not alone:
      shards = shards[batches.permute_on_host(np.arange(len(shards)), len(shards),
                                              self._bits(epoch, 0))]
    groups, low = [], 0
    for part, begin in enumerate(range(0, len(shards), held), 1):
      chosen = tuple(shards[begin:begin + held].tolist())
      high = low + int(self._count[list(chosen)].sum())
      groups.append(Group(chosen, low, high, None if alone else part))
      low = high
    return groups

  def _table(self, shards, following):
    """Returns the rows of a group of shards, and starts to read the one after it."""
    for group in (shards, following):
      if group not in self._loading:
        self._loading[group] = self._reader.submit(self._load, group)
    self._loading = {group: self._loading[group] for group in (shards, following)}
    return self._loading[shards].result()

  def _load(self, group):
    """Returns {"items", "ratings": flat; "users", "begin", "end" int32 [n] of its examples}."""
    data, rows, found = self._data, 0, collections.defaultdict(list)
    for shard in group:
      first, last = data.shards.users[shard:shard + 2]
      flat = data.shards.read(shard, self._names)
      part = data.splits[first:last, sequences.SPLITS.index(self._split)]
      start = np.asarray(data.offsets[first:last]) - data.shards.rows[shard] + rows
      users, begin, end = batches.examples(start + part[:, 0], start + part[:, 1], **self._options)
      for name, values in dict(flat, users=first + users, begin=begin, end=end).items():
        found[name].append(values if name in flat else values.astype(np.int32))
      rows += len(flat["items"])
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


Group = collections.namedtuple("Group", (
  "shards",  # read and mixed together
  "low", "high",  # places of their examples in the epoch
  "part"))  # what its permutation is drawn for; None where it is the only one
