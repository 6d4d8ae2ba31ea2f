"""Freed memory is kept or given back, unless somebody has chosen; compiling and peaks of memory."""

import os
import subprocess
import sys

import pytest

from recjax import memory

# Allocates and frees 48 MB four times, in the first thread and in another one, which has an arena of
# its own, and tells how many pages the kernel has had to clear for each.
FAULTS = """
import resource, threading
from recjax import memory
kept, faults = memory.keep(), []
def clear():
  bytearray(48 << 20)  # zeroed: every page is touched
def count():
  beside = bytearray(32 << 20)  # the arena has to grow by a piece for what does not fit beside it
  clear()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(4):
    clear()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
count()
thread = threading.Thread(target=count)
thread.start()
thread.join()
print(kept, *faults)
"""

# Allocates and frees 64 MB and tells how many of them stay before and after `give_back`.
STAYS = """
from recjax import memory
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
memory.keep()
before = held()
bytearray(64 << 20)
after = held()
memory.give_back()
print(after - before, held() - before)
"""

# Tells the most MB that it had, those of a process that it then starts, and its own with 128 more.
PEAKS = """
import subprocess, sys
from recjax import memory
peak = lambda: int(1024 * memory.peak_gib())
if sys.argv[1:]:
  print(peak())
else:
  first, kept = peak(), bytearray(128 << 20)
  started = subprocess.check_output([sys.executable, "-c", sys.orig_argv[2], "child"], text=True)
  print(first, started, peak())
"""

# Compiles a program of so many loops on two cores, with or without `few_waiting`; tells by how many
# MB that raised the peak, and the priorities of this process's threads.
COMPILES = """
import contextlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from recjax import memory
loops, few = int(os.environ["LOOPS"]), os.environ["FEW"] == "1"
def program(x):
  for n in range(loops):
    x = jnp.sin(x * n).sum(0, keepdims=True) + jnp.cos(x) * n
  return x
lowered = jax.jit(program).lower(jnp.ones((64, 64)))
before = memory.peak_gib()
with memory.few_waiting() if few else contextlib.nullcontext():
  lowered.compile()
threads = os.listdir("/proc/self/task")
print(int(1024 * (memory.peak_gib() - before)),
      *{os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in threads})
"""


def _run(script=FAULTS, **environment):
  inherited = {name: value for name, value in os.environ.items()
               if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
  return subprocess.run([sys.executable, "-c", script], env=inherited | environment, check=True,
                        capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has such options")
def test_freed_memory_is_used_again_without_the_kernel_until_it_is_given_back():
  kept, *faults = _run()
  if kept == "False":
    pytest.skip("the C library is not glibc")
  left_alone, *more = _run(MALLOC_ARENA_MAX="8")
  assert left_alone == "False"
  assert max(map(int, faults)) < 100 and min(map(int, more)) > 1000
  stays, given_back = _run(STAYS)
  assert int(stays) > 60 and int(given_back) < 10


def test_a_peak_is_that_of_a_program_alone():
  first, started, last = map(int, _run(PEAKS))
  assert 128 <= last - first < 140 and 0 < started < first + 10


def test_a_peak_is_told_where_the_system_says_less(monkeypatch, tmp_path):
  told = memory.peak_gib()
  (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 12 kB\n")
  for status in (tmp_path / "status", tmp_path / "none"):
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory.peak_gib() >= 0.99 * told > 0


def _compiles(loops, *, few=True):
  grown, *priorities = map(int, _run(COMPILES, LOOPS=str(loops), FEW=str(int(few)),
                                     JAX_ENABLE_COMPILATION_CACHE="false", XLA_FLAGS=""))
  return grown, sorted(priorities)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads of Linux")
def test_one_thread_lets_others_compile_first():
  own = os.getpriority(os.PRIO_PROCESS, 0)
  assert _compiles(200)[1] == [own, own + 10]
  assert _compiles(100, few=False)[1] == [own]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads of Linux")
def test_few_loops_wait_to_be_compiled():
  few, many = (_compiles(300, few=few)[0] for few in (True, False))
  assert few < 0.7 * many, (few, many)
