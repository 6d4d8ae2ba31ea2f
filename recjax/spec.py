"""Parsers of what people write in configs and on command lines; knows nothing else of recjax."""

import importlib.util
import math
import os
import pathlib
import types

import ml_collections

from recjax import errors

UNITS = ("steps", "epochs", "examples", "percent")


def steps(config, name, *, batch_size=None, examples=None, total=None, default=None):
  """Returns the duration `name` of `config` in steps.

  Exactly one of the fields NAME_steps, NAME_epochs, NAME_examples, NAME_percent may be set; None,
  -1 (which a command line can say) or a missing field is unset. Fractions round up, so that a
  positive duration is at least one step.

  Args:
    config: a mapping with the duration fields.
    name: what lasts, for example "total" or "warmup".
    batch_size: examples in a step (needed by epochs and examples).
    examples: examples in an epoch (needed by epochs).
    total: steps of the whole run (needed by percent).
    default: returned where no field is set; without one that is an error.
  """
  given = [u for u in UNITS if config.get(f"{name}_{u}") not in (None, -1)]
  if not given and default is not None:
    return default
  fields = ", ".join(f"{name}_{unit}" for unit in UNITS)
  if len(given) != 1:
    raise errors.UserError(f"set exactly one of {fields} (set: {', '.join(given) or 'none'}; -1 "
                           "unsets one)")
  unit, value = given[0], config[f"{name}_{given[0]}"]
  if (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
      or value < 0):
    raise errors.UserError(f"{name}_{unit} must be a number >= 0, not {value!r}")
  if unit == "percent" and total is None:
    raise errors.UserError(f"{name}_percent is a share of itself; set another of {fields}")
  exact = {
    "steps": lambda: value,
    "examples": lambda: value / batch_size,
    "epochs": lambda: value * steps_per_epoch(examples, batch_size),
    "percent": lambda: value / 100 * total,
  }[unit]()
  return max(math.ceil(exact - 1e-9), int(value > 0))


def steps_per_epoch(examples, batch_size):
  """Returns how many batches visit every example once; the last one may be partly padding."""
  return -(-examples // batch_size)


class Arguments(types.SimpleNamespace):
  """What a config file was given: `arg.name` or `arg["name"]`.

  It has no methods: those of a dict would hide arguments of their names, such as `items`.
  """

  def __getitem__(self, name):
    return vars(self)[name]


def parse_arg(arg, **defaults):
  """Returns Arguments: `defaults` overridden by `arg`, written "name=value,flag,...".

  A bare name means True. Values take the type of the default they replace. Unknown names are
  errors.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      raise errors.UserError(f"unknown config argument {name!r}; there are {', '.join(defaults)}")
    values[name] = _as_type_of(defaults[name], text if "=" in part else "true", name)
  return Arguments(**values)


def load_config(spec):
  """Returns the ConfigDict of "FILE.py" or "FILE.py:arg", as `--config=` would."""
  path, _, arg = spec.partition(":")
  if not path.endswith(".py") or not os.path.isfile(path):
    raise errors.UserError(f"no config file {path!r} (from {os.getcwd()!r})")
  module = importlib.util.module_from_spec(
    found := importlib.util.spec_from_file_location(pathlib.Path(path).stem, path))
  found.loader.exec_module(module)
  return module.get_config(arg) if arg else module.get_config()


def override(config, values):
  """Sets `config.a.b = v` for every {"a.b": v}; an unknown field is an error."""
  for name, value in values.items():
    *parents, leaf = name.split(".")
    node = config
    for parent in parents:
      node = node.get(parent) if hasattr(node, "get") else None
    if not hasattr(node, "keys") or leaf not in node:
      raise errors.UserError(
        f"unknown config field {name!r}; there are {', '.join(field_names(config))}")
    with node.ignore_type():
      node[leaf] = value
  return config


def field_names(config, prefix=""):
  """Returns the dotted names of all fields of a ConfigDict."""
  names = []
  for key, value in config.items():
    inside = isinstance(value, ml_collections.ConfigDict)
    names += field_names(value, f"{prefix}{key}.") if inside else [f"{prefix}{key}"]
  return names


def _as_type_of(default, text, name):
  if isinstance(default, bool):
    if text.lower() not in ("true", "false", "1", "0"):
      raise errors.UserError(f"config argument {name} is true or false, not {text!r}")
    return text.lower() in ("true", "1")
  try:
    return type(default)(text)
  except ValueError as error:
    raise errors.UserError(f"config argument {name}: {error}") from error
