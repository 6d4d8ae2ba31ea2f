"""What devices along the model axis tell each other, each of which holds some rows of a table.

Inside `partition.over_devices` a table that is split by rows is seen as this device's share of it,
and everything else, the batch among it, is the same on all devices of the axis. Between `enter` and
`leave` they compute apart, of their own rows; what crosses has the size of positions, never that of
the table. These are the conjugate operators f and g of Shoeybi et al. 2019 (Megatron-LM, Section
3): where one adds up forward, the other does backward.
"""

import functools

import jax
import jax.numpy as jnp

AXIS = "model"  # of the mesh


@jax.custom_vjp
def enter(x):
  """Returns x, of which devices go on to make parts of a result: their gradients are added up."""
  return x


enter.defvjp(lambda x: (x, None), lambda _, pull: (jax.lax.psum(pull, AXIS),))


@jax.custom_vjp
def leave(part):
  """Returns the sum of all devices' parts; each part's gradient is that of the sum."""
  return jax.lax.psum(part, AXIS)


leave.defvjp(lambda part: (leave(part), None), lambda _, pull: (pull,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def join(part, axis):
  """Returns all devices' parts, one after the other along `axis` (from 0 on)."""
  return jax.lax.all_gather(part, AXIS, axis=axis, tiled=True)


def _own_part(axis, size, pull):
  first = jax.lax.axis_index(AXIS) * size
  return (jax.lax.dynamic_slice_in_dim(pull, first, size, axis),)


join.defvjp(lambda part, axis: (join(part, axis), part.shape[axis]), _own_part)


def first_row(held):
  """Returns the number of the first of the `held` rows that this device has."""
  return jax.lax.axis_index(AXIS) * held


def look_up(table, ids):
  """Returns the rows of `ids`, [..., W]: of the devices one has the row, the others add zeros.

  Args:
    table: this device's share of the rows, [R, W].
    ids: int32 [...].
  """
  place, here = own(ids, len(table))
  found = jnp.take(table, place, axis=0)
  return leave(jnp.where(here[..., None], found, jnp.zeros((), found.dtype)))


def own(ids, held):
  """Returns (places of `ids` among the `held` rows of this device, whether they are there).

  Places of ids that are elsewhere are some place or other.
  """
  place = ids - first_row(held)
  return jnp.clip(place, 0, held - 1), (place >= 0) & (place < held)
