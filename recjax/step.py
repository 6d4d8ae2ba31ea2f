"""The compiled steps. They know neither the model nor the objective by name."""

import jax
import jax.numpy as jnp

from recjax import optim
from recjax import partition


def make_apply(model, tables):
  """Returns apply_fn(params, items, users, positions, rng) -> scores, the model as objectives see it.

  Args:
    model: a linen module of `recjax.models`.
    tables: {field: int32 [tokens, slots]} on the devices.
  """
  def apply_fn(params, items, users, positions, rng):
    rngs = None if rng is None else {"dropout": rng}
    scores, _ = model.apply({"params": params}, items, users, tables, positions=positions,
                            train=rng is not None, rngs=rngs)
    return scores
  return apply_fn


def make_train_steps(*, apply_fn, objective, tx, sample, mesh, micro_batches, shards, capacity):
  """Returns the compiled `(state, resident, count) -> (state, sums)` that takes `count` steps.

  The state is donated. `count` is traced: any number of steps runs the same program, and running
  one by one gives the same bits. Metrics are summed on the device and fetched when they are logged.

  Args:
    apply_fn: see `make_apply`.
    objective: of `recjax.objectives`.
    tx: optimizer of `recjax.optim`.
    sample: of `recjax.data.batches`.
    mesh: of `recjax.partition`; rows of a batch are split over its data axis.
    micro_batches: how many parts of the batch are differentiated one after the other; gradients of
      the sum are added up, so that the result is that of the whole batch.
    shards: runs of rows of a micro-batch whose labels are gathered apart.
    capacity: room for labels in a shard.
  """
  def loss_sum(params, inputs, rng):
    total, weight, metrics = objective.loss(
      apply_fn, params, inputs, shards=shards, capacity=capacity, rng=rng)
    return total, (weight, metrics)

  def one(state, resident):
    sample_rng, corrupt_rng, dropout_rng = jax.random.split(state.rng, 3)
    now = lambda rng: jax.random.fold_in(rng, state.step)
    batch = partition.constrain_rows(sample(resident, sample_rng, state.step), mesh)
    inputs = objective.prepare(now(corrupt_rng), batch, resident["pool"])

    grad_fn = jax.value_and_grad(loss_sum, has_aux=True)
    if micro_batches == 1:
      inputs = partition.constrain_rows(inputs, mesh)
      (loss, (weight, metrics)), grads = grad_fn(state.params, inputs, now(dropout_rng))
    else:
      def part(carry, piece):
        index, piece = piece
        piece = partition.constrain_rows(piece, mesh)
        (loss, (weight, metrics)), grads = grad_fn(
          state.params, piece, jax.random.fold_in(now(dropout_rng), index))
        return jax.tree.map(jnp.add, carry, (loss, weight, metrics, grads)), None
      pieces = jax.tree.map(
        lambda x: x.reshape(micro_batches, x.shape[0] // micro_batches, *x.shape[1:]), inputs)
      first = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda: _reorder(grad_fn(
          state.params, jax.tree.map(lambda x: x[0], pieces), dropout_rng))))
      (loss, weight, metrics, grads), _ = jax.lax.scan(
        part, first, (jnp.arange(micro_batches), pieces))

    grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    sums = {"loss": loss, "weight": weight, "grad_norm": optim.global_norm(grads),
            "examples": jnp.sum(batch["users"] > 0), "tokens": jnp.sum(batch["items"] > 0),
            **metrics}
    state = state.replace(step=state.step + 1, opt_state=opt_state,
                          params=optim.apply_updates(state.params, updates))
    return state, sums

  def many(state, resident, count):
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                         jax.eval_shape(lambda: one(state, resident)[1]))
    def body(_, carry):
      state, sums = carry
      state, more = one(state, resident)
      return state, jax.tree.map(jnp.add, sums, more)
    return jax.lax.fori_loop(0, count, body, (state, zeros))

  return jax.jit(many, donate_argnums=0, out_shardings=partition.replicated(mesh))


def make_predict(apply_fn, objective, mesh):
  """Returns predict(params, users [B], histories [B, T]) -> float32 scores [B, N + 1]."""
  def predict(params, users, histories):
    users, histories = partition.constrain_rows((users, histories), mesh)
    return objective.predict(apply_fn, params, users, histories)
  return predict


def _reorder(result):
  (loss, (weight, metrics)), grads = result
  return loss, weight, metrics, grads
