"""Items that are held out compete in no training, whichever model scores them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import catalog, models, step, trees

N, U, OUT = 12, 4, 5  # OUT is held out
SMALL = {"num_layers": 1, "item_width": 8, "hidden": 8, "max_len": 4, "dropout": 0.0,
         "user_width": 0, "heads": 2, "factors": 4}
RANKING = ("nextitnet", "caser", "dot", "neumf")  # by rows of a head, and by functions of pairs


def _made(name):
  """Returns (model, tables, inputs) of a small model where OUT is barred."""
  allowed = models.MODELS[name].__dataclass_fields__
  model = models.make(name, variant=next(iter(models.VARIANTS[name])), num_items=N, num_users=U,
                      field_rows={}, **{key: x for key, x in SMALL.items() if key in allowed})
  size = N + 2 + model.extra_tokens
  tables = {"item/barred": jnp.arange(size) == OUT}
  inputs = {"items": jnp.array([[1, 2, 3], [0, 6, 7]]), "users": jnp.array([1, 2])}
  return model, tables, inputs


def test_no_model_bars_by_itself():
  folder = pathlib.Path(models.__file__).parent
  assert not [path.name for path in folder.glob("*.py") if "item/barred" in path.read_text()]


@pytest.mark.parametrize("name", RANKING)
def test_who_is_held_out_competes_in_no_training(name):
  model, tables, inputs = _made(name)
  apply_fn, where = step.make_apply(model, tables), jnp.array([[2, 5]])
  ids, labels = jnp.array([[[OUT, 2]]]), jnp.array([[1, 2]])
  def ask(key):  # one program a model
    params = model.init(key, **model.example_inputs(), tables=tables)["params"]
    def loss(params, rng):
      run = functools.partial(apply_fn, params, inputs, rng, positions=where)
      every = run(readout=lambda scores: (scores.all(), *scores.against_all(labels)))
      return jnp.sum(every[2] - every[1]), (every[0], run(candidates=(ids,))[0])
    grad, train = jax.grad(loss, has_aux=True)(params, key)
    return train, loss(params, None)[1], grad
  (train, some), (test, same), grad = jax.jit(ask)(jax.random.key(0))
  assert train.shape == (1, 2, N + 1) and some.shape == (1, 2, 2)
  assert (train[..., OUT] < -1e8).all() and (some[..., 0] < -1e8).all()
  assert (np.abs(test) < 1e8).all() and (np.abs(same) < 1e8).all()
  np.testing.assert_allclose(np.delete(train, OUT, -1), np.delete(test, OUT, -1), rtol=1e-5,
                             atol=1e-6)
  np.testing.assert_allclose(some[..., 1], same[..., 1], rtol=1e-5, atol=1e-6)
  rows = [x if axis == 0 else x.T for leaf, x in trees.flatten(grad).items()
          for which, axis in [model.row_tables().get(leaf, ("", 0))] if which in ("item", "output")]
  assert rows and not any(x[OUT].any() for x in rows) and any(x[OUT + 3].any() for x in rows)


def test_scores_that_are_given_can_be_barred():
  given = catalog.Given(jnp.arange(6.0).reshape(1, 1, 6))
  assert (given.without(jnp.arange(8) == 2).all()[0, 0] < -1e8).tolist() == [
    False, False, True, False, False, False]


def test_labels_are_no_items():
  model = models.make("sasrec", variant="sasrec", num_items=N, num_users=U, field_rows={},
                      labels=7, **{key: SMALL[key] for key in ("num_layers", "item_width", "heads",
                                                               "hidden", "max_len", "dropout")})
  tables = {"item/barred": jnp.arange(N + 2) == OUT}
  inputs = {"items": jnp.array([[1, 2]]), "users": jnp.zeros(1, jnp.int32)}
  def ask(key):
    params = model.init(key, **model.example_inputs(), tables={})["params"]
    return step.make_apply(model, tables)(params, inputs, key, positions=jnp.array([[1]]),
                                          readout=lambda scores: scores.all())
  scores = jax.jit(ask)(jax.random.key(0))
  assert scores.shape[-1] == 8 and (np.abs(scores) < 1e8).all()
