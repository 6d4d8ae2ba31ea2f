"""The memory of a process: the most it had, what it has freed, and what compiling asks for."""

import contextlib
import ctypes
import os
import pathlib
import sys
import threading

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of <malloc.h>
HEAP = 64 << 20  # bytes, of the pieces that a thread's arena grows by
STATUS, THREADS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/task")  # of Linux
YIELDS = 10  # by which a thread is nicer than its process: a tenth of the share of another one
LOOK_S = 0.05  # between two looks at what threads do
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


@contextlib.contextmanager
def few_waiting():
  """While XLA compiles a program for a CPU in here, few of its loops wait for that.

  One of XLA's threads emits loops, each in an MLIR context of its own, and as many as there are cores
  compile them: it is quicker than two, and hundreds of contexts take more memory than a step. Here
  it lets the others go first from when they begin, and goes on doing so: it only ever compiles, and
  to undo it takes privileges. It is the one that is busy before them, so that no other thread of
  jax may be; those of Python may. Where threads are not as on Linux, nothing is done.
  """
  if not (THREADS / str(threading.get_native_id())).exists():
    yield
    return
  begin, over = _thread_seconds(), threading.Event()
  def watch():
    emitter = None
    while not over.wait(LOOK_S):
      mine = {thread.native_id for thread in threading.enumerate()}
      busy = [thread for thread, seconds in _thread_seconds().items()
              if thread not in mine and seconds - begin.get(thread, 0) > LOOK_S / 2]
      if len(busy) > 1:
        if emitter:
          with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, emitter, os.getpriority(os.PRIO_PROCESS, 0) + YIELDS)
        return  # or all were busy at once: a small program
      emitter = busy[0] if busy else None
  watcher = threading.Thread(target=watch, name="few_waiting", daemon=True)
  watcher.start()
  try:
    yield
  finally:
    over.set()
    watcher.join()


def _thread_seconds():
  """Returns {thread: seconds that it has run}, without those that convert a program for XLA."""
  tick, found = os.sysconf("SC_CLK_TCK"), {}
  for folder in THREADS.iterdir():
    with contextlib.suppress(OSError):  # it has ended
      _, _, rest = (folder / "stat").read_text().partition("(")
      name, _, rest = rest.rpartition(")")
      if not name.startswith("llvm-worker"):
        found[int(folder.name)] = sum(map(int, rest.split()[11:13])) / tick
  return found


def peak_gib():
  """Returns the most memory that this program has had resident, in GiB.

  What getrusage says is, on Linux, at least that of the program that started this one: it is asked
  where the system does not tell more.
  """
  lines = STATUS.read_text().splitlines() if STATUS.exists() else []
  if peaks := [line.split()[1] for line in lines if line.startswith("VmHWM:")]:
    return int(peaks[0]) / 2**20
  import resource  # Unix only, and not always needed.
  unit = 1 if sys.platform == "darwin" else 1024  # bytes
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _glibc():
  """Returns the C library, or None where its ways are not ours to change."""
  if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
    return None
  library = ctypes.CDLL(None)
  return library if hasattr(library, "gnu_get_libc_version") else None
