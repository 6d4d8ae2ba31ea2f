"""Where the compiled step finds its batches: all rows on the devices, or a stack of the next ones.

A feed has
  examples   of an epoch, for durations
  lengths    int [n], columns that each of them fills
  length     columns of a batch
  sample     `(tables, rng, step) -> batch`, for the compiled step
  at(step)   -> (tables on the devices, how many steps from `step` on they serve)
  order      what the order of batches depends on beside the config, a JSON-able dict
"""

import sys

import numpy as np

from recjax import errors, partition
from recjax.data import batches, behaviors, graphs, profiles, proposals, responses, streams


def make(exp):
  """Returns the feed of an Experiment, by its data: `Triples`, `Streamed` or `Resident`."""
  if exp.data.kind == graphs.KIND:
    return Triples(exp)
  labeled = exp.objective.profile is not None or exp.objective.questions
  if exp.data.shards is not None and labeled:
    raise errors.UserError(f"data set {exp.data.name!r} is sharded, and labels of users and of "
                           "what they chose are learned with all of them in memory; prepare it "
                           "with --config.shards=0")
  return (Resident if exp.data.shards is None else Streamed)(exp)


class Resident:
  """All rows on every device; the step draws its own batch."""

  order = {}

  def __init__(self, exp):
    objective, longest = exp.objective, exp.model.max_len + exp.objective.extra_columns
    self._sharding = partition.replicated(exp.mesh)
    self._tables = None
    labels = objective.profile and profiles.trained(exp.data, **objective.profile)
    further = responses.columns(exp.data, objective.questions) | behaviors.columns(
      exp.data, behaviors.read_by(exp.model))
    self._host = batches.resident(exp.data, popularity=objective.popularity, labels=labels,
                                  further=further, **_examples(objective, longest))
    if exp.other is not None:
      self._host["beside"] = batches.beside(exp.other)
    self._host |= exp.auxiliary.resident()
    self.lengths = np.minimum(self._host["end"] - self._host["begin"], longest)
    self.length, self.examples = int(self.lengths.max()), len(self.lengths)
    self.sample = batches.make_sampler(
      num_users=self.examples, batch_size=exp.config.batch_size, length=self.length,
      window=objective.window)

  @property
  def labels(self):
    """Returns int32 [U + 1], what is learned of every user; None where no label is."""
    return self._host.get("labels")

  def same_examples(self, other):
    """Returns whether an epoch of another feed visits the same rows, in the same order."""
    return all(np.array_equal(self._host[name], other._host[name])
               for name in ("users", "begin", "end"))

  def at(self, step):
    del step
    if self._tables is None:
      self._tables = partition.put(self._host, self._sharding)
    return self._tables, sys.maxsize


class Triples(Resident):
  """A graph on every device; the step draws triples or queries, as its objective asks."""

  def __init__(self, exp):
    self._sharding, self._tables = partition.replicated(exp.mesh), None
    self._host = graphs.resident(exp.data, columns=exp.objective.columns)
    self.examples = len(self._host[exp.objective.examples])
    self.lengths, self.length = np.ones(self.examples, np.int64), 1
    self.sample = batches.make_row_sampler(num_rows=self.examples,
                                           batch_size=exp.config.batch_size)


class Streamed:
  """The next batches of a sharded data set, read ahead; every process puts its rows of them.

  The position is the step: a resumed run begins its first stack where the other one stopped.
  """

  def __init__(self, exp):
    config, objective, longest = (
      exp.config, exp.objective, exp.model.max_len + exp.objective.extra_columns)
    hosts, host = partition.hosts()
    self.order = {"hosts": hosts}
    self._stream = stream = streams.Stream(
      exp.data, batch_size=config.batch_size, longest=longest, window=objective.window,
      seed=config.seed, held=config.mixed_shards, hosts=hosts, host=host,
      **_examples(objective, longest))
    self._mesh, self._everywhere = exp.mesh, partition.replicated(exp.mesh)
    self._constant = {"pool": batches.pool(exp.data, objective.columns)}
    if objective.popularity is not None:
      self._constant |= proposals.popularity(exp.data.item_counts("train"), self._constant["pool"],
                                             objective.popularity)
    self._constant |= exp.auxiliary.resident()
    self.lengths, self.length = stream.lengths, stream.length
    self.examples = stream.per_epoch * config.batch_size
    self._stacks, self._first, self._tables = None, None, None

  @staticmethod
  def sample(tables, rng, step):
    """Returns the batch of `step`, which must be in the stack."""
    del rng  # The stream has drawn already.
    return {name: values[step - tables["first"]] for name, values in tables["stack"].items()}

  def at(self, step):
    depth = self._stream.depth
    if self._tables is None:
      self._tables = partition.put(self._constant, self._everywhere)
    if self._first is None or not self._first <= step < self._first + depth:
      if self._first is None or step != self._first + depth:
        self._stacks = self._stream.stacks(step, sys.maxsize)
      self._first, stack = step, next(self._stacks)
      self._tables = {**self._tables, "first": partition.put(np.int32(step), self._everywhere),
                      "stack": partition.put_stack(stack, self._mesh)}
    return self._tables, self._first + depth - step


def _examples(objective, longest):
  return dict(min_length=objective.min_length, columns=objective.columns,
              slide=longest if objective.slide else None)
