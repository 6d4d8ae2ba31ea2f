"""A training run of the hand-tuned PyTorch that others evaluate: see launch/bench/quality.py.

Every line on stdin is "STEPS FILE": takes the steps, writes parameters (by recjax's names and
shapes) and the optimizer's moments to FILE, prints {"train_s", "loss"}. Starts from --state.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np
import torch

from launch.bench import serving, workload
from launch.bench.contestants import tuned_torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def main():
  args = serving.parse(__doc__, options="", state="", taken=0)
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  # What a resumed run draws is not what it would have drawn, but not what it drew before either.
  trainer = tuned_torch.Trainer(args.task, workload.load(args.data_dir), serving.size(args),
                                args.seed + args.taken, tuned_torch.parse_options(args.options))
  if args.state:
    restore(trainer, args.state, args.taken)
  trainer.model.train()
  warm = tuned_torch.parse_options(args.options)["compile"]
  for line in sys.stdin:
    steps, path = line.split(maxsplit=1)
    if warm:  # compiling is no training
      trainer.compile()
      warm = False
    start, losses = time.perf_counter(), []
    for _ in range(int(steps)):
      losses.append(trainer.step()[0])
    train_s = time.perf_counter() - start
    args.taken += int(steps)
    save(trainer, path.strip())
    print(json.dumps({"train_s": train_s, "loss": float(np.mean(losses))}), file=out, flush=True)


def save(trainer, path):
  """Writes the arrays of a run, under a temporary name first."""
  arrays = trainer.model.export()
  for name, leaf in trainer.model.leaves.items():
    for moment in MOMENTS:
      value = trainer.optimizer.state[leaf][moment].cpu().numpy()
      arrays[f"{moment}/{name}"] = value
  draft = pathlib.Path(f"{path}.tmp.npz")
  np.savez(draft, **arrays)
  os.replace(draft, path)


def restore(trainer, path, taken):
  """Puts the arrays of `save` back, after `taken` steps."""
  with np.load(path, allow_pickle=False) as arrays, torch.no_grad():
    for name, leaf in trainer.model.leaves.items():
      value = arrays[name]
      leaf.copy_(torch.from_numpy(value.T if name.endswith("kernel") else value))
      trainer.optimizer.state[leaf] = {
        "step": torch.tensor(float(taken)),
        **{moment: torch.from_numpy(arrays[f"{moment}/{name}"]) for moment in MOMENTS}}


if __name__ == "__main__":
  main()
