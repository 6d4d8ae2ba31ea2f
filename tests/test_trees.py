"""Leaf names, rules over them, and what trees say about themselves."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax import trees

Pair = collections.namedtuple("Pair", "mu nu")


def _params():
  return {"embed": {"item": {"embedding": jnp.zeros((5, 2))},
                    "user": {"embedding": jnp.ones((3, 2))}},
          "head": {"bias": jnp.zeros(5), "kernel": jnp.zeros((2, 5))}}


def test_names_follow_the_tree_and_come_back():
  params = _params()
  flat = trees.flatten(params)
  assert list(flat) == ["embed/item/embedding", "embed/user/embedding", "head/bias", "head/kernel"]
  assert all(a is b for a, b in zip(jax.tree.leaves(params), flat.values(), strict=True))
  assert jax.tree.structure(trees.unflatten(flat)) == jax.tree.structure(params)


def test_names_of_tuples_and_attributes():
  # Optimizer states are tuples of named tuples; checkpoints name their leaves too.
  tree = (Pair(mu={"a": 1}, nu=None), [2, {}])
  assert trees.flatten(tree) == {"0/mu/a": 1, "1/0": 2}


def test_first_full_match_wins():
  rules = ((r"embed/item/.*", "first"), (r"embed/.*", "second"))
  values, unmatched = trees.match(_params(), rules)
  assert {leaf: value for leaf, (value, _) in values.items()} == {
    "embed/item/embedding": "first", "embed/user/embedding": "second"}
  assert unmatched == ["head/bias", "head/kernel"]


def test_a_match_must_be_of_the_whole_name():
  with pytest.raises(errors.UserError, match="embed/item"):
    trees.match(_params(), (("embed/item", 0),))


def test_the_match_object_carries_groups():
  values, _ = trees.match(_params(), ((r"embed/(\w+)/embedding", None),))
  assert values["embed/user/embedding"][1].expand(r"old/\1") == "old/user"


@pytest.mark.parametrize("rules", [
  (("embed/.*", 0), ("nothing", 1)),
  (("embed/.*", 0), ("embed/item/.*", 1)),  # it matches, but an earlier rule decides all of it
])
def test_a_rule_that_decides_nothing_is_an_error(rules):
  with pytest.raises(errors.UserError) as error:
    trees.match(_params(), rules, what="transfer rule")
  assert "transfer rule" in str(error.value) and repr(rules[1][0]) in str(error.value)
  assert "head/kernel" in str(error.value)  # the names there are


def test_a_bad_regular_expression_is_a_user_error():
  with pytest.raises(errors.UserError, match="not a regular expression"):
    trees.match(_params(), (("embed/(", 0),))


def test_counts_and_bytes():
  tree = {"a": jnp.zeros((3, 4), jnp.bfloat16), "b": np.zeros((), np.float64)}
  assert trees.count(tree) == 13
  assert trees.nbytes(tree) == 3 * 4 * 2 + 8


def test_map_names_sees_every_leaf_once():
  seen = []
  out = trees.map_names(lambda name, leaf: seen.append(name) or leaf.shape, _params())
  assert seen == list(trees.flatten(_params()))
  assert out["head"]["kernel"] == (2, 5)


def test_describe_difference_marks_both_sides():
  assert trees.describe_difference(["a", "b"], ["b", "c"]) == "- a; + c"
  assert trees.describe_difference(["a"], ["a"]) == "none"


def test_overview_adds_up_and_marks_what_is_frozen():
  params = _params()
  trainable = {name: not name.startswith("head") for name in trees.flatten(params)}
  lines = trees.overview(params, trainable).splitlines()
  assert len(lines) == 2 + 4
  for line in lines[1:-1]:
    assert ("frozen" in line) == line.startswith("head")
  scalars = [int(line.split()[2].replace(",", "")) for line in lines[1:-1]]
  assert sum(scalars) == trees.count(params) == 31
  assert "31" in lines[-1] and "trained 16" in lines[-1]
