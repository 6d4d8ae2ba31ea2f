"""The compiled steps. They know neither the model nor the objective by name."""

import functools

import jax
import jax.numpy as jnp

from recjax import catalog
from recjax import loops
from recjax import optim
from recjax import partition
from recjax import trees


def make_apply(model, tables, auxiliary=None):
  """Returns apply_fn(params, inputs, rng, **where) -> scores, as objectives call a model.

  `inputs` are the model's arguments by name, [B, ...] each; `rng` is the key of dropout, None
  without; `where` says at which positions the model is to score and what is read of the scores.
  With `auxiliary=NAME` it is a module beside the model that answers, given the item table.

  With a key, that is in training, items that are "item/barred" do not compete, whatever the model:
  nothing that is read of its scores has a gradient of theirs.

  Args:
    model: of `recjax.models`.
    tables: {field: int32 [tokens, slots]} on the devices, and what else the model looks up.
    auxiliary: `auxiliary.Auxiliary`, or None.
  """
  # A head of labels scores no items.
  barred = None if getattr(model, "labels", 0) else tables.get("item/barred")

  def apply_fn(params, inputs, rng, **where):
    rngs = None if rng is None else {"dropout": rng}
    if name := where.pop("auxiliary", None):
      return auxiliary.modules[name].apply(
        {"params": params[name]}, auxiliary.item_rows(params), tables, **inputs, **where,
        train=rng is not None, rngs=rngs)
    if rng is not None and barred is not None and {"candidates", "readout"} & set(where):
      where["candidates"], where["readout"] = catalog.barring(
        barred, where.get("candidates"), where.get("readout"))
    scores, _ = model.apply({"params": params}, **inputs, **where, tables=tables,
                            train=rng is not None, rngs=rngs)
    return scores
  return apply_fn


def make_train_steps(*, apply_fn, objective, tx, sample, mesh, trainable, micro_batches, rooms,
                     filled=None, rows=None, split=None):
  """Returns the compiled `(state, resident, count) -> (state, sums)` that takes `count` steps.

  The state is donated. `count` is traced: any number of steps runs the same program, and running
  one by one gives the same bits. Metrics are summed on the device and fetched when they are logged.

  Args:
    apply_fn: see `make_apply`.
    objective: of `recjax.objectives`.
    tx: optimizer of `recjax.optim`.
    sample: of `recjax.data.batches`.
    mesh: of `recjax.partition`; rows of a batch are split over its data axis.
    trainable: {leaf name: bool}; the backward pass leaves frozen leaves out.
    micro_batches: into how many parts the batch is cut, a multiple of the devices. Each of these
      differentiates its parts one after the other; gradients of the sum are added up, so that the
      result is that of the whole batch, and the same on any number of devices.
    rooms: {columns: room for labels in a part}. With several, rows are sorted by length and every
      part is cut to the fewest columns that hold it: padding costs as much as items do.
    filled: how many positions of a part hold something, at most; then the model computes these
      alone. Parts that need more lose their oldest ones.
    rows: `sparse.Rows`, where only rows of the batch's items are differentiated and updated.
    split: of `partition.split_rows`, tables that are split over the model axis.
  """
  split = split or {}

  def differentiate(params, inputs, rng, *, apply_fn, columns):
    if len(rooms) > 1:
      inputs = objective.trim(inputs, columns)
    if filled:
      inputs, lost = objective.fit(inputs, filled)
      apply_fn = functools.partial(apply_fn, room=filled)

    def loss_sum(params):
      params = trees.map_names(
        lambda leaf, x: x if trainable[leaf] else jax.lax.stop_gradient(x), params)
      loss, weight, metrics = objective.loss(
        apply_fn, params, inputs, shards=1, capacity=rooms[columns], rng=rng)
      return loss, (weight, metrics)

    (loss, (weight, metrics)), grads = jax.value_and_grad(loss_sum, has_aux=True)(params)
    if filled:
      metrics["dropped"] += lost
    return grads, {"loss": loss, "weight": weight, **metrics}

  def whole(*state):
    return apply_fn, *state, lambda *state: state

  def constrain(state):
    if not split:
      return state
    return jax.lax.with_sharding_constraint(state, partition.shardings(state, split, mesh))

  def update(params, opt_state, inputs, rng):
    narrow = whole if rows is None else rows.narrow
    apply, some, opt_state, inputs, widen = narrow(params, opt_state, inputs)
    # What was narrowed is whole on every device.
    specs = partition.specs(params, split) if split and some is params else None
    params = some
    branches = {columns: functools.partial(differentiate, apply_fn=apply, columns=columns)
                for columns in rooms}
    grads, sums = _accumulate(branches, params, inputs, rng, micro_batches, mesh, specs)
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums["weight"], 1), grads)
    changes, opt_state = tx.update(grads, opt_state, params)
    sums["grad_norm"] = optim.global_norm(grads)
    return *widen(optim.apply_updates(params, changes), opt_state), sums

  def one(state, resident):
    sample_rng, prepare_rng, dropout_rng = jax.random.split(state.rng, 3)
    now = lambda rng: jax.random.fold_in(rng, state.step)
    # The sampler folds in epoch and step itself: an epoch's order is one permutation for its steps.
    batch = partition.constrain_rows(sample(resident, sample_rng, state.step), mesh)
    inputs = objective.prepare(now(prepare_rng), batch, resident)
    rng = now(dropout_rng)
    params, opt_state, first = update(state.params, state.opt_state, inputs, rng)
    before = state.params
    for turn in range(1, objective.updates):
      inputs = objective.again(apply_fn, before, inputs, rng)
      rng, before = jax.random.fold_in(rng, turn), params
      params, opt_state, _ = update(params, opt_state, inputs, rng)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return constrain(state), {**first, **objective.counts(batch)}

  def many(state, resident, count):
    step = jax.jit(one)  # traced once, for the shapes and for the loop
    def body(_, carry):
      state, sums = step(carry[0], resident)
      return state, jax.tree.map(jnp.add, carry[1], sums)
    state, sums = jax.lax.fori_loop(0, count, body, (state, loops.zeros(step, state, resident)[1]))
    return constrain(state), sums

  everywhere = partition.replicated(mesh)
  return jax.jit(many, donate_argnums=0, out_shardings=(None, everywhere) if split else everywhere)


def make_predict(apply_fn, objective, mesh, split=None):
  """Returns predict(params, users [B], histories [B, T], ...) -> what `objective` predicts.

  That is float32 scores [B, N + 1], or what `readout`, if there is one, makes of `catalog.Scores`
  [B, 1]; or ratings. The further arrays are those that `objective.predict` asks for. Arrays that a
  readout needs are [B, ...] as well, and it is a `jax.tree_util.Partial` of them.
  """
  def ask(params, readout, *arrays):
    ask = objective.predict
    if readout is not None:
      ask = functools.partial(ask, readout=readout)
    return ask(apply_fn, params, *arrays)

  def predict(params, *arrays, readout=None):
    arrays = partition.constrain_rows(arrays, mesh)
    if not split:
      return ask(params, readout, *arrays)
    return partition.of_rows(ask, mesh, params=partition.specs(params, split))(
      params, readout, *arrays)
  return predict


def _accumulate(branches, params, inputs, rng, parts, mesh, specs=None):
  """Returns fn(params, part, rng) summed over equal parts of `inputs`, one after the other.

  `branches` is {columns: fn}; of several, each part takes that of the fewest columns that hold it.
  Every device takes its share of the parts, number by number, and sums are added up at the end.
  With `specs` of parameters that are split, it computes with its rows of them.
  """
  widths, fns = sorted(branches), [branches[columns] for columns in sorted(branches)]
  length = jnp.zeros(len(jax.tree.leaves(inputs)[0]), jnp.int32)
  if len(widths) > 1:
    seen = inputs["items"] > 0  # left-padded
    length = jnp.where(seen.any(1), seen.shape[1] - jnp.argmax(seen, 1), 0)
    order = jnp.argsort(length)
    length, inputs = length[order], jax.tree.map(lambda x: x[order], inputs)
  elif parts == 1 and specs is None:
    return fns[0](params, inputs, rng)
  fns = [jax.jit(fn) for fn in fns]  # traced once, for the shapes and for the loop
  devices = partition.data_devices(mesh)
  cut = lambda x: x.reshape(parts // devices, devices, x.shape[0] // parts, *x.shape[1:])

  def share(params, pieces, longest, rng):
    first = jax.lax.axis_index(partition.DATA_AXIS) if devices > 1 else 0
    def body(index, total, fn):
      piece = jax.tree.map(lambda x: x[index, 0], pieces)
      found = fn(params, piece, jax.random.fold_in(rng, index * devices + first))
      return jax.tree.map(jnp.add, total, found)
    total = loops.zeros(fns[0], params, jax.tree.map(lambda x: x[0, 0], pieces), rng)
    # A loop for each width, not a branch in one loop: XLA moves what does not depend on the part,
    # as weights that are converted, out of the former.
    begin = 0
    for width, fn in zip(widths, fns):
      end = len(longest) if fn is fns[-1] else jnp.searchsorted(longest[:, 0], width, side="right")
      total = jax.lax.fori_loop(begin, end, functools.partial(body, fn=fn), total)
      begin = end
    return total

  return partition.over_devices(share, mesh, split=(None, 1, 1, None), params=specs)(
    params, jax.tree.map(cut, inputs), cut(length).max(2), rng)
