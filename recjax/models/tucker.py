"""TuckER: a core tensor multiplied by entity, relation and entity (Balazevic et al. 2019).

Letters: B queries, K candidates, E entities, R relations, D width of entities, W of relations.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax import errors
from recjax.models import graph_layers, layers

VARIANTS = {  # the authors' sizes
  "wn18rr": dict(width=200, relation_width=30, dropouts=(0.2, 0.2, 0.3)),
  "fb15k237": dict(width=200, relation_width=200, dropouts=(0.3, 0.4, 0.5)),
  "wn18": dict(width=200, relation_width=30, dropouts=(0.2, 0.1, 0.2)),
  "fb15k": dict(width=200, relation_width=200, dropouts=(0.2, 0.2, 0.3)),
}
MOMENTUM = 0.1  # of running statistics, and
EPSILON = 1e-5  # beside a variance: torch.nn.BatchNorm1d's, which the authors use


class TuckER(graph_layers.LinkModel):
  """W x_1 h x_2 r x_3 t; the head is asked through reciprocal relations, (t, r^-1, ?).

  Parameters: entity/, relation/embedding [2, R, W] (relations, then their reciprocals), core/kernel
  [W, D, D] and the batch norms input_norm/ and hidden_norm/.
  """
  width: int = 200  # D
  relation_width: int = 30  # W
  dropouts: tuple = (0.2, 0.2, 0.3)  # of the entity, of its matrix, of what they make
  batch_norm: bool = True

  @nn.compact
  def __call__(self, given, relations, asks_head, mask, tables, *, candidates=None,
               penalize=False, train=False):
    """Returns (scores [B, K], {"query": [B, D]}); see `graph_layers.LinkModel`."""
    del tables
    def norm(x, name):
      return BatchNorm(name=name)(x, mask, train=train) if self.batch_norm else x
    def dropout(x, place):
      return layers.Dropout(self.dropouts[place])(x, train=train)
    xavier = nn.initializers.xavier_normal()
    table = graph_layers.Table(self.num_entities, self.width, xavier, name="entity")()
    relation = _Relations(self.num_relations, self.relation_width, name="relation")()
    core = _Core((self.relation_width, self.width, self.width), name="core")()
    r = relation[asks_head.astype(jnp.int32), relations]  # [B, W]
    of_matrix = layers.Dropout(self.dropouts[1])
    x = dropout(norm(jnp.take(table, given, axis=0), "input_norm"), 0)
    if train and jax.default_backend() == "cpu":
      x = multiply(x, r, core, of_matrix.seeds(), of_matrix.rate)
    else:
      matrix = of_matrix(jnp.einsum("bw,wde->bde", r, core), train=train)
      x = jnp.einsum("bd,bde->be", x, matrix)
    query = dropout(norm(x, "hidden_norm"), 2)
    scores = graph_layers.dot(query, table, candidates)
    return ((scores, jnp.zeros(len(given))) if penalize else scores), {"query": query}

  def check(self):
    """Raises UserError where there are not three shares of dropout."""
    if len(self.dropouts) != 3 or not all(0 <= rate < 1 for rate in self.dropouts):
      raise errors.UserError("config.model: dropouts are three shares in 0..1, not "
                             f"{self.dropouts!r}")

  def row_tables(self):
    return {"entity/embedding": ("entity", 0), "relation/embedding": ("relation", 1)}

  def leaf_options(self):
    """Returns that running statistics are averages of what their gradients point to."""
    return ((r".*_norm/(mean|var)", {"average": MOMENTUM}),) if self.batch_norm else ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def multiply(x, r, core, seeds, rate):
  """Returns [B, E]: sum_d x_bd drop(sum_w r_bw core_wde), one d after the other.

  The numbers are those of `layers.Dropout` on the matrices [B, D, E], which are never formed: on a
  CPU, what XLA makes of them takes several times longer than all products together.

  Args:
    x: [B, D].
    r: [B, W].
    core: [W, D, E].
    seeds: uint32 [2], of the dropout.
    rate: of the dropout.
  """
  return _multiply_forward(x, r, core, seeds, rate)[0]


def _multiply_forward(x, r, core, seeds, rate):
  drop, by_row = _loop(x, core, seeds, rate)
  def add(total, at):
    rows, x_d, core_d = at
    return total + drop((x_d[:, None] * r) @ core_d, rows), None
  total, _ = jax.lax.scan(add, jnp.zeros((len(x), core.shape[2]), x.dtype), by_row)
  return total, (x, r, core, seeds)


def _multiply_backward(rate, kept, gradient):
  x, r, core, seeds = kept
  drop, by_row = _loop(x, core, seeds, rate)
  def back(r_gradient, at):
    rows, x_d, core_d = at
    dropped = drop(gradient, rows)
    product = dropped @ core_d.T  # [B, W]
    return (r_gradient + product * x_d[:, None],
            (jnp.sum(product * r, axis=1), (x_d[:, None] * r).T @ dropped))
  r_gradient, (x_gradient, core_gradient) = jax.lax.scan(back, jnp.zeros_like(r), by_row)
  return x_gradient.T, r_gradient, core_gradient.swapaxes(0, 1), None


multiply.defvjp(_multiply_forward, _multiply_backward)


def _loop(x, core, seeds, rate):
  """Returns (drop, what a loop over d reads: what rows d draw [D, B], x_bd [D, B], core_wde).

  drop(y, rows) is what `layers.Dropout` of matrices [B, D, E] makes of their rows d, y [B, E].
  """
  drawn = layers.draws(seeds, (*x.shape, core.shape[2]))
  def drop(y, rows):
    kept = layers.kept_where(rows[:, None], drawn.columns, rate)
    return jnp.where(kept, y / (1 - rate), 0) if rate else y
  return drop, (drawn.rows.reshape(x.shape).T, x.T, core.swapaxes(0, 1))


class BatchNorm(nn.Module):
  """Normalizes by the batch in training, else by running statistics.

  The statistics are parameters, so that they are saved, restored and transferred with the rest. The
  backward pass gives each (itself - the batch's value) times the rows of the batch as its
  gradient; the mean over rows, which every step forms, is then the distance to the mean of what the
  parts of a batch saw, and an update by -MOMENTUM of it (`average` of `optim.plan`) is the usual
  moving average. The loss must weigh rows alike.
  """

  @nn.compact
  def __call__(self, x, mask, *, train):
    """Returns [B, D] of x [B, D]; rows where `mask` [B] is False do not count."""
    width = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones_init(), width)
    bias = self.param("bias", nn.initializers.zeros_init(), width)
    mean = self.param("mean", nn.initializers.zeros_init(), width)
    var = self.param("var", nn.initializers.ones_init(), width)
    if train:
      weight = mask.astype(x.dtype)[:, None]
      count = jnp.sum(weight)
      here = jnp.sum(weight * x, 0) / jnp.maximum(count, 1)
      spread = jnp.sum(weight * jnp.square(x - here), 0) / jnp.maximum(count, 1)
      unbiased = spread * count / jnp.maximum(count - 1, 1)
      x = _follow(x, (mean, var), jax.lax.stop_gradient((here, unbiased)), count)
      mean, var = here, spread
    return scale * (x - mean) * jax.lax.rsqrt(var + EPSILON) + bias


@jax.custom_vjp
def _follow(x, running, seen, count):
  """Returns x; the gradient of `running` is (running - seen) * count."""
  del running, seen, count
  return x


def _follow_forward(x, running, seen, count):
  return x, (running, seen, count)


def _follow_backward(kept, gradient):
  running, seen, count = kept
  away = jax.tree.map(lambda a, b: (a - b) * count, running, seen)
  return gradient, away, jax.tree.map(jnp.zeros_like, seen), jnp.zeros_like(count)


_follow.defvjp(_follow_forward, _follow_backward)


class _Relations(nn.Module):
  """Vectors of relations and of their reciprocals, [2, R, W]."""
  rows: int
  width: int

  @nn.compact
  def __call__(self):
    def start(key, shape):  # as one table of 2 R rows
      return nn.initializers.xavier_normal()(key, (2 * shape[1], shape[2])).reshape(shape)
    return self.param("embedding", start, (2, self.rows, self.width))


class _Core(nn.Module):
  """The core tensor, U(-1, 1)."""
  shape: tuple

  @nn.compact
  def __call__(self):
    start = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    return self.param("kernel", start, self.shape)
