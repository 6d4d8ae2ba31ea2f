"""Measures how many FLOPs a second this machine's matrix products reach, in jax or in torch.

    python -m launch.bench.peak [--large=2048]

Prints one JSON line {"library", "float32": {"M x K x N": FLOP/s}, "bfloat16": {...}} of whichever
library can be imported, jax first; the best of several repetitions, since only noise makes one
slower. Products that take seconds, as torch's of bfloat16 where the CPU has none, are taken once.
"""

import argparse
import json
import subprocess
import time

from launch.bench import processes, workload

NUM_ITEMS = 3706
ONCE_S = 3


def ask(python):
  """Returns what this program prints under the interpreter `python`, or None if it fails."""
  done = subprocess.run([python, "-m", "launch.bench.peak"], cwd=processes.ROOT, check=False,
                        capture_output=True, text=True)
  return None if done.returncode else json.loads(done.stdout.strip().splitlines()[-1])


def shapes(size, large):
  """Returns the (M, K, N) of the model's products on 32 users, and a large square one."""
  tokens = 32 * size.max_len
  return ((tokens, size.width, 3 * size.width), (tokens, size.width, size.hidden),
          (tokens, size.hidden, size.width), (480, size.width, NUM_ITEMS + 1),
          (large, large, large))


def measure(product, make, wait, shape, *, repetitions=7, seconds=0.15):
  """Returns the best FLOP/s of `product` on arrays from make(rows, columns); wait(x) ends it."""
  m, k, n = shape
  a, b = make(m, k), make(k, n)
  for _ in range(2):  # The first is compiled.
    start = time.perf_counter()
    wait(product(a, b))
    best = time.perf_counter() - start
    if best > ONCE_S:
      return 2 * m * k * n / best
  count = max(int(seconds / max(best, 1e-6)), 1)
  for _ in range(repetitions):
    start = time.perf_counter()
    for _ in range(count):
      found = product(a, b)
    wait(found)
    best = min(best, (time.perf_counter() - start) / count)
  return 2 * m * k * n / best


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--large", type=int, default=2048)
  large = parser.parse_args().large
  library, sides = _jax() or _torch()
  found = {"library": library}
  for dtype, (product, make, wait) in sides.items():
    found[dtype] = {" x ".join(map(str, shape)): measure(product, make, wait, shape)
                    for shape in shapes(workload.Size(), large)}
  print(json.dumps(found))


def _jax():
  try:
    import jax
  except ImportError:
    return None
  import jax.numpy as jnp
  product = jax.jit(jnp.matmul)
  def side(dtype):
    make = lambda rows, columns: jax.random.normal(jax.random.key(0), (rows, columns)).astype(dtype)
    return product, make, jax.block_until_ready
  return "jax " + jax.__version__, {name: side(name) for name in ("float32", "bfloat16")}


def _torch():
  import torch
  on = "cuda" if torch.cuda.is_available() else "cpu"
  def wait(x):
    if on == "cuda":
      torch.cuda.synchronize()
  def side(dtype):
    make = lambda rows, columns: torch.randn(rows, columns, device=on).to(dtype)
    return torch.matmul, make, wait
  return "torch " + torch.__version__, {"float32": side(torch.float32),
                                        "bfloat16": side(torch.bfloat16)}


if __name__ == "__main__":
  main()
