"""Everything that training changes, as one tree."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """The whole state of a run.

  Randomness is `fold_in(rng, step)`: batch n is a function of (seed, n), nothing else is saved,
  and a resumed run draws what the uninterrupted one would have drawn.
  """
  step: jax.Array  # int32, optimizer steps taken
  params: dict
  opt_state: tuple
  rng: jax.Array  # key of the run, never advanced


def create(params, tx, seed):
  """Returns the state of step 0."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params),
                    rng=jax.random.key(seed))
