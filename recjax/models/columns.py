"""The encoder of `blocks` as a CPU computes it fastest: one column a position.

The same parameters and the same mathematics as `blocks.Encoder`, for training and prediction.
What differs, and what each is worth on two cores is in launch/bench/README.md:

- Activations are [W, columns]. All products of a step, backward too, then read their operands in
  the order in which they lie in memory; only weights have to be transposed.
- bfloat16 is what products read. They add up in float32, and everything else stays float32.
- Backward passes are written by hand where the automatic one keeps or recomputes too much.
- The last block asks, projects and feeds forward only at the positions that are scored. The others
  are read as keys and values.

Letters: B rows, T positions, W width, H heads, d width of a head, N columns. S runs of
rows with C scored positions each, as `layers.select` has them.
"""

import functools

import jax
import jax.numpy as jnp

from recjax import loops
from recjax.models import column_layers
from recjax.models import layers

SITES = 5  # of dropout in a block
ELSEWHERE = ("dtype", "initializer", "attention_kernel")  # what a block has, and columns have not


def encode(params, x, keep, positions, *, settings, rng=None):
  """Returns what the encoder makes of the scored positions: float32 [S, C, W].

  Args:
    params: of `blocks.Encoder`.
    x: [B, T, W], what the positions hold.
    keep: bool [B, T], False at padding.
    positions: int32 [S, C], flat in each of S equal runs of rows. They ascend; places after the
      last one hold 0 and get anything finite.
    settings: dict of num_layers, causal, final_norm, remat, and `block`, what `blocks.Block`
      takes.
    rng: key of dropout, None without.
  """
  block = settings["block"]
  operand = jnp.dtype(block["dtype"])
  rows, length, width = x.shape
  total, (runs, room) = settings["num_layers"], positions.shape
  scored = _Scored(positions, rows, length)
  narrow = room * 2 < rows // runs * length  # else restricting costs more than it saves
  x = column_layers.turned(x.astype(jnp.float32).reshape(-1, width))
  drawn = rng if rng is None else layers.draws(
    jax.random.bits(rng, (total, SITES, 2), jnp.uint32),
    (max(block["heads"] * rows * length, block["hidden"], width), rows * length))
  for index in range(total):
    # Apart, so that loops of all blocks read the same shape, and are compiled once.
    of_block = drawn if rng is None else loops.apart(functools.partial(_index, index), drawn)
    last = narrow and index == total - 1
    apply = functools.partial(_block, keep=keep, scored=scored if last else None, operand=operand,
                              causal=settings["causal"], **{k: v for k, v in block.items()
                                                            if k not in ELSEWHERE})
    if settings["remat"]:
      apply = jax.checkpoint(apply)
    x = apply(params[f"block_{index}"], x, drawn=of_block)
  if not narrow:
    x = scored.take(x)
  if settings["final_norm"]:
    x = column_layers.norm(params["final_norm"], x)
  return column_layers.turned(x).reshape(runs, room, width)


def _block(params, x, *, keep, scored, drawn, operand, causal, heads, hidden, act, norm, dropout,
           attention_dropout, hidden_dropout, output_dropout):
  """Returns `blocks.Block` of x [W, N], [W, N] or at the `scored` positions alone [W, S C]."""
  del hidden
  draws = [_index(site, drawn) for site in range(SITES)]
  drop = lambda value, site, rate: column_layers.drop(value, draws[site], rate)
  dense = functools.partial(column_layers.dense, operand=operand)
  here = (lambda value: value) if scored is None else scored.take
  attention_norm, mlp_norm = params["attention_norm"], params["mlp_norm"]
  # What a norm multiplies and adds goes into the weights of those who read it.
  fold = column_layers.fold if norm == "pre" else lambda _, part: part
  weights = {name: part if name == "out" else fold(attention_norm, part)
             for name, part in params["attention"].items()}
  out, up, down = weights.get("out"), fold(mlp_norm, params["mlp"]["up"]), params["mlp"]["down"]

  def attend(query, source):
    """Returns [W, ...]: `query` are columns that ask, `source` [W, N] all that may be asked."""
    split = heads, keep.shape[0]
    slots = lambda value: column_layers.split(
      value if scored is None else scored.to_slots(value), *split)
    if "qkv" in weights and scored is None:
      asks, keys, values = dense(weights["qkv"], source, out=split, count=3)
    elif "qkv" in weights:
      first, others = (jax.tree.map(lambda value, at=at: value[..., at], weights["qkv"])
                       for at in (slice(x.shape[0]), slice(x.shape[0], None)))
      asks = slots(dense(first, query))
      keys, values = dense(others, source, out=split, count=2)
    else:
      asks = slots(dense(weights["query"], query))
      (keys,), (values,) = (dense(weights[name], source, out=split) for name in ("key", "value"))
    asked = jnp.arange(keep.shape[1])[None] if scored is None else scored.places
    mask = keep[:, None]
    if causal:
      mask = mask & (jnp.arange(keep.shape[1]) <= asked[..., None])
    mix = functools.partial(column_layers.attend, asks, keys, values, mask=mask, drawn=draws[0],
                            rate=attention_dropout, operand=operand)
    if scored is None:
      return mix(out)
    mixed = scored.from_slots(mix(None))
    return dense(out, mixed) if out else mixed

  def feed(y):
    return column_layers.feed(up, down, y, draws[1], act, hidden_dropout, operand)

  if norm == "pre":
    y, x = column_layers.standard_beside(x, operand)
    x = here(x) + drop(attend(here(y), y), 2, dropout)
    y, x = column_layers.standard_beside(x, operand)
    x = x + drop(feed(y), 3, dropout)
  elif norm == "post":
    x = column_layers.norm(attention_norm, here(x) + drop(attend(here(x), x), 2, dropout))
    x = column_layers.norm(mlp_norm, x + drop(feed(x), 3, dropout))
  else:
    y = column_layers.norm(attention_norm, here(x))
    y = column_layers.norm(mlp_norm, y + attend(y, x))
    x = y + drop(feed(y), 3, dropout)
  return drop(x, 4, output_dropout)


def _index(number, tree):
  """Returns a tree of arrays [n, ...], or None, as that of their `number`."""
  return jax.tree.map(lambda x: x[number], tree)


class _Scored:
  """The scored positions, flat and as slots of their rows: at most min(T, C) in each."""

  def __init__(self, positions, rows, length):
    runs, room = positions.shape
    each = min(room, length)
    real = ((jnp.arange(room) == 0) | (positions > jnp.roll(positions, 1, axis=1))).reshape(-1)
    column = (positions + jnp.arange(runs)[:, None] * (rows // runs * length)).reshape(-1)
    owner, number = column // length, jnp.cumsum(real) - 1
    count = jnp.zeros(rows, jnp.int32).at[owner].add(real)
    slot = number - (jnp.cumsum(count) - count)[owner] + owner * each
    label = jnp.arange(column.size)
    inverse = lambda at, size: jnp.full(size, -1).at[jnp.where(real, at, size)].set(
      label, mode="drop")
    self._column, self._of_column = column, inverse(column, rows * length)
    self._slot, self._of_slot = jnp.where(real, slot, -1), inverse(slot, rows * each)
    self.places = (column[self._of_slot] % length).reshape(rows, each)  # t of every slot

  def take(self, x):
    """Returns the scored columns of x: [W, N] -> [W, S C]."""
    return _pick(x, self._column, self._of_column)

  def to_slots(self, x):
    """Returns [W, S C] as slots of their rows, 0 in those without: [W, B each]."""
    return _pick(x, self._of_slot, self._slot)

  def from_slots(self, x):
    """Returns [W, B each] as `take` orders them: [W, S C]."""
    return _pick(x, self._slot, self._of_slot)


@jax.custom_vjp
def _pick(x, at, back):
  """Returns x[:, at], 0 where `at` is -1; `back` is the inverse, so that no pass scatters."""
  del back
  return loops.in_memory(jnp.where(at >= 0, jnp.take(x, jnp.maximum(at, 0), axis=1), 0))


_pick.defvjp(lambda x, at, back: (_pick(x, at, back), (at, back)),
             lambda kept, change: (_pick(change, kept[1], kept[0]), None, None))
