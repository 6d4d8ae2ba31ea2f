"""Checkpoints: the only importer of orbax.

`WORKDIR/checkpoints/STEP/` holds, written as one atomic folder:

    params      one array a folder, so that a subtree can be read without touching the rest
    opt_state   optimizer slots (and rng: the run's key)
    rows        {vocabulary: uint8 [rows, bytes]}: external names of the rows of every row table,
                and {vocabulary}_trained: which of them this run's data trained
    meta        JSON: config, leaf shapes, host state, and a digest of every array

A task's checkpoints (`task_trees`) hold only what it trains, and in `meta` the checksum of the
backbone that the rest of its parameters is.

Digests are computed from the arrays themselves, on the devices, when saving and again after
reading: a truncated file fails to read, a flipped bit changes its array's digest, whatever the
layout on disk and however many devices wrote or read it.
"""

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from recjax import digests, errors, task_trees, trees

FOLDER = "checkpoints"
TREES = ("params", "opt_state", "rng", "rows")
SLASH = "::"  # in the stored name of a vocabulary: orbax would take a "/" for a level of the tree


class CorruptError(Exception):
  """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


@dataclasses.dataclass(frozen=True)
class Rows:
  """External names of a table's rows, in row order, and which of them were trained on."""
  names: np.ndarray  # bytes [rows]
  trained: np.ndarray  # bool [rows]


class _Keep(checkpoint_managers.PreservationPolicy):
  """Keeps the newest checkpoints and the best one; orbax's own best-of-n may drop the newest."""

  def __init__(self, latest):
    self.latest, self.best_step = latest, None

  def should_preserve(self, checkpoints, *, context):
    del context
    newest = {info.step for info in checkpoints[-self.latest:]}
    return [info.step in newest or info.step == self.best_step for info in checkpoints]


class Checkpoints:
  """The checkpoints of a run: asynchronous saving, verified restoring.

  Args:
    workdir: the run's folder.
    keep: how many of the newest are kept (at least two, so that a damaged one has a predecessor).
    split: {leaf name: (axis, rows)} of tables whose arrays have more rows than are theirs, zeros
      (see `partition.split_rows`): these count nowhere here, and whoever reads gets `rows`.
    task: `task_trees.Task`, where not all parameters are saved.
  """

  def __init__(self, workdir, *, keep=2, split=None, task=None):
    self._split, self._task = split or {}, task
    self._part = (lambda params: params) if task is None else task.part
    self._root = pathlib.Path(os.path.abspath(workdir)) / FOLDER
    self._policy = _Keep(max(keep, 2))
    self._manager = _manager(self._root, self._policy)

  def save(self, state, *, rows, data, config, host, best_step):
    """Starts saving `state` as its step; returns once the arrays are copied, not yet written.

    Args:
      state: a TrainState.
      rows: {vocabulary: Rows}.
      data: JSON-able identity of the data set.
      config: the run's config as a JSON-able dict.
      host: JSON-able dict of everything else that a resumed run needs.
      best_step: the step to keep beside the newest, or None.
    """
    step = int(state.step)
    content = _content(state.replace(params=self._part(state.params)), rows)
    meta = {"step": step, "config": config, "host": host, "data": data,
            "digests": {name: digests.of(tree, self._split) for name, tree in content.items()},
            "shapes": {name: _describe(content[name], self._split) for name in ("params", "rows")}}
    if self._task is not None:
      meta["backbone"] = self._task.backbone
    text = json.dumps(meta)
    self._policy.best_step = best_step
    save = {name: ocp.args.PyTreeSave(tree) for name, tree in content.items()}
    # force: otherwise orbax itself decides whether this step is worth saving, and says nothing.
    self._manager.save(step, force=True, args=ocp.args.Composite(
      **save, meta=ocp.args.JsonSave({"text": text, "crc32": zlib.crc32(text.encode())})))

  def wait(self):
    """Returns once everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits and frees the writer's threads."""
    self._manager.close()

  def steps(self):
    """Returns the steps on disk, newest first; among them damaged ones, until they are read."""
    return sorted(self._manager.all_steps(read=True), reverse=True)

  def restore_latest(self, abstract, *, rows, data, report, frozen=None):
    """Returns (state, host) of the newest sound checkpoint, or None where there is none.

    Damaged ones are reported and moved out of the way, so that their step can be written again.

    Args:
      abstract: a TrainState of ShapeDtypeStructs with shardings.
      rows: {vocabulary: Rows} of the data now, which must be those that were saved.
      data: identity of the data set now, likewise.
      report: called with a line for every damaged checkpoint.
      frozen: parameters, of which those are taken that a task's checkpoints do not hold.

    Raises:
      UserError: a sound checkpoint is of another model, another backbone or of other data.
    """
    for step in self.steps():
      found = damage = None
      try:
        found = self._restore(step, abstract, rows, data, frozen or {})
      except CorruptError as error:
        damage = str(error)
      if not _on_any_process(damage is not None):
        return found
      aside = self._set_aside(step)
      report(f"checkpoint {step} is damaged ({damage or 'as another process reads it'}); moved to "
             f"{aside}, trying the one before")
    return None

  def restore_params(self, step, like):
    """Returns the parameters of `step`, placed as the arrays of `like`.

    Raises:
      UserError: the checkpoint is damaged.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._part(like))
    try:
      meta = _read_meta(self._manager, step)
      found = _read_trees(self._manager, step, {"params": abstract}, meta, self._split)["params"]
      return trees.join(like, trees.flatten(found))
    except CorruptError as error:
      raise errors.UserError(
        f"{self._root}: the best checkpoint, of step {step}, is damaged or gone ({error}); no "
        "other has its parameters: remove this folder, and the same command trains again"
      ) from error

  def _restore(self, step, abstract, rows, data, frozen):
    meta = _read_meta(self._manager, step)
    if self._task is not None and "backbone" in meta:
      task_trees.check_backbone(self._root.parent, meta["backbone"], self._task.backbone)
    part = self._part(abstract.params)
    mine, theirs = _describe(part, self._split), meta["shapes"]["params"]
    if mine != theirs:
      changed = [leaf for leaf in mine if leaf in theirs and mine[leaf] != theirs[leaf]]
      raise errors.UserError(
        f"{self._root}/{step} holds another model: names "
        f"{trees.describe_difference(mine, theirs)}; shapes {', '.join(changed) or 'equal'}; "
        "use another --workdir for another config")
    changed = [key for key in data if data[key] != meta["data"].get(key)]
    if digests.of(_row_tables(rows)) != meta["digests"]["rows"]:
      changed.append("names of rows")
    if changed:
      raise errors.UserError(
        f"{self._root}/{step} was trained on other data ({', '.join(changed)} differ); prepare "
        "the data as they were, or use another --workdir")
    want = {"params": part, "opt_state": abstract.opt_state,
            "rng": _key_data(abstract.rng), "rows": _abstract(meta["shapes"]["rows"])}
    found = _read_trees(self._manager, step, want, meta, self._split)
    rng = jax.random.wrap_key_data(found["rng"]["key"])
    step_array = jax.device_put(np.asarray(meta["step"], np.int32), abstract.step.sharding)
    params = trees.join(frozen, trees.flatten(found["params"]))
    state = abstract.replace(step=step_array, params=params, opt_state=found["opt_state"], rng=rng)
    return state, meta["host"]

  def _set_aside(self, step):
    damaged = self._root.with_name("damaged_checkpoints")
    if jax.process_index() == 0:
      damaged.mkdir(exist_ok=True)
      serials = (f"{step}.{serial}" for serial in itertools.count(1))
      free = next(name for name in itertools.chain([str(step)], serials)
                  if not (damaged / name).exists())
      os.rename(self._root / str(step), damaged / free)
    _on_any_process(True)  # Nobody looks again before it is gone.
    self._manager.reload()
    return damaged


class Reader:
  """Reads parts of a run's checkpoint, knowing nothing of the code that wrote it.

  Args:
    workdir: the run's folder.
    step: which checkpoint; None is the run's best, or its newest where it has no best.
  """

  def __init__(self, workdir, step=None):
    self._root = pathlib.Path(os.path.abspath(workdir)) / FOLDER
    if not self._root.is_dir():
      raise errors.UserError(
        f"{workdir}: no checkpoints there; is it the --workdir of a training run?")
    self._manager = _manager(self._root, None)
    steps = sorted(self._manager.all_steps(), reverse=True)
    if step is not None and step not in steps:
      raise errors.UserError(f"{workdir}: no checkpoint of step {step}; there are {steps}")
    self.meta = None
    damage = "none is complete"
    for candidate in ([step] if step is not None else steps):
      try:
        self.meta = _read_meta(self._manager, candidate)
        break
      except CorruptError as error:
        damage = f"step {candidate}: {error}"
    if self.meta is None:
      raise errors.UserError(f"{workdir}: no usable checkpoint ({damage})")
    best = self.meta["host"].get("best_step")
    if step is None and best is not None and best != self.meta["step"]:
      if best not in steps:
        raise errors.UserError(f"{workdir}: its best checkpoint, of step {best}, is gone; name "
                               f"one of {steps}, or train again")
      self.meta = self._sound(lambda: _read_meta(self._manager, best))
    self.step = self.meta["step"]
    self.config = self.meta["config"]

  @property
  def task_of(self):
    """Returns the backbone that these parameters are not whole without, or None: they are."""
    return self.meta.get("backbone")

  def backbone(self, leaves):
    """Returns what a task's checkpoint says of this one, which it takes `leaves` of."""
    stored = self.meta["digests"]["params"]
    return {"checkpoint": os.fspath(self._root.parent), "step": self.step,
            "digest": digests.together({leaf: stored[leaf] for leaf in leaves})}

  def shapes(self):
    """Returns {leaf name: ShapeDtypeStruct} of all parameters, of a task those that it trains."""
    return {leaf: jax.ShapeDtypeStruct(tuple(shape), dtype)
            for leaf, (shape, dtype) in self.meta["shapes"]["params"].items()}

  def params(self, names=None, *, like=None, split=None):
    """Returns {leaf name: array} of the named parameters (all by default); reads no others.

    Arrays are on this host alone without `like`.

    Args:
      names: leaves.
      like: {leaf name: ShapeDtypeStruct with a sharding}, how to place them.
      split: see `Checkpoints`, where they are to have more rows.

    Raises:
      UserError: unknown names, or damaged files.
    """
    described = self.meta["shapes"]["params"]
    names = list(described) if names is None else list(names)
    if unknown := [n for n in names if n not in described]:
      raise errors.UserError(
        f"{self._root}/{self.step} has no {unknown[0]!r}; it has {', '.join(described)}")
    if not names:
      return {}
    want = {"params": _abstract({n: described[n] for n in names}) if like is None
            else trees.unflatten({n: like[n] for n in names})}
    found = self._sound(lambda: _read_trees(self._manager, self.step, want, self.meta, split))
    return trees.flatten(found["params"])

  def rows(self):
    """Returns {vocabulary: Rows}: the external names behind the rows of every row table."""
    want = {"rows": _abstract(self.meta["shapes"]["rows"])}
    found = self._sound(lambda: _read_trees(self._manager, self.step, want, self.meta))["rows"]
    return {name.replace(SLASH, "/"): Rows(_to_bytes(x), np.asarray(found[f"{name}_trained"], bool))
            for name, x in found.items() if not name.endswith("_trained")}

  def _sound(self, read):
    try:
      return read()
    except CorruptError as error:
      raise errors.UserError(
        f"{self._root}: {error}; choose another step, or train again") from error


def has_checkpoint(workdir):
  """Returns whether a run in `workdir` has saved anything that looks complete."""
  root = pathlib.Path(workdir) / FOLDER
  return root.is_dir() and any(p.name.isdigit() for p in root.iterdir())


def _manager(root, policy):
  logging.getLogger("absl").addFilter(_is_news)
  handlers = {name: ocp.PyTreeCheckpointHandler(use_ocdbt=False) for name in TREES}
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy, read_only=policy is None, create=policy is not None,
    cleanup_tmp_directories=policy is not None, enable_async_checkpointing=True)
  return ocp.CheckpointManager(
    root, options=options, item_handlers={**handlers, "meta": ocp.JsonCheckpointHandler()})


def _is_news(record):
  # Said every time because arrays have folders of their own, and readers only read: as asked for.
  asked_for = ("Skipping merge of OCDBT", "read_only=True", "directory is read only")
  return not any(text in str(record.msg) for text in asked_for)


def _content(state, rows):
  return {"params": state.params, "opt_state": state.opt_state, "rng": _key_data(state.rng),
          "rows": _row_tables(rows)}


def _row_tables(rows):
  rows = {name.replace("/", SLASH): table for name, table in rows.items()}
  return ({name: _to_uint8(table.names) for name, table in rows.items()}
          | {f"{name}_trained": np.asarray(x.trained, np.uint8) for name, x in rows.items()})


def _describe(tree, split=None):
  shapes = digests.true_shapes(tree, split)
  return {leaf: [list(shapes[leaf]), str(x.dtype)] for leaf, x in trees.flatten(tree).items()}


def _abstract(described):
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return trees.unflatten({leaf: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)
                          for leaf, (shape, dtype) in described.items()})


def _on_any_process(flag):
  alone = jax.process_count() == 1
  return flag if alone else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _key_data(rng):
  if isinstance(rng, jax.ShapeDtypeStruct):
    shape = jax.eval_shape(jax.random.key_data, rng)
    return {"key": jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rng.sharding)}
  return {"key": jax.random.key_data(rng)}


def _read_meta(manager, step):
  try:
    stored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    text = stored["text"]
    if zlib.crc32(text.encode()) != stored["crc32"]:
      raise CorruptError("its description was changed")
    return json.loads(text)
  except CorruptError:
    raise
  except Exception as error:  # Whatever orbax meets in damaged files: they all mean "damaged".
    raise CorruptError(_first_line(error)) from error


def _read_trees(manager, step, want, meta, split=None):
  """Returns {item: tree} read into the shardings of `want`; digests must be those of `meta`."""
  def restore_args(tree):  # Rows that pad a table are dropped, or added, whoever wrote it.
    args = ocp.checkpoint_utils.construct_restore_args(tree)
    loose = lambda x: dataclasses.replace(x, strict=False) if hasattr(x, "strict") else x
    return jax.tree.map(loose, args)
  args = {name: ocp.args.PyTreeRestore(item=tree, restore_args=restore_args(tree),
                                       partial_restore=True)
          for name, tree in want.items()}
  try:
    found = manager.restore(step, args=ocp.args.Composite(**args))
    found = {name: found[name] for name in want}
    for name in want:
      saved = meta["digests"][name]
      for leaf, digest in digests.of(found[name], split).items():
        if saved.get(leaf) != digest:
          raise CorruptError(f"{name}/{leaf} is not what was saved")
  except CorruptError:
    raise
  except Exception as error:
    raise CorruptError(_first_line(error)) from error
  return found


def _to_uint8(names):
  names = np.ascontiguousarray(names)
  return names.view(np.uint8).reshape(len(names), names.dtype.itemsize)


def _to_bytes(array):
  return np.ascontiguousarray(array).view(f"S{array.shape[1]}")[:, 0]


def _first_line(error):
  return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
