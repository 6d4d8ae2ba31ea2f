"""Steps that read and write only the rows of the items they meet: their cost is the batch's.

A step whose loss reads few items (drawn negatives) leaves the gradient of all other rows zero, but
a plain optimizer still visits every row of the table and of its slots. Here the rows of the items
of a batch are gathered, with their slots, into tables of their own; the model, told of so many
items fewer and of their new ids, is differentiated with respect to those; the optimizer of the
config updates them, and they are written back in place.

For SGD without momentum, and for Adagrad, that is the plain update. Adam and momentum become lazy,
as TensorFlow's LazyAdam and PyTorch's SparseAdam: the moments of a row do not decay while nobody
meets it, and it does not move; likewise weight decay. (Bias correction counts all steps.)
"""

import dataclasses

import jax.numpy as jnp

from recjax import errors
from recjax import step
from recjax import trees

# Catalogs from which on a config that does not say is stepped so. launch/bench/README.md has the
# times on a CPU.
LARGE = 100_000
SHARE = 4  # and only where a batch can meet no more than one item in so many


@dataclasses.dataclass(frozen=True)
class Rows:
  """Gathers and writes back the rows that a batch meets; see `step.make_train_steps`.

  Args:
    model: of `recjax.models`; it is cloned with another `num_items`.
    tables: {field: int32 [tokens, slots]} that the model looks items up in.
    objective: has `item_inputs` and `item_ids`.
    always: also where a batch may meet much of the catalog.
  """
  model: object
  tables: dict
  objective: object
  always: bool = False

  def narrow(self, params, opt_state, inputs):
    """Returns (apply_fn, params, opt_state, inputs, widen) of the items that `inputs` name.

    widen(params, opt_state) returns whole trees again, with the rows of those that it is given.
    """
    count = self.model.num_items
    ids = jnp.concatenate([x.ravel() for x in self.objective.item_ids(inputs)])
    if not self.always and SHARE * len(ids) > count:
      apply_fn = step.make_apply(self.model, self.tables)
      return apply_fn, params, opt_state, inputs, lambda *state: state
    none = jnp.iinfo(jnp.int32).max
    # Repeats keep their places, which nobody uses: without knowing their number, all that closing
    # the gaps would do is take time.
    ids = jnp.sort(jnp.where((ids > 0) & (ids <= count), ids, none))
    again = jnp.concatenate([jnp.zeros(1, bool), ids[1:] == ids[:-1]])
    tokens = jnp.arange(count + 1, count + 2 + self.model.extra_tokens)
    zero = jnp.zeros(1, jnp.int32)
    rows = jnp.concatenate([zero, ids, tokens])
    places = jnp.concatenate([zero, jnp.where(again, none, ids), tokens])
    sizes = {"item": len(rows), "output": 1 + len(ids)}

    def rename(x):
      item = jnp.searchsorted(ids, x).astype(jnp.int32) + 1
      return jnp.where(x > count, x - count + len(ids), jnp.where(x > 0, item, 0))

    def gather(x, place):
      axis, size = place
      return jnp.take(x, rows[:size], axis=axis, mode="clip")

    def write(x, part, place):
      axis, size = place
      return x.at[(slice(None),) * axis + (places[:size],)].set(part, mode="drop")

    leaves = {leaf: (axis, sizes[vocabulary]) for leaf, (vocabulary, axis)
              in self.model.row_tables().items() if vocabulary in sizes}
    whole = params, opt_state
    params, opt_state = (trees.map_slots(gather, leaves, tree) for tree in whole)
    named = {name: rename(x) if name in self.objective.item_inputs else x
             for name, x in inputs.items()}
    tables = {name: x if name.startswith("user/") else jnp.take(x, rows, axis=0, mode="clip")
              for name, x in self.tables.items()}
    apply_fn = step.make_apply(self.model.clone(num_items=len(ids)), tables)

    def widen(*parts):
      return tuple(trees.map_slots(write, leaves, tree, part)
                   for tree, part in zip(whole, parts, strict=True))
    return apply_fn, params, opt_state, named, widen


def make(wanted, *, model, tables, objective):
  """Returns Rows, or None where steps are to visit all rows.

  Args:
    wanted: `config.optim.sparse_rows`; None leaves it to the size of the catalog.
    model: of `recjax.models`.
    tables: see Rows.
    objective: of `recjax.objectives`.
  """
  if wanted and not objective.item_inputs:
    raise errors.UserError("optim.sparse_rows=True: this loss reads the scores of all items; set "
                           "criterion=sampled_softmax, bce or gbce, or leave sparse_rows out")
  if any(spec.remove_principal for spec in getattr(model, "features", ())):
    if wanted:
      raise errors.UserError("optim.sparse_rows=True: remove_principal is that of all items, and "
                             "a step would see some; set one of them to False")
    return None
  if wanted or wanted is None and objective.item_inputs and model.num_items >= LARGE:
    return Rows(model, tables, objective, always=bool(wanted))
  return None
