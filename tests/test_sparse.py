"""Steps that touch few rows: the same as steps that visit all, where the mathematics says so."""

import evaluator_data
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from recjax import errors, models, objectives, optim, partition, sparse, step, trees
from recjax import state as state_lib
from recjax.data import batches

USERS, T, B = 19, 6, 8
OPTIM = dict(name="sgd", lr=0.1, b1=0.9, b2=0.999, eps=1e-8, momentum=0.0, weight_decay=0.0,
             clip_norm=None, decay="constant", final_lr_scale=0.0, warmup_steps=None, rules=())
MODELS = {
  "tied": ("sasrec", "kang", "causal_next_item"),
  "untied": ("sasrec", "survey_code", "causal_next_item"),
  "transform": ("bert4rec", "bert4rec", "masked_item"),  # MASK, CLS, SEP; a bias of the item table
  "caser": ("caser", "survey", "next_window"),
}


def _setup(kind="tied", *, items=300, used=40, sparse_rows=True, devices=1, micro_batches=1,
           freeze="", loss=(), **optim_fields):
  """Returns (state, train_steps, resident): of `items`, users own the first `used` alone."""
  name, variant, task = MODELS[kind]
  rng = np.random.default_rng(0)
  data = evaluator_data.dataset([(rng.integers(1, used + 1, rng.integers(4, 9)), [1], [2])
                                 for _ in range(USERS)], items, in_domain=range(1, used + 1))
  # No dropout: what a mask does to sums in another order is not asked here.
  sizes = dict(item_width=4, dropout=0.0, fields=(("kind", 2, 1),), field_rows={"kind": 7})
  if kind != "caser":
    sizes.update(num_layers=1, heads=1 if kind != "untied" else 2, hidden=8, max_len=T)
  if kind in ("tied", "transform"):  # whose heads are as wide as an item
    sizes.update(fields=())
  elif kind == "untied":
    sizes.update(user_width=4)
  model = models.make(name, variant=variant, num_items=items, num_users=USERS, **sizes)
  table = rng.integers(0, 8, (items + 2 + model.extra_tokens, 1)).astype(np.int32)
  tables = {"kind": jnp.asarray(table)} if model.fields else {}
  fields = dict(loss) if kind == "caser" else {
    "criterion": "sampled_softmax", "num_negatives": 9, "negatives": "row", **dict(loss)}
  objective = objectives.make(task, num_items=items, known=model.objectives, **{task: fields})
  resident = batches.resident(
    data, min_length=objective.min_length, columns=objective.columns,
    slide=T + 2 if objective.slide else None, popularity=objective.popularity)
  config = ml_collections.ConfigDict({**OPTIM, **optim_fields})
  params = model.init(jax.random.key(0), **model.example_inputs(), tables=tables)["params"]
  rules = ((freeze, {"freeze": True}),) if freeze else ()
  plan = optim.plan(config, params, extra_rules=rules)
  tx = optim.make(config, params, plan=plan,
                  schedule=optim.make_schedule(config, total_steps=100))
  mesh = partition.make_mesh(devices)
  length = model.max_len + objective.extra_columns
  run = step.make_train_steps(
    apply_fn=step.make_apply(model, tables), objective=objective, tx=tx, mesh=mesh,
    sample=batches.make_sampler(num_users=len(resident["users"]), batch_size=B, length=length,
                                window=objective.window),
    trainable={leaf: not options["freeze"] for leaf, options in plan.items()},
    micro_batches=micro_batches * devices,
    rooms={length: B * T // micro_batches // devices},
    rows=sparse.make(sparse_rows, model=model, tables=tables, objective=objective))
  everywhere = partition.replicated(mesh)
  state = partition.put_state(state_lib.create(params, tx, 0), everywhere)
  return state, run, partition.put(resident, everywhere)


def _train(count, **setup):
  """Returns ({leaf: array} of parameters and slots before, the same after, sums)."""
  state, run, resident = _setup(**setup)
  flat = lambda state: {
    name: np.asarray(x) for name, x in trees.flatten((state.params, state.opt_state)).items()}
  before = flat(state)
  state, sums = run(state, resident, np.int32(count))
  return before, flat(state), jax.tree.map(float, sums)


def _assert_equal(one, two, before, *, atol=0.0):
  assert one.keys() == two.keys() == before.keys()
  for name, x in one.items():
    np.testing.assert_allclose(two[name], x, atol=atol, rtol=0, err_msg=name)
  assert sum(np.any(x != before[name]) for name, x in one.items()) > 5  # it has trained


@pytest.mark.parametrize("kind,name", [
  ("untied", "adagrad"), *(pytest.param(*kind, marks=pytest.mark.slow) for kind in (
    ("tied", "sgd"), ("transform", "sgd"), ("caser", "adagrad")))])
def test_sgd_and_adagrad_are_those_of_all_rows(kind, name):
  # eps: Adagrad would take whole steps along gradients that are rounding alone.
  runs = {wanted: _train(3, kind=kind, sparse_rows=wanted, name=name, eps=1e-4)
          for wanted in (True, False)}
  before, some, some_sums = runs[True]
  _, every, sums = runs[False]
  # Sums over rows, as those in dense layers, may be taken in another order: two bits of a value of 2.
  _assert_equal(every, some, before, atol=5e-7)
  for key, value in sums.items():
    assert some_sums[key] == pytest.approx(value, rel=1e-6), key


def test_lazy_adam_is_adam_where_every_row_is_met():
  # The whole domain is drawn for every row, and the domain is all items.
  setup = dict(items=9, used=9, loss=(("negatives", "batch"),), name="adam", lr=0.01, eps=1e-4)
  before, some, _ = _train(6, **setup)
  _, every, _ = _train(6, sparse_rows=False, **setup)
  _assert_equal(every, some, before, atol=1e-6)


@pytest.mark.parametrize("kind", [
  "untied", pytest.param("transform", marks=pytest.mark.slow)])
def test_rows_that_nobody_meets_keep_every_bit_and_so_do_their_slots(kind):
  state, run, resident = _setup(kind, name="adam", weight_decay=0.1, clip_norm=0.1)
  rng = np.random.default_rng(1)
  # Moments that a plain step would move, and the row with them.
  fill = lambda x: jnp.asarray(rng.random(x.shape), x.dtype) if x.ndim else x
  state = state.replace(opt_state=jax.tree.map(fill, state.opt_state))
  flat = lambda: jax.tree.map(np.asarray, trees.flatten((state.params, state.opt_state)))
  before = flat()
  state, _ = run(state, resident, np.int32(4))
  after, checked = flat(), 0
  for name, x in after.items():
    if 300 < max(x.shape, default=0) <= 304:
      axis = int(np.argmax(x.shape))
      cut = lambda y, low, high, axis=axis: np.take(y, range(low, high), axis)
      np.testing.assert_array_equal(cut(x, 41, 301), cut(before[name], 41, 301), err_msg=name)
      assert (cut(x, 1, 41) != cut(before[name], 1, 41)).mean() > 0.5, name
      checked += 1
  assert checked == {"untied": 9, "transform": 6}[kind]  # tables and two slots of each


@pytest.mark.parametrize("setup", [
  dict(devices=2, micro_batches=2), dict(loss=(("proposal", "in_batch"),)),
  dict(loss=(("negatives", "position"), ("proposal", "popularity")), micro_batches=4)])
def test_any_cut_of_a_batch_agrees(setup):
  whole = {**setup, "devices": 1, "micro_batches": 1, "sparse_rows": False}
  before, some, _ = _train(3, **setup)
  _, every, _ = _train(3, **whole)
  _assert_equal(every, some, before, atol=1e-5)


def test_what_is_frozen_stays():
  before, after, _ = _train(3, kind="untied", freeze=".*item/embedding", name="adam")
  moved = {name: (x != before[name]).any() for name, x in after.items() if name.startswith("0/")}
  assert not moved.pop("0/embed/item/embedding") and moved["0/head/scores/kernel"]
  assert not any("embed/item/embedding" in name for name in after if name.startswith("1/"))


def test_a_step_needs_no_memory_of_the_size_of_the_table():
  needs = {}
  for wanted in (True, False):
    state, run, resident = _setup(items=20000, name="adam", sparse_rows=wanted)
    compiled = run.lower(state, resident, np.int32(1)).compile()
    needs[wanted] = compiled.memory_analysis().temp_size_in_bytes
  size = state.params["embed"]["item"]["embedding"].nbytes
  assert needs[True] < size < needs[False]


def test_who_is_stepped_so():
  sampled, full = (objectives.make("masked_item", num_items=9, known=("masked_item",),
                                   masked_item=dict(criterion=c)) for c in ("bce", "softmax"))
  sized = lambda count: models.make("bert4rec", variant="bert4rec", num_items=count, num_users=1,
                                    field_rows={})
  make = lambda wanted, count, objective: sparse.make(
    wanted, model=sized(count), tables={}, objective=objective)
  assert make(None, 4000, sampled) is make(None, 10**6, full) is make(False, 10**6, sampled) is None
  assert make(True, 4000, sampled).always and not make(None, 10**6, sampled).always
  with pytest.raises(errors.UserError, match="criterion=sampled_softmax, bce or gbce"):
    make(True, 10**6, full)


def test_a_batch_that_may_meet_much_of_the_catalog_visits_it_all(monkeypatch):
  monkeypatch.setattr(sparse, "LARGE", 100)
  setup = dict(items=300, name="adam", lr=0.01)  # 8 x (6 + 6 + 9) ids are more than 300 / 4
  before, chosen, _ = _train(3, sparse_rows=None, **setup)
  _, every, _ = _train(3, sparse_rows=False, **setup)
  _assert_equal(every, chosen, before)
  monkeypatch.setattr(sparse, "SHARE", 1)
  _, lazy, _ = _train(3, sparse_rows=None, **setup)
  assert any((lazy[name] != x).any() for name, x in every.items())
