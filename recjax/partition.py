"""Processes, the device mesh, and where arrays live: the only file that builds meshes."""

import contextlib
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from recjax import collective, errors, memory, trees

DATA_AXIS = "data"
MODEL_AXIS = collective.AXIS
# What `compile_steps` tells XLA, by backend.
STEP_OPTIONS = {"gpu": ("xla_gpu_enable_triton_gemm", False),
                "cpu": ("xla_cpu_prefer_vector_width", 512)}


def initialize(num_devices=None):
  """Joins the processes of a multi-host run, where the environment describes one.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name the run outright;
  RECJAX_DISTRIBUTED=1 leaves it to jax to find out (Cloud TPU, SLURM, MPI). Otherwise the run has
  one process. Must be called before anything else touches jax.

  On a CPU one device uses all cores for one product at a time; `num_devices` asks for several, each
  with its share of the batch, which keeps the cores busier (launch/bench/README.md). The memory of
  a step is kept for the next one, see `recjax.memory`.
  """
  memory.keep()
  if num_devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    try:
      jax.config.update("jax_num_cpu_devices", num_devices)
    except RuntimeError:  # jax has started: it has the devices that it has
      pass
  if jax.distributed.is_initialized():
    return
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  given = [n for n in names if os.environ.get(n)]
  if given and len(given) < len(names):
    raise errors.UserError(f"the environment sets {', '.join(given)} but a multi-host run needs "
                           f"all of {', '.join(names)}")
  if given:
    address, count, index = (os.environ[n] for n in names)
    jax.distributed.initialize(address, int(count), int(index))
  elif os.environ.get("RECJAX_DISTRIBUTED") == "1":
    jax.distributed.initialize()


def is_first():
  """Returns whether this process is the one that writes files."""
  return jax.process_index() == 0


def make_mesh(num_devices=None, model_devices=1):
  """Returns a mesh of data x model axes.

  Args:
    num_devices: how many devices in all; None is all there are.
    model_devices: along the model axis, whose devices share the batch and split row tables. They
      belong to one host, whose links are the fastest, and whose rows of a batch they all need.
  """
  devices = jax.devices()
  num_devices = num_devices or len(devices)
  if num_devices > len(devices):
    raise errors.UserError(
      f"the config asks for {num_devices} devices, this machine has {len(devices)}")
  per_host = min(num_devices, jax.local_device_count())
  if model_devices < 1 or num_devices % model_devices or per_host % model_devices:
    raise errors.UserError(f"model_devices={model_devices} must divide the {num_devices} devices, "
                           f"and the {per_host} that a host has of them")
  # Auto: flax.linen's nn.Embed and friends know nothing of explicit sharding types.
  return jax.make_mesh((num_devices // model_devices, model_devices), (DATA_AXIS, MODEL_AXIS),
                       axis_types=(AxisType.Auto,) * 2, devices=devices[:num_devices])


def data_devices(mesh):
  """Returns into how many parts a batch is split."""
  return mesh.shape[DATA_AXIS]


def split_rows(shapes, row_tables, mesh):
  """Returns {leaf name: (axis, rows)} of the tables that are split over the model axis.

  Their arrays have as many rows as the devices of the axis divide: those after `rows` are zeros,
  which nobody reads, whose gradient is zero, and which no checkpoint has.

  Args:
    shapes: the parameter tree of arrays or shapes.
    row_tables: {leaf name: axis of its rows} of the tables that may be split.
    mesh: of `make_mesh`; with one device along the model axis nothing is split.
  """
  if mesh.shape[MODEL_AXIS] == 1:
    return {}
  flat = trees.flatten(shapes)
  return {leaf: (axis, flat[leaf].shape[axis]) for leaf, axis in row_tables.items()}


def pad_rows(tree, split, mesh):
  """Returns a tree of true arrays or shapes as one whose tables the devices divide."""
  devices = mesh.shape[MODEL_AXIS]
  def pad(x, place):
    axis, rows = place
    width = -(-rows // devices) * devices
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct((*x.shape[:axis], width, *x.shape[axis + 1:]), x.dtype)
    pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
    return pad(x, [(0, width - rows if a == axis else 0) for a in range(x.ndim)])
  return trees.map_slots(pad, split, tree)


def specs(tree, split):
  """Returns the PartitionSpec of every leaf: rows of tables over the model axis, the rest whole.

  Args:
    tree: parameters, optimizer slots, or a state, of arrays or shapes.
    split: of `split_rows`.
  """
  whole = jax.tree.map(lambda _: PartitionSpec(), tree)
  return trees.map_slots(lambda _, place: PartitionSpec(*[None] * place[0], MODEL_AXIS), split,
                         whole)


def shardings(tree, split, mesh):
  """Returns the sharding of every leaf, see `specs`."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, split))


def replicated(mesh):
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh):
  """Returns the sharding that splits the first axis over the data axis."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put(tree, sharding):
  """Returns host arrays placed with `sharding`; every process must hold the same values.

  Args:
    tree: of arrays.
    sharding: of all of them, or a tree of shardings.
  """
  def place(array, sharding):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: place(x, sharding), tree)
  return jax.tree.map(place, tree, sharding)


def fetch(tree, split):
  """Returns numpy arrays of the true rows, whole in every process."""
  def whole(x):
    if x.is_fully_addressable:
      return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  cut = lambda x, place: np.take(x, range(place[1]), axis=place[0])
  return trees.map_slots(cut, split, jax.tree.map(whole, tree))


def put_stack(tree, mesh):
  """Returns host arrays [K, b, ...] as device arrays [K, B, ...] whose second axis is split.

  Each process gives its own b rows of B, of as many arrays and shapes as all others.
  """
  sharding = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def hosts():
  """Returns (how many processes there are, which of them this is)."""
  return jax.process_count(), jax.process_index()


def put_state(state, sharding):
  """Returns a tree of device arrays (a typed key among them) placed with `sharding`."""
  return jax.jit(lambda x: x, out_shardings=sharding)(state)


class Preemption:
  """Notices SIGTERM while its `with` block runs; in a multi-host run, on any host.

  A block inside another one is told what that one was, and tells it in turn: a run of a study may
  have yet to begin, or may just have ended.
  """

  def __init__(self):
    self._asked = threading.Event()
    self._previous = None

  def __enter__(self):
    # Handlers belong to the main thread; jax.distributed installs one of its own.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._ask)
      if self._outer and self._outer.asked:
        self._ask()
    return self

  def __exit__(self, *_):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)
      if self.asked and self._outer:
        self._outer._ask()

  def _ask(self, *_):
    self._asked.set()

  @property
  def _outer(self):
    owner = getattr(self._previous, "__self__", None)
    return owner if isinstance(owner, Preemption) else None

  @property
  def asked(self):
    """Returns whether this process was told to leave."""
    return self._asked.is_set()

  def requested(self, step):
    """Returns whether the run should save and leave at `step`; all hosts get the same answer."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.asked


def constrain_rows(tree, mesh):
  """Inside jit: splits the first axis of every array over the data axis."""
  return jax.lax.with_sharding_constraint(tree, by_rows(mesh))


def over_devices(fn, mesh, *, split, params=None):
  """Returns `fn` as every device calls it with its share of the arguments; results are added up.

  Args:
    fn: takes and returns trees of arrays; DATA_AXIS is the name of the devices inside.
    mesh: of `make_mesh`; of one device, `fn` itself is returned.
    split: for each argument the axis that is split over the data axis, None for the whole.
    params: of `specs`, where the first argument is split over the model axis. Then the first of two
      results is alike (gradients), and neither is added up along that axis.
  """
  if mesh.devices.size == 1:
    return fn
  spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(
    *[None] * axis, DATA_AXIS)
  ins, outs = tuple(map(spec, split)), PartitionSpec()
  if params is not None:
    ins, outs = (params, *ins[1:]), (params, PartitionSpec())
  return jax.shard_map(
    lambda *args: jax.lax.psum(fn(*args), DATA_AXIS), mesh=mesh, check_vma=False,
    in_specs=ins, out_specs=outs)


def of_rows(fn, mesh, *, params):
  """Returns fn(parameters, arrays of rows, ...) -> arrays of rows, as every device calls it.

  Args:
    fn: see above; rows are split over the data axis.
    mesh: of `make_mesh`.
    params: of `specs`.
  """
  rows = PartitionSpec(DATA_AXIS)
  return lambda held, *args: jax.shard_map(
    fn, mesh=mesh, check_vma=False, in_specs=(params, *[rows] * len(args)), out_specs=rows)(
      held, *args)


def peak_memory_gb():
  """Returns the peak memory of the busiest device; of this process where devices do not count."""
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  if peaks:
    return max(peaks) / 2**30
  return memory.peak_gib()


def compile_steps(lowered):
  """Returns the compiled program of a `jax.jit(...).lower(...)` of training steps.

  On a GPU XLA also tries Triton's ways to multiply matrices, which takes minutes for a step and
  found nothing better than cuBLAS; on a CPU its loops have vectors of 256 bits even where there are
  wider ones, and take up to twice as long (launch/bench/README.md): here they have not. What
  tracing and compiling leave free is given back, and compiling itself takes little.
  """
  memory.give_back()
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu:  # From here on XLA's threads do nothing but compile.
    jax.block_until_ready(jax.live_arrays())
  with memory.few_waiting() if on_cpu else contextlib.nullcontext():
    compiled = _compile(lowered)
  memory.give_back()
  return compiled


def _compile(lowered):
  if jax.default_backend() in STEP_OPTIONS:
    option, value = STEP_OPTIONS[jax.default_backend()]
    try:
      return lowered.compile({option: value})
    except jax.errors.JaxRuntimeError as error:
      if option not in str(error):  # or else an XLA that has no such option
        raise
  return lowered.compile()


def enable_compilation_cache():
  """Keeps compiled programs in the user's cache folder, so that a second start is quick."""
  if jax.config.jax_compilation_cache_dir is None:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(base, "recjax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
