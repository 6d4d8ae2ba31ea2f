"""The memory of a process: how much it took, and that what it has freed stays for the next step."""

import ctypes
import os
import pathlib
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of <malloc.h>
HEAP = 64 << 20  # bytes, of the pieces that a thread's arena grows by
STATUS = pathlib.Path("/proc/self/status")  # of Linux
OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # environment variables of who chooses himself


def keep():
  """Has the C library keep freed memory; returns whether it does.

  On a CPU every step of a compiled program allocates its temporary buffers and frees them. glibc
  maps large ones and unmaps them again, so that the kernel clears every page of every step anew: up
  to 40 % of the time of a run here, launch/bench/README.md has the figures.

  Must be called before threads are started. Where the environment says something about malloc, and
  where the C library is not glibc, nothing is done.
  """
  library = _glibc()
  # -1 switches trimming off, but a thread's arena unmaps a piece that has become free as a whole all
  # the same, unless that much is to stay. Arenas stay as many as there are: compiling leaves
  # thousands of holes, and threads that look through the same ones wait for each other.
  return library is not None and all(
    library.mallopt(option, value) == 1
    for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, HEAP)))


def give_back():
  """Gives what is free back to the system, with the exceptions of `keep`.

  Compiling a step leaves half a gigabyte that no step asks for again.
  """
  library = _glibc()
  if library is not None:
    library.malloc_trim(ctypes.c_size_t(0))


def peak_gib():
  """Returns the most memory that this program has had resident, in GiB.

  What getrusage says is, on Linux, at least that of the program that started this one.
  """
  if STATUS.exists():
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20
  import resource  # Unix only, and not needed where the above is there.
  unit = 1 if sys.platform == "darwin" else 1024  # bytes
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _glibc():
  """Returns the C library, or None where its ways are not ours to change."""
  if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
    return None
  library = ctypes.CDLL(None)
  return library if hasattr(library, "gnu_get_libc_version") else None
