"""Simulated devices, the folder of real data, and the `slow` marker, for every test."""

import os
import pathlib
import subprocess
import sys
import tempfile

# Before jax starts: four CPU devices, so that one machine tests what several devices do.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


# The emitters of loops before MLIR's: half the time to compile.
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def _xla_knows(flag):
  """Returns whether this XLA has a flag; it ends the process where it does not."""
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  return subprocess.run(command, env={**os.environ, "XLA_FLAGS": flag}, capture_output=True,
                        check=False).returncode == 0


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
  parser.addoption("--optimized", action="store_true", help="compile everything as users do")


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
  config.addinivalue_line("markers", "optimized: holds of programs as users compile them")
  # Programs of tests are tiny, their time is compilation. Processes and commands of tests inherit
  # this.
  if not config.getoption("--optimized") and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if _xla_knows(OLD_EMITTERS):
      os.environ["XLA_FLAGS"] += " " + OLD_EMITTERS
  # Processes of one run, and what they start, compile a program once for all of them.
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="recjax-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ.update(JAX_COMPILATION_CACHE_DIR=folder.name,
                      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")


def pytest_collection_modifyitems(config, items):
  if not config.getoption("--slow"):
    for item in items:
      if "slow" in item.keywords:
        item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def raw_dir():
  """The folder that holds `ml-1m/` and the other raw data sets; skips where there is none."""
  folder = pathlib.Path(os.environ.get("RECJAX_RAW_DIR", ROOT.parent / "shared" / "data"))
  if not (folder / "ml-1m").is_dir():
    pytest.skip(f"real data not found in {folder}; set RECJAX_RAW_DIR")
  return folder


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
  """Drops what a file compiled: garbage collection slows down with thousands of programs."""
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
  """Runs a test that is marked `optimized` in a process that compiles as users do."""
  if "optimized" not in pyfuncitem.keywords or pyfuncitem.config.getoption("--optimized"):
    return None
  env = {name: value for name, value in os.environ.items()
         if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "PYTEST_ADDOPTS")}
  env["XLA_FLAGS"] = env["XLA_FLAGS"].replace(OLD_EMITTERS, "")
  command = [sys.executable, "-m", "pytest", "-q", "--optimized", "--slow", pyfuncitem.nodeid]
  done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=False)
  assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
  return True
