"""Modules that objectives learn beside a model: built, started, and told from its parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from recjax import errors, models, trees
from recjax.data import auxiliary as data_lib


@dataclasses.dataclass(frozen=True)
class Auxiliary:
  """The modules by name; without any, all that is here is empty.

    modules   {name: of `recjax.models.auxiliary`}
    found     {name: `data.auxiliary.Found`}
    leaf      the name of the model's item table
  """
  modules: dict = dataclasses.field(default_factory=dict)
  found: dict = dataclasses.field(default_factory=dict)
  leaf: str = ""

  def item_rows(self, params):
    """Returns the item table of the model's parameters."""
    return trees.flatten(params)[self.leaf]

  def start(self, seed, params, tables):
    """Returns {name: parameters} beside the model's fresh ones, which theirs do not change."""
    key, rows = jax.random.key(seed), self.item_rows(params) if self.leaf else None
    place = {name: number for number, name in enumerate(models.AUXILIARY)}
    return {name: _init(module, jax.random.fold_in(key, place[name]), rows,
                        {n: x for n, x in tables.items() if n.split("/")[0] == name})
            for name, module in self.modules.items()}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)}, as models do."""
    return {f"{name}/{leaf}": rows for name, module in self.modules.items()
            for leaf, rows in module.row_tables().items()}

  def row_names(self):
    """Returns {vocabulary: (names, trained)} of those."""
    return {vocabulary: rows for found in self.found.values()
            for vocabulary, rows in found.rows.items()}

  def resident(self):
    """Returns {name: {array: host array}} that their objectives draw from."""
    return {name: found.resident for name, found in self.found.items() if found.resident}

  def also_trained(self):
    """Returns [bool [N + 1]]: items whose rows are trained, chosen or not."""
    return [found.items for found in self.found.values() if found.items is not None]


def make(found, model, tables):
  """Returns (Auxiliary, tables of what it looks up).

  Args:
    found: of `data.auxiliary.read`.
    model: of `recjax.models`.
    tables: what the model looks up.
  """
  if not found:
    return Auxiliary(), {}
  leaf = next(name for name, (vocabulary, _) in model.row_tables().items() if vocabulary == "item")
  shapes = jax.eval_shape(functools.partial(_shapes, model), tables)
  rows = trees.flatten(shapes[0])[leaf].shape
  modules = {name: models.make_auxiliary(name, initializer=getattr(model, "initializer", "torch"),
                                         item_width=rows[1], width_of_x=shapes[1].shape[-1],
                                         **each.sizes) for name, each in found.items()}
  more = {name: data_lib.expand(x, rows[0]) if name == "attributes" else x
          for each in found.values() for name, x in each.tables.items()}
  return Auxiliary(modules, found, leaf), more


def check_whole(auxiliary, devices):
  """Raises UserError where item rows that auxiliary modules read whole would be split."""
  if auxiliary.modules:
    raise errors.UserError(f"model_devices={devices}: {' and '.join(auxiliary.modules)} read whole "
                           "tables of items; set model_devices=1")


def _shapes(model, tables):
  """Returns (parameters, the vector that the model compares with items) of some input."""
  inputs = model.example_inputs()
  params = model.init(jax.random.key(0), **inputs, tables=tables)["params"]
  last = jnp.zeros((1, 1), jnp.int32)
  x, _ = model.apply({"params": params}, **inputs, tables=tables, positions=last,
                     readout=lambda scores: scores.x)
  return params, x


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key, rows, tables):
  return module.init(key, rows, tables, **module.example_inputs())["params"]
