"""Simulated devices, the folder of real data, and the `slow` marker, for every test."""

import os
import pathlib
import sys
import tempfile

# Before jax starts: four CPU devices, so that one machine tests what several devices do.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
  parser.addoption("--optimized", action="store_true", help="compile everything as users do")


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
  # Programs of tests are tiny, their time is compilation. Commands that tests start inherit this.
  if not config.getoption("--optimized"):
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
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


@pytest.fixture
def compiled_for_users():
  """For claims that hold of the very program that users run, such as equal bits."""
  import jax  # Not at the top: many files need no jax.
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
