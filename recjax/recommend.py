"""Recommends items to histories, from a trained run.

    python -m recjax.recommend --workdir=W --histories=FILE.jsonl --k=10 --output=FILE.jsonl

Every input line is {"items": [external ids, oldest first], "user": external id or absent}; every
output line {"user", "items": [k external ids, best first], "scores"}. Items of the history are not
recommended again. Ids that the run's data set does not offer, items of other domains among them
(it has never trained on them), are left out and counted.
"""

import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from recjax import catalog, cli, errors, experiment, partition, record
from recjax.data import sequences

FLAGS = flags.FLAGS


class Recommender:
  """The best checkpoint of a run, ready to rank the items of its domain.

  Args:
    workdir: folder of a training run.
    step: another checkpoint than the best.
    data_dir: where the prepared data are, if not where the run found them.
    backbone: where the backbone of a task is, likewise.
    batch_size: histories scored at once.
  """

  def __init__(self, workdir, *, step=None, data_dir=None, backbone=None, batch_size=256):
    exp, self._params, _ = experiment.restore(workdir, step=step, data_dir=data_dir,
                                             backbone=backbone)
    if exp.objective.task != "ranking":
      raise errors.UserError(f"{workdir}: this run is of {exp.objective.task}; it does not rank "
                             "items")
    if "baskets" in exp.objective.columns:
      raise errors.UserError(f"{workdir}: this run reads baskets, which --histories do not tell")
    devices = partition.data_devices(exp.mesh)
    self._exp, self._batch = exp, -(-batch_size // devices) * devices
    self._length = exp.room
    allowed = np.array(exp.data.in_domain)
    allowed[0] = False
    self._names = [name.decode() for name in np.asarray(exp.data.item_ids)]
    readable = allowed
    if "targets" in exp.data.parts:  # Items of config.history are read, but not recommended.
      history = sequences.take_ranges(exp.data.items, *exp.data.span("train"))
      readable = np.bincount(history, minlength=len(allowed)) > 0
    self._items = {name: i for i, name in enumerate(self._names) if readable[i]}
    self._users = {name.decode(): i for i, name in enumerate(np.asarray(exp.data.user_ids)) if i}
    self._num_items = int(allowed.sum())

    def top(params, users, histories, owned, k):
      if self._batch * len(allowed) > catalog.HELD:
        best = exp.predict(params, users, histories, readout=jax.tree_util.Partial(
          lambda owned, scores: catalog.top(scores, k, jnp.asarray(allowed), owned[:, None]),
          owned))
        return tuple(x[:, 0] for x in best)
      scores = exp.predict(params, users, histories)
      scores = jnp.where(allowed, scores, -jnp.inf)
      rows = jnp.arange(len(users))[:, None]
      scores = scores.at[rows, owned].set(-jnp.inf)
      return jax.lax.top_k(scores, k)
    self._top = jax.jit(top, static_argnums=4)

  def recommend(self, histories, *, users=None, k=10):
    """Returns (items, scores, unknown): lists of up to k external ids and scores per history.

    Args:
      histories: list of lists of external item ids, oldest first.
      users: external user ids or None in their place; unknown users count as None.
      k: how many items; fewer come back where the domain has no more.

    `unknown` counts the history items that were left out.
    """
    users = users or [None] * len(histories)
    items, scores, unknown = [], [], 0
    for low in range(0, len(histories), self._batch):
      some = [[self._items.get(str(i), 0) for i in h] for h in histories[low:low + self._batch]]
      unknown += sum(h.count(0) for h in some)
      some = [[i for i in h if i] for h in some]
      ids = np.array([0 if user is None else self._users.get(str(user), 0)
                      for user in users[low:low + self._batch]], np.int32)
      found, ranked = self._rank(some, ids, min(k, self._num_items))
      for row_scores, row in zip(ranked, found, strict=True):
        real = np.isfinite(row_scores)
        items.append([self._names[i] for i in row[real]])
        scores.append([float(s) for s in row_scores[real]])
    return items, scores, unknown

  def _rank(self, histories, users, k):
    width = 1 << max(max(map(len, histories), default=0), 1).bit_length()  # few shapes to compile
    recent = np.zeros((self._batch, min(self._length, width)), np.int32)
    owned = np.zeros((self._batch, width), np.int32)
    for row, history in enumerate(histories):
      tail = history[-recent.shape[1]:]
      recent[row, recent.shape[1] - len(tail):] = tail
      owned[row, :len(history)] = history
    padded = np.zeros(self._batch, np.int32)
    padded[:len(users)] = users
    put = lambda x: partition.put(x, partition.by_rows(self._exp.mesh))
    scores, items = jax.device_get(
      self._top(self._params, put(padded), put(recent), put(owned), k))
    return items[:len(histories)], scores[:len(histories)]


def read_histories(path):
  """Returns (histories, users) of a .jsonl file; UserError names the line that is malformed."""
  histories, users = [], []
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f"--histories {path}: {error}") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.UserError(f"{path}:{number}: not JSON: {error}") from error
    is_id = lambda value: isinstance(value, (str, int)) and not isinstance(value, bool)
    if not (isinstance(row, dict) and isinstance(row.get("items"), list)
            and all(map(is_id, row["items"]))
            and (row.get("user") is None or is_id(row["user"]))):
      raise errors.UserError(f'{path}:{number}: not {{"items": [ids], "user": id or absent}}, '
                             "where an id is a string or a whole number")
    histories.append(row["items"])
    users.append(row.get("user"))
  return histories, users


def main(argv):
  del argv
  cli.require(FLAGS, "workdir", "histories", "output")
  if FLAGS.k < 1:
    raise errors.UserError(f"--k must be at least 1, not {FLAGS.k}")
  histories, users = read_histories(FLAGS.histories)
  folder = pathlib.Path(FLAGS.output).absolute().parent
  if not (folder.is_dir() and os.access(folder, os.W_OK)):
    raise errors.UserError(f"--output {FLAGS.output}: {folder} is no folder to write in")
  partition.enable_compilation_cache()
  recommender = Recommender(FLAGS.workdir, step=FLAGS.step, data_dir=FLAGS.data_dir,
                            backbone=FLAGS.backbone)
  items, scores, unknown = recommender.recommend(histories, users=users, k=FLAGS.k)
  record.write_text(FLAGS.output, "".join(
    json.dumps({"user": user, "items": ids, "scores": values}) + "\n"
    for user, ids, values in zip(users, items, scores, strict=True)))
  print(f"{len(items)} histories -> {FLAGS.output}", file=sys.stderr)
  if unknown:
    print(f"warning: {unknown} history items are unknown to the run and were left out",
          file=sys.stderr)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of a training run.")
  flags.DEFINE_string("histories", None, "Input, one JSON object a line.")
  flags.DEFINE_string("output", None, "Output, one JSON object a line.")
  flags.DEFINE_integer("k", 10, "Items to recommend.")
  flags.DEFINE_integer("step", None, "Checkpoint to use; by default the best on validation.")
  flags.DEFINE_string("data_dir", None, "Where the prepared data are now, if not where they were.")
  flags.DEFINE_string("backbone", None, "Where the backbone of a task is now, likewise.")
  cli.run(main)
