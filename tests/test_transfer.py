"""Transfer: rules decide leaves, names decide rows, and every misfit is told."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax import models
from recjax import transfer
from recjax import trees
from recjax.data import vocabulary


def _rows(names, trained=None):
  names = np.array(names, "S")
  return types.SimpleNamespace(
    names=names, trained=np.ones(len(names), bool) if trained is None else np.array(trained))


def _plan(target, source, rules, *, row_tables=None, target_rows=None, source_rows=None, run=0):
  return transfer.make_plan(target, trees.flatten(source), rules, row_tables=row_tables or {},
                            target_rows=target_rows or {}, source_rows=source_rows or {}, run=run)


def _move(target, source, rules, **kw):
  """Returns {leaf name: array} of the merged parameters."""
  plan = _plan(target, source, rules, **kw)
  flat = trees.flatten(source)
  read = {name: flat[name] for name in transfer.sources(plan)}  # merge may read nothing else
  merged = transfer.merge(plan, target, read)
  assert jax.tree.structure(merged) == jax.tree.structure(target)
  return trees.flatten(merged)


TARGET = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros(4, np.float32),
                                                   "d": np.zeros(4, np.float32)}}
SOURCE = {"a": np.full((2, 3), 1.0), "b": {"c": np.full(4, 2.0), "d": np.full(4, 3.0)},
          "extra": np.full(4, 4.0)}


def test_the_first_match_wins_and_the_rest_starts_fresh():
  merged = _move(TARGET, SOURCE, (("b/c", None), ("b/.*", r"\g<0>")))
  assert {name: x.flat[0] for name, x in merged.items()} == {"a": 0, "b/c": 0, "b/d": 3}


def test_a_source_is_a_template_of_the_match():
  merged = _move(TARGET, SOURCE, ((r"b/(.)", "extra"), (r"(a)", r"\1")))
  assert {name: x.flat[0] for name, x in merged.items()} == {"a": 1, "b/c": 4, "b/d": 4}
  plan = _plan(TARGET, SOURCE, ((r"b/(.)", "extra"),))
  assert transfer.sources(plan) == ["extra"]  # read once
  assert [entry.source for entry in plan] == [None, "extra", "extra"]


def test_values_take_the_targets_type():
  source = {**SOURCE, "a": np.full((2, 3), 1.5, np.float64)}
  assert _move(TARGET, source, (("a", "a"),))["a"].dtype == np.float32
  rows = {"item": _rows(["x", "y"])}
  merged = _move(TARGET, source, (("a", "a"),), row_tables={"a": ("item", 0)}, target_rows=rows,
                 source_rows=rows)
  assert merged["a"].dtype == np.float32 and (merged["a"] == 1.5).all()


def test_a_fresh_start_is_not_written_to():
  rows = {"item": _rows(["x", "y"])}
  _move(TARGET, SOURCE, (("a", "a"),), row_tables={"a": ("item", 0)}, target_rows=rows,
        source_rows=rows)
  assert (TARGET["a"] == 0).all()


def test_a_rule_can_scale_and_take_from_another_source():
  rules = (("a", "a"), ("b/c", "b/d", {"source": 1, "scale": 0.5}), ("b/d", "b/d", {"scale": 2.0}))
  sources, merged, plans = (SOURCE, jax.tree.map(lambda x: 10 * x, SOURCE)), TARGET, []
  for run, source in enumerate(sources):
    plans.append(_plan(TARGET, source, rules, run=run))
    merged = transfer.merge(plans[-1], merged, trees.flatten(source))
  merged = trees.flatten(merged)
  assert {name: x.flat[0] for name, x in merged.items()} == {"a": 1, "b/c": 15, "b/d": 6}
  assert {x.dtype for x in merged.values()} == {np.dtype("float32")}
  plan = transfer.join(plans)
  assert [(e.target, e.run, e.scale) for e in plan] == [
    ("a", 0, 1.0), ("b/c", 1, 0.5), ("b/d", 0, 2.0)]
  assert "<- b/d of source 1 x 0.5" in transfer.describe(plan, dict.fromkeys(merged, True))
  transfer.check_sources(rules, 2)
  with pytest.raises(errors.UserError, match="'b/c' takes from source 1"):
    transfer.check_sources(rules, 1)
  with pytest.raises(errors.UserError, match="unknown options"):
    _plan(TARGET, SOURCE, (("a", "a", {"scales": 2}),))


@pytest.mark.parametrize("rules,says", [
  ((("nothing", "a"),), ["nothing", "b/c"]),
  ((("a", "zzz"),), ["a wants zzz", "+ extra"]),
  ((("a", "extra"),), ["a is (2, 3), extra is (4,)"]),
  ((("a", "zzz"), ("b/c", "a")), ["a wants zzz", "b/c is (4,), a is (2, 3)"]),  # all at once
  ((("a", r"\3"),), [r"'\\3'", "template"]),
  ((("a", r"\g<name>"),), ["template"]),
  ((("(", "a"),), ["regular expression"]),
])
def test_misfits_are_told(rules, says):
  with pytest.raises(errors.UserError) as error:
    _plan(TARGET, SOURCE, rules)
  for part in says:
    assert part in str(error.value)


def test_misfits_print_both_lists():
  target = {"same": np.zeros(2), "only_here": np.zeros(2), "wide": np.zeros(3)}
  source = {"same": np.zeros(2), "only_there": np.zeros(2), "wide": np.zeros(2)}
  with pytest.raises(errors.UserError) as error:
    _plan(target, source, ((".*", r"\g<0>"),))
  for part in ("- only_here", "+ only_there", "wide is (3,), wide is (2,)", "Fitting: same"):
    assert part in str(error.value)


# Rows by name.


def test_rows_are_matched_by_name_not_by_number():
  rng = np.random.default_rng(0)
  theirs = [b"n%d" % i for i in range(50)]
  ours = [b"n%d" % i for i in rng.permutation(80)[:60]]  # others, in another order
  source, fresh = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)).astype(np.float32)
  got = _move({"t": fresh}, {"t": source}, (("t", "t"),), row_tables={"t": ("item", 0)},
              target_rows={"item": _rows(ours)}, source_rows={"item": _rows(theirs)})["t"]
  for row, name in enumerate(ours):
    want = source[theirs.index(name)] if name in theirs else fresh[row]
    np.testing.assert_allclose(got[row], want, rtol=1e-6)
  known = set(theirs)
  assert 0 < sum(name in known for name in ours) < 60


def test_rows_along_another_axis():
  source, fresh = np.arange(12.0).reshape(3, 4), np.zeros((3, 2))
  got = _move({"t": fresh}, {"t": source}, (("t", "t"),), row_tables={"t": ("output", 1)},
              target_rows={"output": _rows(["d", "b"])},
              source_rows={"output": _rows(["a", "b", "c", "d"])})["t"]
  np.testing.assert_array_equal(got, source[:, [3, 1]])
  assert got.flags.c_contiguous


def test_rows_that_the_source_never_trained_stay_fresh():
  got = transfer.match_rows(np.array([b"a", b"b", b"c"]),
                            _rows(["c", "b", "a"], [True, False, True]))
  assert got.tolist() == [2, -1, 0]


def test_nameless_rows_match_nothing():
  assert transfer.match_rows(np.array([b"", b"a"]), _rows([b"", b"a"])).tolist() == [-1, 1]


@pytest.mark.parametrize("source", [None, _rows(["a"], [False]), _rows([b"zz", b"yy"])])
def test_no_common_row(source):
  assert transfer.match_rows(np.array([b"a", b"b"]), source).tolist() == [-1, -1]


def test_names_of_different_length_are_not_cut():
  # numpy would compare "abc" with "abcdef" cut to the shorter dtype.
  short, long = np.array([b"abc", b"x"]), np.array([b"abcdef", b"x"])
  assert transfer.match_rows(short, _rows(long)).tolist() == [-1, 1]
  assert transfer.match_rows(long, _rows(short)).tolist() == [-1, 1]


def test_a_table_must_have_as_many_rows_as_names():
  # embed/director <- embed/actor, say: row numbers of one vocabulary would index another's table.
  with pytest.raises(errors.UserError, match="has 3 named item rows"):
    _plan({"t": np.zeros((2, 4))}, {"u": np.zeros((5, 4))}, (("t", "u"),),
          row_tables={"t": ("item", 0)}, target_rows={"item": _rows(["a", "b"])},
          source_rows={"item": _rows(["a", "b", "c"])})


def test_widths_must_agree_though_rows_need_not():
  kw = dict(row_tables={"t": ("item", 0)}, target_rows={"item": _rows(["a", "b"])},
            source_rows={"item": _rows(["a", "b", "c"])})
  assert _plan({"t": np.zeros((2, 4))}, {"t": np.zeros((3, 4))}, (("t", "t"),), **kw)
  with pytest.raises(errors.UserError, match=r"t is \(2, 4\), t is \(3, 5\)"):
    _plan({"t": np.zeros((2, 4))}, {"t": np.zeros((3, 5))}, (("t", "t"),), **kw)


# The modes of real models.

FIELD_ROWS = {"genre": 5, "actor": 7}


@functools.cache
def _model(kind, *, num_items=12, num_users=6):
  extra = {}
  if kind == "survey_code":
    extra = dict(user_width=4, fields=(("genre", 4, 1), ("actor", 4, 2)))
  model = models.make("bert4rec", variant=kind, num_items=num_items, num_users=num_users,
                      field_rows=FIELD_ROWS, num_layers=1, item_width=4, heads=2, hidden=8,
                      max_len=5, **extra)
  tables = {name: jnp.zeros((num_items + 2, slots), jnp.int32)
            for name, _, _, slots in model.fields}
  shapes = jax.eval_shape(lambda: model.init(
    jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32), tables)["params"])
  return model, shapes


def _names(model, *, items, users, trained=None):
  """Returns {vocabulary: Rows} of a data set with these external item and user ids."""
  special = [vocabulary.MASK] + [b"\x01token%d" % i for i in range(model.extra_tokens)]
  here = [True] * len(items) if trained is None else trained
  return {"item": _rows([vocabulary.PAD, *items, *special], [True, *here, *[True] * len(special)]),
          "output": _rows([vocabulary.PAD, *items], [True, *here]), "user": _rows(users),
          **{name: _rows([b"%s%d" % (name.encode(), i) for i in range(rows)])
             for name, rows in FIELD_ROWS.items()}}


def _cross(kind, mode=None, *, rules=None, trained=None, seed=0):
  """Returns (fresh, source, merged) flat parameters, item order and user order of both sides."""
  rng = np.random.default_rng(seed)
  model, shapes = _model(kind)
  items, users = [b"i%d" % i for i in range(12)], [b"u%d" % i for i in range(6)]
  shuffled_items = [items[i] for i in rng.permutation(12)]
  shuffled_users = [users[i] for i in rng.permutation(6)]
  fill = lambda low: jax.tree.map(
    lambda x: (low + rng.uniform(size=x.shape)).astype(np.float32), shapes)
  fresh, source = fill(0), fill(10)  # the side that a value came from can be told
  merged = _move(fresh, source, model.transfer_rules(mode) if rules is None else rules,
                 row_tables=model.row_tables(),
                 target_rows=_names(model, items=items, users=users),
                 source_rows=_names(model, items=shuffled_items, users=shuffled_users,
                                    trained=trained))
  return (trees.flatten(fresh), trees.flatten(source), merged,
          [shuffled_items.index(i) for i in items], [shuffled_users.index(u) for u in users])


def _crossed(merged):
  return {name for name, x in merged.items() if (x >= 10).all()}


def test_mode_none_moves_nothing():
  fresh, _, merged, *_ = _cross("survey_code", "none")
  for name, x in merged.items():
    np.testing.assert_array_equal(x, fresh[name])


def test_mode_embedding_moves_user_and_attribute_tables_only():
  fresh, source, merged, _, users = _cross("survey_code", "embedding")
  assert _crossed(merged) == {f"embed/{name}/embedding" for name in (
    "user", "user_pos", "genre", "genre_pos", "actor", "actor_pos")}
  for name in set(merged) - _crossed(merged):
    np.testing.assert_array_equal(merged[name], fresh[name])
  np.testing.assert_array_equal(merged["embed/user/embedding"],
                                source["embed/user/embedding"][users])
  np.testing.assert_array_equal(merged["embed/user_pos/embedding"],
                                source["embed/user_pos/embedding"])


@pytest.mark.parametrize("kind", ["survey_code", "bert4rec"])
def test_mode_model_moves_all_but_the_head(kind):
  fresh, source, merged, items, _ = _cross(kind, "model")
  assert _crossed(merged) == {name for name in merged if not name.startswith("head/")}
  assert any(name.startswith("head/") for name in merged)
  for name in merged:
    if name.startswith("head/"):
      np.testing.assert_array_equal(merged[name], fresh[name])
  table, theirs = merged["embed/item/embedding"], source["embed/item/embedding"]
  np.testing.assert_array_equal(table[1:13], theirs[1:13][items])
  np.testing.assert_array_equal(table[[0, *range(13, len(table))]],  # PAD, MASK, tokens
                                theirs[[0, *range(13, len(table))]])


def test_items_of_the_other_domain_stay_fresh():
  trained = [i % 2 == 0 for i in range(12)]
  fresh, source, merged, items, _ = _cross("survey_code", "model", trained=trained)
  for row, place in enumerate(items, 1):
    want = source["embed/item/embedding"][place + 1] if trained[place] else (
      fresh["embed/item/embedding"][row])
    np.testing.assert_array_equal(merged["embed/item/embedding"][row], want)
  assert (merged["embed/item/embedding"][[0, 13]] >= 10).all()  # PAD and MASK cross


@pytest.mark.parametrize("kind,leaf,axis", [
  ("survey_code", "head/scores/kernel", 1), ("survey_code", "head/scores/bias", 0),
  ("bert4rec", "head/bias", 0)])
def test_rules_can_move_the_head_by_item(kind, leaf, axis):
  _, source, merged, items, _ = _cross(kind, rules=(("head/.*", r"\g<0>"),))
  assert _crossed(merged) == {name for name in merged if name.startswith("head/")}
  got, theirs = np.moveaxis(merged[leaf], axis, 0), np.moveaxis(source[leaf], axis, 0)
  np.testing.assert_array_equal(got[1:13], theirs[1:13][items])
  np.testing.assert_array_equal(got[0], theirs[0])


def test_a_smaller_source_gives_what_it_has():
  model, shapes = _model("survey_code")
  small, small_shapes = _model("survey_code", num_items=7, num_users=3)
  fill = lambda shapes, value: jax.tree.map(lambda x: np.full(x.shape, value, np.float32), shapes)
  items, users = [b"i%d" % i for i in range(12)], [b"u%d" % i for i in range(6)]
  merged = _move(fill(shapes, 0), fill(small_shapes, 1), model.transfer_rules("model"),
                 row_tables=model.row_tables(), target_rows=_names(model, items=items, users=users),
                 source_rows=_names(small, items=items[5:], users=users[:3]))
  assert merged["embed/user/embedding"][:, 0].tolist() == [1, 1, 1, 0, 0, 0]
  assert merged["embed/item/embedding"][:, 0].tolist() == [1] + [0] * 5 + [1] * 7 + [1]


def test_the_plan_can_be_read_and_written():
  rows = {"item": _rows(["x", "y"])}
  plan = _plan(TARGET, SOURCE, (("a", "a"), ("b/c", "extra")), row_tables={"a": ("item", 0)},
               target_rows=rows, source_rows={"item": _rows(["y", "z"])})
  assert [entry.describe() for entry in plan] == [
    {"target": "a", "source": "a", "shape": [2, 3],
     "rows": {"vocabulary": "item", "of": 2, "matched": 1}},
    {"target": "b/c", "source": "extra", "shape": [4]},
    {"target": "b/d", "source": "fresh", "shape": [4]}]
  lines = transfer.describe(plan, {"a": True, "b/c": False, "b/d": True}).splitlines()
  assert "<- a (1 of 2 item rows)" in lines[0] and "frozen" not in lines[0]
  assert "<- extra, frozen" in lines[1]
  assert lines[2].endswith("fresh")


def test_rows_that_are_frozen_as_they_started_are_warned_of():
  target, source = {"t": np.zeros((4, 2), "f4")}, {"t": np.ones((3, 2))}
  known = dict(row_tables={"t": ("item", 0)}, source_rows={"item": _rows(list("abc"), [1, 1, 0])})
  needed = {"item": np.array([True, True, True, False])}
  def lines(names, trained):
    plan = _plan(target, source, (("t", "t"),), target_rows={"item": _rows(list(names))}, **known)
    return transfer.frozen_as_started(plan, {"t": trained}, needed)
  line, = lines("abcd", False)  # c was never trained, nobody needs d
  assert line.startswith("t is frozen, and 1 of the item rows") and "(('t', {}),)" in line
  assert lines("abcd", True) == lines("abad", False) == []
