"""Optimizers from the config: the only importer of optax.

`config.optim` fields: name (adam, adamw, adagrad, sgd), lr, b1, b2, eps, momentum (sgd), warmup_*,
decay (constant, linear, cosine, rsqrt), final_lr_scale, clip_norm (None: off), weight_decay, and
`rules`: a tuple of (regex over parameter names, options), first full match wins, with the options
    freeze        True: the leaf neither moves nor owns optimizer slots
    lr_scale      multiplies the learning rate
    weight_decay  replaces the default
    project       "ball", "sphere": after every update, rows are scaled to a norm of at most or
                  exactly 1
    average       the leaf is a running average: whatever the optimizer, it moves by this share of
                  its gradient, which is its distance from what it follows
`adam` adds weight decay to the gradient (L2, as the survey's Caser), `adamw` to the update.
`sparse_rows` is for recjax/sparse.py.
"""

import jax
import jax.numpy as jnp
import optax

from recjax import errors
from recjax import spec
from recjax import trees

OPTIONS = {"freeze": False, "lr_scale": 1.0, "weight_decay": None, "project": None,
           "average": None}
PROJECTIONS = {"ball": 1.0, "sphere": 0.0}  # norms below which rows are left alone


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


def plan(config, params, *, extra_rules=(), last_rules=(), defaults=()):
  """Returns {leaf name: options} by `extra_rules`, `config.rules`, `last_rules`, the defaults.

  `defaults` are rules, too: what they say of a leaf holds where the others say nothing of that
  option.
  """
  own = tuple((pattern, dict(options)) for pattern, options in config.rules)
  rules = (*extra_rules, *own, *last_rules)
  for pattern, options in rules:
    if unknown := set(options) - set(OPTIONS):
      raise errors.UserError(f"optim.rules: {pattern!r} sets unknown options {sorted(unknown)}; "
                             f"there are {sorted(OPTIONS)}")
    if (kind := options.get("project")) is not None:
      errors.choose(PROJECTIONS, kind, f"optim.rules: project of {pattern!r}")
  matched, rest = trees.match(params, rules, what="optim.rules, transfer.freeze and mode:")
  usual, _ = trees.match(params, defaults, what="the model's leaf_options:")
  start = lambda leaf: {**OPTIONS, **(usual[leaf][0] if leaf in usual else {})}
  chosen = {leaf: {**start(leaf), **options} for leaf, (options, _) in matched.items()}
  return {**chosen, **{leaf: start(leaf) for leaf in rest}}


def make(config, params, *, schedule, plan):
  """Returns the optax transformation of `config.optim`.

  Frozen leaves get a zero update and no slots (`optax.masked` would let their gradient through);
  the clipped norm is that of the trained leaves alone, without running averages.
  """
  labels = trees.map_names(lambda leaf, _: _label(plan[leaf], config), params)
  groups = sorted(set(trees.flatten(labels).values()))
  def group(label):
    if label == "frozen":
      return optax.set_to_zero()
    if label.startswith("average"):
      return optax.scale(-float(label.split(",")[1]))
    lr_scale, decay, *project = label.split(",")
    lr_scale = float(lr_scale)
    return optax.chain(*_update_rule(config, float(decay)),
                       optax.scale_by_learning_rate(lambda step: lr_scale * schedule(step)),
                       *map(_project, project))
  per_group = optax.partition({label: group(label) for label in groups}, labels)
  if config.clip_norm is None:
    return per_group
  gate = {label: optax.set_to_zero() if label == "frozen" else optax.identity() for label in groups}
  clip = optax.clip_by_global_norm(config.clip_norm)
  if any(label.startswith("average") for label in groups):
    clip = optax.masked(clip, jax.tree.map(lambda label: not label.startswith("average"), labels))
  return optax.chain(optax.partition(gate, labels), clip, per_group)


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
  if options["average"] is not None:
    return f"average,{options['average']}"
  decay = options["weight_decay"]
  project = f",{options['project']}" if options["project"] else ""
  return f"{options['lr_scale']},{config.weight_decay if decay is None else decay}{project}"


def _project(kind):
  """Returns the transformation that ends an update where the rows' norms are as they should be."""
  least = PROJECTIONS[kind]
  def move(update, leaf):
    norm = jnp.linalg.norm(leaf + update, axis=-1, keepdims=True)
    return (leaf + update) / jnp.maximum(norm, max(least, 1e-12)) - leaf
  return optax.stateless(lambda updates, params: jax.tree.map(move, updates, params))


def _update_rule(config, decay):
  adam = lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  l2 = [optax.add_decayed_weights(decay)] if decay else []
  return errors.choose({
    "adam": lambda: [*l2, adam()],
    "adamw": lambda: [adam(), *l2],
    # From 0, as Duchi et al. 2011 have it: beside optax's 0.1 gradients of a mean vanish.
    "adagrad": lambda: [*l2, optax.scale_by_rss(initial_accumulator_value=0.0, eps=config.eps)],
    "sgd": lambda: [*l2, optax.trace(decay=config.momentum)] if config.momentum else l2,
  }, config.name, "optim.name")()
