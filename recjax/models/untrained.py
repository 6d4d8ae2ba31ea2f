"""What models that are computed from the data have in common: nothing of theirs is trained."""

import jax.numpy as jnp


class Untrained:
  """A model whose parameters are its `fit(data)`; the contract of `recjax.models` otherwise."""
  fields = ()
  extra_tokens = 0
  objectives = ("untrained",)
  choices = {"dtype": ("float32",)}

  def example_inputs(self):
    """Returns inputs of `init`, as small as can be."""
    return {"items": jnp.zeros((1, 1), jnp.int32), "users": jnp.zeros(1, jnp.int32)}

  def transfer_rules(self, mode):
    """Returns the rules of mode "none", the only one: nothing is trained that could cross."""
    return {"none": ()}.get(mode)
