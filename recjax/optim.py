"""Optimizers from the config: the only importer of optax.

`config.optim` fields: name (adam, adamw, adagrad, sgd), lr, b1, b2, eps, momentum (sgd), warmup_*,
decay (constant, linear, cosine, rsqrt), final_lr_scale, clip_norm (None: off), weight_decay, and
`rules`: a tuple of (regex over parameter names, options), first full match wins, with the options
    freeze        True: the leaf neither moves nor owns optimizer slots
    lr_scale      multiplies the learning rate
    weight_decay  replaces the default
`adam` adds weight decay to the gradient (L2, as the survey's Caser), `adamw` to the update.
`sparse_rows` is for recjax/sparse.py.
"""

import jax
import jax.numpy as jnp
import optax

from recjax import errors
from recjax import spec
from recjax import trees

OPTIONS = {"freeze": False, "lr_scale": 1.0, "weight_decay": None}


def make_schedule(config, *, total_steps, **duration):
  """Returns the learning rate as a function of the step.

  Args:
    config: `config.optim`.
    total_steps: length of the run.
    **duration: `batch_size` and `examples`, for warm-up given in epochs or examples.
  """
  warmup = spec.steps(config, "warmup", total=total_steps, default=0, **duration)
  peak, last = config.lr, config.lr * config.final_lr_scale
  rest = max(total_steps - warmup, 1)
  shapes = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, last, rest),
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_lr_scale),
    "rsqrt": lambda: lambda step: jnp.maximum(  # join_schedules asks for steps before 0, too
      last, peak * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5),
  }
  main = errors.choose(shapes, config.decay, "optim.decay")()
  if not warmup:
    return main
  ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([ramp, main], [warmup])


def plan(config, params, *, extra_rules=(), last_rules=()):
  """Returns {leaf name: options} by `extra_rules`, `config.rules`, `last_rules`, the defaults."""
  own = tuple((pattern, dict(options)) for pattern, options in config.rules)
  rules = (*extra_rules, *own, *last_rules)
  for pattern, options in rules:
    if unknown := set(options) - set(OPTIONS):
      raise errors.UserError(f"optim.rules: {pattern!r} sets unknown options {sorted(unknown)}; "
                             f"there are {sorted(OPTIONS)}")
  matched, rest = trees.match(params, rules, what="optim.rules, transfer.freeze and mode:")
  chosen = {leaf: {**OPTIONS, **options} for leaf, (options, _) in matched.items()}
  return {**chosen, **{leaf: dict(OPTIONS) for leaf in rest}}


def make(config, params, *, schedule, plan):
  """Returns the optax transformation of `config.optim`.

  Frozen leaves get a zero update and no slots (`optax.masked` would let their gradient through);
  the clipped norm is that of the trained leaves alone.
  """
  labels = trees.map_names(lambda leaf, _: _label(plan[leaf], config), params)
  groups = sorted(set(trees.flatten(labels).values()))
  def group(label):
    if label == "frozen":
      return optax.set_to_zero()
    lr_scale, decay = map(float, label.split(","))
    return optax.chain(*_update_rule(config, decay),
                       optax.scale_by_learning_rate(lambda step: lr_scale * schedule(step)))
  per_group = optax.partition({label: group(label) for label in groups}, labels)
  if config.clip_norm is None:
    return per_group
  gate = {label: optax.set_to_zero() if label == "frozen" else optax.identity() for label in groups}
  return optax.chain(optax.partition(gate, labels), optax.clip_by_global_norm(config.clip_norm),
                     per_group)


def none():
  """Returns the transformation that changes nothing; it keeps one zero, since a checkpoint cannot
  hold an empty tree.
  """
  return optax.GradientTransformation(
    lambda params: jnp.zeros((), jnp.int32),
    lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state))


def apply_updates(params, updates):
  """Returns params + updates."""
  return optax.apply_updates(params, updates)


def global_norm(tree):
  """Returns the L2 norm of all leaves together."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _label(options, config):
  if options["freeze"]:
    return "frozen"
  decay = options["weight_decay"]
  return f"{options['lr_scale']},{config.weight_decay if decay is None else decay}"


def _update_rule(config, decay):
  adam = lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  l2 = [optax.add_decayed_weights(decay)] if decay else []
  return errors.choose({
    "adam": lambda: [*l2, adam()],
    "adamw": lambda: [adam(), *l2],
    "adagrad": lambda: [*l2, optax.scale_by_rss(initial_accumulator_value=0.1, eps=config.eps)],
    "sgd": lambda: [*l2, optax.trace(decay=config.momentum)] if config.momentum else l2,
  }, config.name, "optim.name")()
