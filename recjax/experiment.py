"""What a config describes, built: the part that training, evaluation and serving share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from recjax import (
  checkpoint,
  errors,
  models,
  objectives,
  partition,
  task_trees,
  transfer,
  trees,
)
from recjax import step as step_lib
from recjax.data import batches, histories, profiles, ratings, sequences, vocabulary
from recjax.evaluators import blocks, classification, metrics, ranking, rating


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Data, model and objective of a config, with the model's function ready to be called."""
  config: object
  data: sequences.Dataset
  mesh: jax.sharding.Mesh
  model: object
  objective: object
  tables: dict  # {field: attribute ids}, and what else the model looks up, on the devices
  apply_fn: object
  predict: object  # (params, users, histories, ...) -> scores, for its caller to jit

  def init_params(self, seed):
    """Returns parameters as a nested dict: freshly started ones on the host's default device.

    A model that has a `fit` computes them from the data at once.
    """
    return self.model.fit(self.data) if hasattr(self.model, "fit") else self._start(seed)

  def params_shapes(self):
    """Returns the nested dict of the parameters' shapes and types, without computing them."""
    return jax.eval_shape(self._start, 0)

  def _start(self, seed):
    return _init(self.model, jax.random.key(seed), self.model.example_inputs(), self.tables)

  def rows(self, leaves=None):
    """Returns {vocabulary: checkpoint.Rows} of the model's row tables, or of those in `leaves`."""
    names = vocabulary.row_names(self.data, extra_tokens=self.model.extra_tokens)
    used = {name for leaf, (name, _) in self.model.row_tables().items()
            if leaves is None or leaf in leaves}
    names |= ratings.row_names(self.data, used)
    names |= profiles.row_names(self.data, self.objective.profile, used)
    return {name: checkpoint.Rows(*names[name]) for name in sorted(used)}

  def carry(self, config, params):
    """Returns (parameters with what crosses from the source run, the plan, the source's Reader).

    Args:
      config: `config.transfer`.
      params: fresh parameters.
    """
    if config.mode == "rules":
      rules = tuple(config.rules)
    elif (rules := self.model.transfer_rules(config.mode)) is None:
      raise errors.UserError(f"transfer.mode is {config.mode!r}; there are none, embedding, model, "
                             "patch and rules")
    if config.mode != "none" and not rules:
      raise errors.UserError(f"transfer.mode={config.mode} has nothing to carry: the model has no "
                             "user embedding and no attributes, or transfer.rules is empty")
    reader = checkpoint.Reader(config.checkpoint, config.step)
    plan = transfer.make_plan(
      params, reader.shapes(), rules, row_tables=self.model.row_tables(),
      target_rows=self.rows(), source_rows=reader.rows())
    return transfer.merge(plan, params, reader.params(transfer.sources(plan))), plan, reader

  def optim_rules(self, mode):
    """Returns the rules of `recjax.optim` that a transfer mode adds to the config's."""
    return getattr(self.model, "optim_rules", lambda mode: ())(mode)

  @property
  def room(self):
    """Returns how many past items fit the model."""
    return self.objective.room(self.model.max_len)

  def history_length(self, *splits):
    """Returns how many past items the model reads at most, from users' longest joint `splits`."""
    longest = int(sum(self.data.lengths(split) for split in splits).max())
    return max(min(longest, self.room), 1)

  def evaluator(self, split, *, contexts, protocols=None):
    """Returns the evaluator of `split` that `config.eval` describes.

    Args:
      split: val or test.
      contexts: what the model sees of a user.
      protocols: of `config.eval.protocols`; None is all of them.
    """
    config = self.config.eval
    protocols = tuple(protocols or config.protocols)
    devices = self.mesh.devices.size
    seen = ("train", "val") if "train+val" in contexts else ("train",)
    make = functools.partial(
      self._evaluator, split=split, contexts=contexts, protocols=protocols,
      seed=config.candidates_seed, batch_size=-(-config.batch_size // devices) * devices,
      history_length=self.history_length(*seen),
      put=lambda x: partition.put(x, partition.by_rows(self.mesh)))
    if self.data.shards is None:
      return make(self.data, max_users=config.max_users,
                  cache_dir=f"{self.config.data_dir}/{self.data.name}/candidates")
    if self.objective.task != "ranking":
      raise errors.UserError(f"data set {self.data.name!r} is sharded, and {self.objective.task} "
                             "is evaluated with all of it in memory; prepare it with "
                             "--config.shards=0")
    return blocks.Blocks(self.data, make, split=split, max_users=config.max_users,
                         seed=config.candidates_seed)

  def _evaluator(self, data, *, cache_dir=None, **common):
    if self.objective.task == "rating":
      return rating.Rating(data, **common)
    if self.objective.task == "classification":
      return classification.Classification(data, profile=self.objective.profile, **common)
    return ranking.Ranking(
      data, ks=tuple(self.config.eval.ks), num_negatives=self.config.eval.num_negatives,
      cache_dir=cache_dir, **common)

  def metric_names(self):
    """Returns every "PROTOCOL/METRIC" that `config.eval.metric` may name."""
    protocols, names = ranking.PROTOCOLS, metrics.names(self.config.eval.ks)
    if self.objective.task == "rating":
      protocols, names = rating.PROTOCOLS, rating.METRICS
    if self.objective.task == "classification":
      protocols, names = classification.PROTOCOLS, classification.METRICS
    return [f"{protocol}/{metric}" for protocol in protocols for metric in names]


@functools.partial(jax.jit, static_argnums=0)
def _init(model, key, inputs, tables):
  # One function for all runs of a process: models that are equal are compiled once.
  return model.init(key, **inputs, tables=tables)["params"]


def build(config):
  """Returns the Experiment of `config`, reading its data set from `config.data_dir`."""
  if not config.data_dir:
    raise errors.UserError("--config.data_dir is required: the folder that recjax.prepare wrote")
  data = sequences.load(config.data_dir, config.dataset)
  if history := config.get("history", ""):
    data = histories.join(data, sequences.load(config.data_dir, history))
  mesh = partition.make_mesh(config.num_devices)
  objective = objectives.make(**config.objective.to_dict(), num_items=data.num_items)
  model = models.make(**{**config.model.to_dict(), "num_items": data.num_items,
                         "num_users": data.num_users, "field_rows": batches.field_rows(data),
                         "facts": ratings.facts(data) | profiles.facts(data, objective.profile)})
  objectives.check(config.objective.name, model.objectives)
  tables = batches.attribute_tables(
    data, [(name, width, slots) for name, _, width, slots in model.fields],
    extra_tokens=model.extra_tokens)
  if getattr(model, "biases", False):
    tables |= ratings.item_table(data)
  if other := getattr(model, "extra_ratings", ""):
    tables |= ratings.extra_tables(data, sequences.load(config.data_dir, other))
  tables = jax.tree.map(jnp.asarray, tables)  # of no mesh: steps read them inside `shard_map`, too
  apply_fn = step_lib.make_apply(model, tables)
  return Experiment(config=config, data=data, mesh=mesh, model=model, objective=objective,
                    tables=tables, apply_fn=apply_fn,
                    predict=step_lib.make_predict(apply_fn, objective, mesh))


def restore(workdir, *, step=None, data_dir=None, backbone=None):
  """Returns (Experiment, params, Reader) of a run's best checkpoint, or of `step`.

  Args:
    workdir: the run's folder.
    step: another checkpoint.
    data_dir: where the prepared data are, if not where the run found them.
    backbone: where the backbone of a task is, likewise.
  """
  reader = checkpoint.Reader(workdir, step)
  config = ml_collections.ConfigDict(reader.config)
  config.data_dir = data_dir or config.data_dir
  config.num_devices = None  # as many as there are here
  exp = build(config)
  want = trees.flatten(exp.params_shapes())
  if reader.task_of:  # The others are the backbone's.
    want = {n: x for n, x in want.items() if n in reader.shapes()}
  if {n: x.shape for n, x in want.items()} != {n: x.shape for n, x in reader.shapes().items()}:
    shapes = lambda leaves: [f"{name} {tuple(x.shape)}" for name, x in leaves.items()]
    difference = trees.describe_difference(shapes(want), shapes(reader.shapes()))
    raise errors.UserError(
      f"{workdir}: the checkpoint does not fit its config and the data in {config.data_dir} "
      f"({difference}); was the data set prepared anew?")
  params = reader.params(sharding=partition.replicated(exp.mesh))
  if reader.task_of:
    config.transfer.checkpoint = backbone or config.transfer.checkpoint
    whole, plan, source = exp.carry(config.transfer, exp.init_params(0))
    task_trees.check_backbone(workdir, reader.task_of, source.backbone(transfer.sources(plan)))
    whole = partition.put(whole, partition.replicated(exp.mesh))
    params = {**trees.flatten(whole), **params}
  return exp, trees.unflatten(params), reader
