"""The mesh, placement and the termination signal."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import errors
from recjax import partition


def test_the_mesh_has_the_devices_asked_for():
  assert partition.make_mesh().devices.size == jax.device_count() == 4
  assert partition.make_mesh(2).devices.ravel().tolist() == jax.devices()[:2]
  with pytest.raises(errors.UserError, match="asks for 5 devices, this machine has 4"):
    partition.make_mesh(5)


def test_rows_are_split_and_the_rest_is_whole():
  mesh = partition.make_mesh(4)
  x = np.arange(24).reshape(8, 3)
  rows = partition.put({"x": x}, partition.by_rows(mesh))["x"]
  whole = partition.put(x, partition.replicated(mesh))
  np.testing.assert_array_equal(rows, x)
  np.testing.assert_array_equal(whole, x)
  assert [s.data.shape for s in rows.addressable_shards] == [(2, 3)] * 4
  assert [s.data.shape for s in whole.addressable_shards] == [(8, 3)] * 4
  np.testing.assert_array_equal(rows.addressable_shards[1].data, x[2:4])


def test_constraint_inside_jit():
  mesh = partition.make_mesh(4)
  out = jax.jit(lambda x: partition.constrain_rows({"x": x + 1}, mesh))(jnp.zeros((8, 2)))
  assert out["x"].sharding.is_equivalent_to(partition.by_rows(mesh), 2)


def test_a_state_with_its_key_is_placed():
  sharding = partition.replicated(partition.make_mesh(4))
  state = {"key": jax.random.key(3), "x": jnp.arange(5), "step": jnp.zeros((), jnp.int32)}
  placed = partition.put_state(state, sharding)
  assert all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in jax.tree.leaves(placed))
  np.testing.assert_array_equal(jax.random.key_data(placed["key"]),
                                jax.random.key_data(state["key"]))


def test_the_signal_asks_once_inside_the_block_only():
  before = signal.getsignal(signal.SIGTERM)
  with partition.Preemption() as preemption:
    assert not preemption.requested(0)
    os.kill(os.getpid(), signal.SIGTERM)
    for step in (1, 2):
      assert preemption.requested(step)
  assert signal.getsignal(signal.SIGTERM) is before
  with partition.Preemption() as preemption:  # a later run starts afresh
    assert not preemption.requested(0)


def test_another_thread_installs_no_handler():
  before, seen = signal.getsignal(signal.SIGTERM), []
  def work():
    with partition.Preemption() as preemption:
      seen.append((preemption.requested(0), signal.getsignal(signal.SIGTERM)))
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(False, before)]


@pytest.mark.parametrize("given", [
  {"JAX_PROCESS_ID": "0"}, {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"}])
def test_half_a_multi_host_environment_is_refused(monkeypatch, given):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a: pytest.fail("joined"))
  with pytest.raises(errors.UserError, match="JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"):
    partition.initialize()


@pytest.mark.parametrize("given,want", [
  ({}, None), ({"RECJAX_DISTRIBUTED": "1"}, ()),
  ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
   ("host:1", 2, 1))])
def test_the_environment_decides_whom_to_join(monkeypatch, given, want):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
               "RECJAX_DISTRIBUTED"):
    monkeypatch.delenv(name, raising=False)
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args: joined.append(args))
  partition.initialize()
  assert joined == ([] if want is None else [want])


def test_peak_memory_is_plausible():
  assert 0.01 < partition.peak_memory_gb() < 1000


@pytest.mark.parametrize("option", [*partition.STEP_OPTIONS.values(), ("xla_no_such_option", 1)])
def test_steps_compile_with_an_option_that_xla_has_and_without_one_that_it_has_not(
    option, monkeypatch):
  monkeypatch.setitem(partition.STEP_OPTIONS, jax.default_backend(), option)
  assert partition.compile_steps(jax.jit(lambda x: x + 1).lower(1))(2) == 3
