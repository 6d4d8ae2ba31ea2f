"""Who is compared: module, environment, tasks, and what to know of each."""

import dataclasses

TRANSFORMERS = ("bert4rec", "sasrec", "sasrec_bce")


@dataclasses.dataclass(frozen=True)
class Contestant:
  """One row of the comparison."""
  module: str  # in launch/bench/contestants
  env: str  # folder of its environment; "" is recjax's own
  tasks: tuple
  what: str  # said below the table
  options: tuple = ()


CONTESTANTS = {
  "recjax": Contestant(
    "recjax_step", "", (*TRANSFORMERS, "caser"), "recjax as launch/bench/settings.py sets it up",
    ("--path=fast",)),
  "recjax_bf16": Contestant(
    "recjax_step", "", TRANSFORMERS, "the same in bfloat16 with float32 parameters",
    ("--path=fast", "--dtype=bfloat16")),
  "recjax_plain": Contestant(
    "recjax_step", "", TRANSFORMERS, "without micro-batches, nothing cut", ("--path=plain",)),
  "plain_torch": Contestant(
    "plain_torch", "torch", (*TRANSFORMERS, "caser"),
    "as BERT4Rec is usually written in PyTorch: eager, float32, logits at all positions"),
  "tuned_torch": Contestant(
    "tuned_torch", "torch", TRANSFORMERS,
    "PyTorch tuned by hand: logits at labels, fused attention and optimizer, float32 or bfloat16, "
    "compiled or not, the options that launch/bench/tune.py found quickest"),
  "tuned_torch_f32": Contestant(
    "tuned_torch", "torch", TRANSFORMERS, "the quickest of its options in float32"),
  "tuned_torch_cut": Contestant(
    "tuned_torch", "torch", TRANSFORMERS,
    "tuned_torch given recjax's idea as well: users sorted by length, padding cut"),
  "recbole": Contestant(
    "recbole", "recbole", ("bert4rec", "sasrec"),
    "RecBole 1.2.1, one sequence a user; its SASRec has one label a sequence, not one an item"),
  "rectools": Contestant(
    "rectools", "rectools", TRANSFORMERS,
    "RecTools 0.19, its own `fit`; logits at all positions"),
}


def command(name, task, *, python, data_dir, options=()):
  """Returns the command line of a contestant."""
  one = CONTESTANTS[name]
  return [python, "-m", f"launch.bench.contestants.{one.module}", f"--task={task}",
          f"--data_dir={data_dir}", *one.options, *options]
