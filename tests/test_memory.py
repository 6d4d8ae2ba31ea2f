"""Freed memory is kept, unless somebody else has chosen what malloc does."""

import os
import subprocess
import sys

import pytest

# Allocates and frees 64 MB four times and tells how many pages the kernel has had to clear.
FAULTS = """
import resource
from recjax import memory
kept = memory.keep()
def clear():
  bytearray(64 << 20)  # zeroed: every page is touched
clear()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  clear()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(**environment):
  inherited = {name: value for name, value in os.environ.items()
               if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
  out = subprocess.run([sys.executable, "-c", FAULTS], env=inherited | environment, check=True,
                       capture_output=True, text=True).stdout.split()
  return out[0] == "True", int(out[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has such options")
def test_freed_memory_is_used_again_without_the_kernel():
  kept, faults = _run()
  if not kept:
    pytest.skip("the C library is not glibc")
  left_alone, more = _run(MALLOC_ARENA_MAX="8")
  assert not left_alone
  assert faults < 100 and more > 10 * max(faults, 1)
