"""A prepared data set of two domains and a config, so small that a run takes seconds.

`src` and `tgt` share users and items by external id but number them differently, as two data sets
prepared apart would: whoever matches rows by number gets them wrong.
"""

import atexit
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import common
from recjax import checkpoint, results, train, trees
from recjax.data import sequences

ROOT = pathlib.Path(__file__).resolve().parent.parent
ITEMS, SRC_ITEMS, USERS, GENRES = 70, 40, 60, 5


def make(data_dir, *, seed=0):
  """Writes the data sets `src` (60 users, 40 of 70 items) and `tgt` (55 users, the other 30)."""
  rng = np.random.default_rng(seed)
  items = [b"i%02d" % n for n in range(1, ITEMS + 1)]
  genres = rng.integers(0, GENRES + 1, (ITEMS, 2))  # by the order of `items`
  users = [b"u%02d" % n for n in range(1, USERS + 1)]
  _write(data_dir, "src", users, items, genres, set(items[:SRC_ITEMS]), rng, longest=25)
  # Ten users gone, five new ones, everything in the opposite order.
  theirs = [b"u%02d" % n for n in range(USERS + 5, 10, -1)]
  _write(data_dir, "tgt", theirs, items[::-1], genres[::-1], set(items[SRC_ITEMS:]), rng,
         longest=12)


def _write(data_dir, name, users, items, genres, domain, rng, *, longest):
  in_domain = np.array([False] + [item in domain for item in items])
  pool = np.flatnonzero(in_domain)
  histories = []
  for _ in users:
    # Neighbors follow each other, so that there is something to learn.
    start, length = rng.integers(len(pool)), rng.integers(5, longest)
    histories.append(pool[(start + np.cumsum(rng.integers(1, 3, length))) % len(pool)])
  lengths = np.array([0] + [len(h) for h in histories])
  splits = np.stack([[np.zeros_like(lengths), lengths - 2], [lengths - 2, lengths - 1],
                     [lengths - 1, lengths]]).transpose(2, 0, 1)
  splits[0] = 0
  rows = np.concatenate(histories).astype(np.int32)
  values = np.concatenate([np.zeros((1, 2), np.int64), genres]).astype(np.int32)
  feature = sequences.Feature(values, np.array([b""] + [b"g%d" % g for g in range(1, GENRES + 1)]))
  group = [0] + [int(user[1:]) % 3 for user in users]  # 0: unknown
  profiles = {"group": sequences.Feature(np.array(group, np.int32),
                                         np.array([b"", b"even", b"odd"]))}
  # Of the same users, with more labels; and of fewer users.
  kind = [0] + [(int(user[1:]) % 3 > 0) * (1 + int(user[1:]) % 4) for user in users]
  profiles["kind"] = sequences.Feature(np.array(kind, np.int32),
                                       np.array([b"", b"a", b"b", b"c", b"d"]))
  some = [int(member == 1) for member in group]
  profiles["some"] = sequences.Feature(np.array(some, np.int32), np.array([b"", b"known"]))
  manifest = dict(
    name=name, title=f"tiny {name}", generated=True, users=len(users), items=len(pool),
    interactions=len(rows), items_with_metadata=ITEMS, evaluated_users=len(users),
    mean_train_length=float(np.mean(lengths[1:] - 2)), raw_sha256="0" * 64, split={},
    vocabulary_users=len(users), vocabulary_items=len(items), too_short_users=0)
  sequences.save(pathlib.Path(data_dir) / name, sequences.Dataset(
    manifest=manifest, user_ids=np.array([b"", *users]), item_ids=np.array([b"", *items]),
    in_domain=in_domain, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    items=rows, times=np.arange(len(rows)), splits=splits.astype(np.int32),
    features={"genre": feature}, profiles=profiles))


@functools.cache
def root():
  """Returns a folder of this test process, with the data sets in `data`."""
  folder = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  make(folder / "data")
  return folder


@functools.cache
def finished(dataset="tgt", *fields):
  """Returns the workdir of an uninterrupted run, trained once for all tests: copy it to change it.

  Args:
    dataset: src or tgt.
    *fields: ("a.b", value) of its config.
  """
  workdir = root() / f"run_{dataset}_{finished.cache_info().currsize}"
  train.train_and_evaluate(config(dataset, **dict(fields)), workdir)
  return workdir


def source():
  """Returns the workdir of a run to transfer from."""
  return finished("src", ("total_steps", 8), ("eval.every_steps", 4), ("seed", 5))


def config(dataset="tgt", **fields):
  """Returns the config of a run of 18 steps; `fields` as "a.b": value.

  Logging, validation and saving fall on different steps: 5, 6 and 4.
  """
  config = common.get_config()
  config.data_dir, config.dataset = str(root() / "data"), dataset
  config.batch_size, config.micro_batch = 12, 3  # the same parts on one device as on four
  config.total_steps = 18
  config.model.update(num_layers=1, item_width=8, user_width=4, heads=2, hidden=16, max_len=10,
                      dropout=0.2, fields=(("genre", 3, 2),))
  config.optim.lr = 0.01
  # Leaves whose gradient is rounding alone (the keys' biases) would be blown up by a smaller one,
  # and then tell one number of devices from another.
  config.optim.eps = 1e-4
  config.eval.update(every_epochs=None, every_steps=6, num_negatives=10, batch_size=32,
                     protocols=("full", "uniform100_domain"))
  config.checkpoint.every_steps = 4
  config.log.update(every_epochs=None, every_steps=5, tensorboard=False)
  with config.unlocked():
    for name, value in fields.items():
      *parents, last = name.split(".")
      node = config
      for parent in parents:
        node = node[parent]
      assert last in node, name
      node[last] = value
  return config


def command(workdir, config, module="recjax.train"):
  """Returns the command line that trains `config`, written as a config file beside `workdir`."""
  path = pathlib.Path(f"{workdir}_config.py")
  path.write_text("import json\nimport ml_collections\n\n\ndef get_config():\n"
                  f"  return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n")
  return [sys.executable, "-m", module, f"--config={path}", f"--workdir={workdir}"]


def start(command, *, devices=4, **env):
  """Starts a command from the project's root with simulated devices; returns the Popen."""
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  env = {**os.environ, "XLA_FLAGS": flags, **env}
  return subprocess.Popen(command, cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(command, **kwargs):
  """Returns (exit code, stderr) of a finished command."""
  process = start(command, **kwargs)
  _, stderr = process.communicate(timeout=300)
  return process.returncode, stderr


def metric_rows(workdir):
  """Returns the rows of metrics.jsonl less what the clock decides, by (step, split, what)."""
  timing = ("examples_per_s", "tokens_per_s")
  rows = [json.loads(line) for line in
          (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  what = lambda row: "/".join(list(row)[2].split("/")[:-1]) or list(row)[2]  # "train/full", "loss"
  keys = [(row["step"], row["split"], what(row)) for row in rows]
  assert len(set(keys)) == len(keys), keys
  return {key: {k: v for k, v in row.items() if k not in timing}
          for key, row in zip(keys, rows, strict=True)}


def state(workdir, step=None):
  """Returns {leaf: array} of parameters, optimizer slots and key, read without recjax's help."""
  folder = pathlib.Path(workdir) / "checkpoints"
  step = step or max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  found = {}
  for item in ("params", "opt_state", "rng"):
    tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / item)
    found |= {f"{item}/{n}": np.asarray(x) for n, x in trees.flatten(tree).items()}
  return found


def assert_same_run(workdir, reference):
  """Asserts that two finished runs left the same: parameters, slots, report, metrics, users."""
  mine, theirs = state(workdir), state(reference)
  assert mine.keys() == theirs.keys()
  assert len([n for n in mine if n.startswith("opt_state")]) > 10
  for name in mine:
    assert np.array_equal(mine[name], theirs[name]), name
  ours, theirs = (results.finished(w) for w in (workdir, reference))
  for report in (ours, theirs):
    report.pop("speed"), report["run"].pop("name")
  assert ours == theirs
  rows, wanted = metric_rows(workdir), metric_rows(reference)
  assert rows.keys() == wanted.keys()
  for key, row in rows.items():
    # Losses are summed on the device in groups whose size follows the clock: the last bits differ.
    near = {name: pytest.approx(value, rel=1e-5) for name, value in wanted[key].items()
            if name.endswith("loss")}
    assert row == {**wanted[key], **near}
  with np.load(workdir / "per_user_test.npz") as a, np.load(reference / "per_user_test.npz") as b:
    assert set(a.files) == set(b.files)
    assert all(np.array_equal(a[name], b[name]) for name in a.files)


def stop_at(monkeypatch, step, action):
  """Calls `action` once the checkpoint of `step` is on disk, the first time only."""
  original, done = checkpoint.Checkpoints.save, []
  def save(self, state, **kwargs):
    original(self, state, **kwargs)
    if int(state.step) == step and not done:
      self.wait()
      done.append(step)
      action()
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)


def steps(workdir):
  """Returns the steps of the checkpoints on disk, oldest first."""
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def interrupted(tmp_path, *, at=12, **fields):
  """Returns a workdir whose run stopped right after its checkpoint of step `at`."""
  workdir = tmp_path / "run"
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  with pytest.MonkeyPatch.context() as patch:
    stop_at(patch, at, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(config(**fields), workdir)
  return workdir


def flip(path):
  """Flips a bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)
