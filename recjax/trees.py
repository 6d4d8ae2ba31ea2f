"""Parameter trees by name: leaves are addressed as "a/b/c" and selected by regular expressions."""

import re

import jax
import numpy as np

from recjax import errors


def flatten(tree):
  """Returns {"a/b/c": leaf} in the tree's own order; None and empty nodes vanish."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {name(path): leaf for path, leaf in leaves}


def name(path):
  """Returns a key path (of `jax.tree_util`) as "a/b/c"."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def unflatten(flat):
  """Returns the nested dict of {"a/b/c": leaf}."""
  tree = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def match(tree, rules, *, what="rule"):
  """Returns (values, unmatched): for every leaf the value of the first rule that fully matches it.

  Args:
    tree: a parameter tree.
    rules: sequence of (regex, value); the first full match wins.
    what: what the rules are for, to name it in errors.

  Returns:
    values: {leaf name: (value, match object)} of the leaves that a rule matched.
    unmatched: the names of the others.

  Raises:
    UserError: a rule that decides no leaf, since a typo would otherwise pass in silence.
  """
  names = list(flatten(tree))
  values, used = {}, set()
  for leaf in names:
    for index, (pattern, value) in enumerate(rules):
      if found := _compile(pattern, what).fullmatch(leaf):
        values[leaf] = (value, found)
        used.add(index)
        break
  unused = [pattern for index, (pattern, _) in enumerate(rules) if index not in used]
  if unused:
    raise errors.UserError(
      f"{what} {unused[0]!r} decides no parameter; there are {', '.join(names)}")
  return values, [leaf for leaf in names if leaf not in values]


def map_names(fn, tree):
  """Returns the tree with every leaf replaced by fn("a/b/c", leaf)."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(name(path), leaf), tree)


def join(tree, leaves):
  """Returns the tree with {leaf name: value} beside its own leaves, or in their place."""
  return unflatten({**flatten(tree), **leaves})


def map_slots(fn, leaves, tree, *rest):
  """Returns the tree with fn(x, ..., leaves[leaf]) for chosen leaves and their optimizer slots.

  A slot is known by its name, which ends in that of its leaf. Of `rest` all other leaves are taken.

  Args:
    fn: of the value in `tree`, those in `rest`, and what `leaves` says.
    leaves: {leaf name: anything}.
    tree: parameters, optimizer slots, or a state.
    *rest: trees of the same structure.
  """
  def one(path, x, *others):
    whole = f"/{name(path)}"
    for leaf, value in leaves.items():
      if whole.endswith(f"/{leaf}"):
        return fn(x, *others, value)
    return others[-1] if others else x
  return jax.tree_util.tree_map_with_path(one, tree, *rest)


def count(tree):
  """Returns the number of scalars in the tree."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree_util.tree_leaves(tree))


def nbytes(tree):
  """Returns the bytes of all arrays in the tree."""
  return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize
             for leaf in jax.tree_util.tree_leaves(tree))


def describe_difference(want, have):
  """Returns one line that lists names missing from `have` (-) and those it has in excess (+)."""
  missing = [f"- {n}" for n in want if n not in have]
  extra = [f"+ {n}" for n in have if n not in want]
  return "; ".join(missing + extra) or "none"


def overview(params, trainable):
  """Returns a table of every leaf: name, shape, scalars, trained or frozen; and their totals.

  Args:
    params: a parameter tree of arrays or shapes.
    trainable: {leaf name: bool}.
  """
  flat = flatten(params)
  width = max(map(len, flat))
  lines = [f"{'parameter':<{width}}  {'shape':>14}  {'scalars':>12}"]
  for leaf, array in flat.items():
    shape = "x".join(map(str, array.shape)) or "scalar"
    lines.append(f"{leaf:<{width}}  {shape:>14}  {int(np.prod(array.shape)):>12,}"
                 f"{'' if trainable[leaf] else '  frozen'}")
  trained = sum(int(np.prod(flat[n].shape)) for n in flat if trainable[n])
  total = count(params)
  lines.append(f"{'total':<{width}}  {'':>14}  {total:>12,}  trained {trained:,}"
               f" ({100 * trained / max(total, 1):.1f} %), {nbytes(params) / 2**20:.1f} MiB")
  return "\n".join(lines)


def _compile(pattern, what):
  try:
    return re.compile(pattern)
  except re.error as error:
    raise errors.UserError(f"{what} {pattern!r} is not a regular expression: {error}") from error
