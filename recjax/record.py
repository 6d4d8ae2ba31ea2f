"""What a run says: `metrics.jsonl`, TensorBoard, progress on the terminal, atomic JSON files."""

import json
import math
import os
import pathlib
import sys
import time

import tensorboardX
import tqdm

from recjax import clock


def write_json(path, value):
  """Writes `value` as JSON under a temporary name and renames it to `path`."""
  write_text(path, json.dumps(_plain_tree(value), indent=2) + "\n")


def write_text(path, text):
  """Writes `text` under a temporary name and renames it to `path`."""
  path = pathlib.Path(path)
  draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  draft.write_text(text)
  os.replace(draft, path)


def read_metrics(path):
  """Returns the rows of a `metrics.jsonl` as dicts; a half-written last line is left out."""
  path = pathlib.Path(path)
  rows = []
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:  # Only the last line can be cut: a kill in mid-write.
      break
  return rows


def warn(text):
  """Prints a warning on stderr."""
  print(f"warning: {text}", file=sys.stderr, flush=True)


class Recorder:
  """Appends metrics to `metrics.jsonl` and TensorBoard and shows progress; process 0 only.

  Args:
    workdir: the run's folder.
    start_step: the step that the run resumes from; rows after it are dropped, since they will be
      written again.
    total_steps: for the progress display.
    active: False on the other processes of a multi-host run, which stay silent.
    tensorboard: whether to write event files too.
  """

  def __init__(self, workdir, *, start_step, total_steps, active=True, tensorboard=True):
    self._active, self._total = active, total_steps
    self._start_step, self._started = start_step, time.monotonic()
    self._file = self._board = self._bar = None
    if not active:
      return
    path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [row for row in read_metrics(path)
            if row["step"] <= start_step and row["split"] != "test"]  # test rows come at the end
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a", buffering=1)
    if tensorboard:
      self._board = tensorboardX.SummaryWriter(
        str(pathlib.Path(workdir) / "tensorboard"), purge_step=start_step + 1)
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True)

  def write(self, step, split, values):
    """Writes one row of `values` {name: number} for `step`."""
    if not self._active:
      return
    values = {name: _plain(value) for name, value in values.items()}
    self._file.write(json.dumps({"step": int(step), "split": split, **values}) + "\n")
    if self._board is not None:
      for name, value in values.items():
        if value is not None:
          tag = f"{split}/{name}".replace("@", "_at_").replace("+", "_and_")
          self._board.add_scalar(tag, value, int(step))

  def progress(self, step, values, *, examples_per_s):
    """Shows where the run stands: a bar on a terminal, a plain line with an ETA otherwise."""
    if not self._active:
      return
    facts = " ".join(f"{name} {value:.4g}" for name, value in values.items())
    if self._bar is not None:
      self._bar.set_postfix_str(f"{facts} {examples_per_s:,.0f} ex/s", refresh=False)
      self.tick(step)
    else:
      share = 100 * step / max(self._total, 1)
      spent = time.monotonic() - self._started
      eta = clock.span(spent / max(step - self._start_step, 1) * (self._total - step))
      self.say(f"step {step}/{self._total} [{share:.1f}%] {facts} | {examples_per_s:,.0f} ex/s"
               f" | eta {eta}")

  def tick(self, step):
    """Moves the bar; a plain log has its lines from `progress` alone."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def say(self, text):
    """Prints a line, above the bar where there is one."""
    if self._active:
      tqdm.tqdm.write(text, file=sys.stderr) if self._bar is not None else print(
        text, file=sys.stderr, flush=True)

  def close(self):
    """Flushes and closes everything."""
    for sink in (self._file, self._board, self._bar):
      if sink is not None:
        sink.close()


def _plain_tree(value):
  """Returns dicts and lists of `_plain` values; json itself would write NaN, which is not JSON."""
  if isinstance(value, dict):
    return {key: _plain_tree(part) for key, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain_tree(part) for part in value]
  return _plain(value)


def _plain(value):
  """Returns numpy and jax scalars as Python numbers, and what JSON lacks (NaN) as None."""
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, (bool, int, float, str, type(None))):
    return value
  raise TypeError(f"{type(value).__name__} has no place in JSON")
