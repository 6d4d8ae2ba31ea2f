"""recjax's own training step, made as recjax.train makes it: sampling, masking and all."""

import jax
import numpy as np

from launch.bench import serving, settings
from recjax import experiment, partition
from recjax import setting as setting_lib

AT_ONCE = {"caser": 20}  # steps of a millisecond are timed together


def main():
  args = serving.parse(__doc__, path="fast", dtype="float32", set="")
  fields = dict(_field(text) for text in args.set.split() if text)
  config = settings.get_config(args.task, path=args.path, data_dir=args.data_dir,
                               size=serving.size(args), dtype=args.dtype, **fields)
  session = serving.Session(
    args, versions={"jax": jax.__version__}, precision=args.dtype,
    settings=f"micro_batch={config.micro_batch} micro_lengths={tuple(config.micro_lengths)} "
             f"num_devices={config.num_devices}")
  take, extra = make(config)
  at_once = AT_ONCE.get(args.task, 1)
  while session.wanted():
    sums = take(at_once)
    # A window's extra columns hold targets, not inputs.
    tokens = sums["tokens"] - extra * sums["examples"]
    session.took(loss=sums["loss"] / sums["weight"], users=sums["examples"], tokens=tokens,
                 steps=at_once)


def make(config):
  """Returns (take, columns of a window beyond the inputs); take(n) takes n steps, returns sums."""
  setting, state, resident, compiled = build(config)

  def take(count):
    nonlocal state
    state, sums = compiled(state, resident, np.int32(count))
    return jax.device_get(sums)
  return take, setting.exp.objective.extra_columns


def build(config):
  """Returns (setting, state, resident data, the compiled steps of these)."""
  partition.initialize(config.num_devices)
  setting = setting_lib.set_up(experiment.build(config))
  params = setting.init_params(config.seed)
  tx, _, trainable = setting.make_optimizer(config, params)
  steps = setting.make_steps(tx, trainable)
  state = setting.exp.create_state(params, tx, config.seed)
  del params  # the state has its own
  resident, _ = setting.feed.at(0)
  return (setting, state, resident,
          partition.compile_steps(steps.lower(state, resident, np.int32(1))))


def _field(text):
  """Returns (name, value) of "name=value", the value a number, a tuple of them, or text."""
  name, _, value = text.partition("=")
  number = lambda x: int(x) if x.lstrip("-").isdigit() else (
    None if x == "None" else {"true": True, "false": False}.get(x, x))
  if value.startswith("("):
    return name, tuple(number(part) for part in value.strip("()").split(",") if part)
  return name, number(value)


if __name__ == "__main__":
  main()
