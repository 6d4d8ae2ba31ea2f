"""What a config describes, built: the part that training, evaluation and serving share."""

import dataclasses
import functools
import math

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
from recjax import auxiliary as auxiliary_lib
from recjax import state as state_lib
from recjax import step as step_lib
from recjax.data import auxiliary as auxiliary_data
from recjax.data import (
  batches,
  graphs,
  kinds,
  profiles,
  providers,
  ratings,
  sequences,
  views,
  vocabulary,
)
from recjax.evaluators import blocks, by_task, links


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Data, model and objective of a config, with the model's function ready to be called."""
  config: object
  data: object  # `sequences.Dataset`; a `GraphExperiment`'s is a `graphs.Graph`
  mesh: jax.sharding.Mesh
  model: object
  objective: object
  tables: dict  # {field: attribute ids}, and what else the model looks up, on the devices
  apply_fn: object
  predict: object  # (params, users, histories, ...) -> scores, for its caller to jit
  other: sequences.Dataset | None = None  # of a second domain that is learned with it
  split: dict = dataclasses.field(default_factory=dict)  # of `partition.split_rows`
  provided: dict = dataclasses.field(default_factory=dict)  # {feature: providers.Provider}
  people: dict = dataclasses.field(default_factory=dict)  # likewise, of users
  # What the objective learns beside the model.
  auxiliary: auxiliary_lib.Auxiliary = dataclasses.field(default_factory=auxiliary_lib.Auxiliary)

  def init_params(self, seed):
    """Returns parameters as a nested dict: freshly started ones on the host's default device.

    Tables that are split over the model axis are made where they stay, no device has them whole. A
    model that has a `fit` computes its parameters from the data at once.
    """
    if hasattr(self.model, "fit"):
      return self.model.fit(self.data)
    if not self.split:
      return self._start(seed)
    start = lambda seed: partition.pad_rows(self._start(seed), self.split, self.mesh)
    placed = partition.shardings(jax.eval_shape(start, 0), self.split, self.mesh)
    return jax.jit(start, out_shardings=placed)(seed)

  def create_state(self, params, tx, seed):
    """Returns the TrainState of step 0 on the devices.

    Args:
      params: of `init_params`.
      tx: optimizer of `recjax.optim`.
      seed: of the run.
    """
    create = functools.partial(state_lib.create, tx=tx, seed=seed)
    placed = partition.shardings(jax.eval_shape(create, params), self.split, self.mesh)
    return jax.jit(create, out_shardings=placed)(params)  # slots are made where they stay

  def abstract_state(self, params, tx, seed):
    """Returns shapes and shardings of `create_state`."""
    return self.abstract(jax.eval_shape(functools.partial(state_lib.create, tx=tx, seed=seed),
                                        params))

  def abstract(self, tree):
    """Returns ShapeDtypeStructs of parameters or a state, placed on the devices."""
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree,
                        partition.shardings(tree, self.split, self.mesh))

  def to_host(self, params):
    """Returns parameters as a transfer merges them: whole, without the rows that pad a table."""
    return partition.fetch(params, self.split) if self.split else params

  def to_devices(self, params):
    """Returns the inverse of `to_host`."""
    if not self.split:
      return params
    padded = partition.pad_rows(params, self.split, self.mesh)
    return partition.put(padded, partition.shardings(padded, self.split, self.mesh))

  def place(self, params):
    """Returns parameters, of `to_devices` or so, where training and predicting want them."""
    return partition.put_state(params, partition.shardings(params, self.split, self.mesh))

  def params_shapes(self):
    """Returns the nested dict of the parameters' shapes and types, without computing them."""
    return jax.eval_shape(self._start, 0)

  def _start(self, seed):
    params = _init(self.model, jax.random.key(seed), self.model.example_inputs(), self.tables)
    return {**params, **self.auxiliary.start(seed, params, self.tables)}

  def row_tables(self):
    """Returns {leaf name: (vocabulary, axis)} of the leaves whose rows stand for named things."""
    return self.model.row_tables() | self.auxiliary.row_tables()

  def rows(self, leaves=None):
    """Returns {vocabulary: checkpoint.Rows} of the model's row tables, or of those in `leaves`."""
    names = vocabulary.row_names(self.data, extra_tokens=self.model.extra_tokens,
                                 also_trained=self.auxiliary.also_trained())
    used = {name for leaf, (name, _) in self.row_tables().items()
            if leaves is None or leaf in leaves}
    names |= self.auxiliary.row_names()
    names |= ratings.row_names(self.data, used) | providers.row_names(self.provided)
    names |= providers.row_names(self.people, "user/")
    names |= profiles.row_names(self.data, self.objective.profile, used)
    return {name: checkpoint.Rows(*names[name]) for name in sorted(used)}

  def needed_rows(self):
    """Returns {vocabulary: bool [rows]}: rows of tables that this data set reads or scores.

    Of a user's history in another domain (`config.history`) the items of that one are read.
    """
    needed = {name: rows.trained for name, rows in self.rows().items()}
    if "targets" in getattr(self.data, "parts", ()) and "item" in needed:
      read = sequences.take_ranges(self.data.items, *self.data.span("train"))
      needed["item"] = np.bincount(read, minlength=len(needed["item"])) > 0
    return needed

  def describe_features(self):
    """Returns a line for every feature: how many items, or users, it says something of."""
    return [*providers.describe(self.provided, np.asarray(self.data.in_domain)),
            *providers.describe(self.people, np.arange(self.data.num_users + 1) > 0, "users")]

  def carry(self, config, params):
    """Returns (parameters with what crosses from the source runs, the plan, the sources' Readers).

    Args:
      config: `config.transfer`.
      params: fresh parameters.
    """
    if config.mode == "rules":
      rules = tuple(config.rules)
    elif (rules := self.model.transfer_rules(config.mode)) is None:
      raise errors.UserError(f"transfer.mode is {config.mode!r}; there are none, embedding, model, "
                             "patch and rules (and fusion for neumf)")
    if config.mode != "none" and not rules:
      raise errors.UserError(f"transfer.mode={config.mode} has nothing to carry: the model has no "
                             "user embedding and no attributes, or transfer.rules is empty")
    readers = [checkpoint.Reader(name, config.step) for name in config.checkpoint.split(",")]
    params = self.to_host(params)
    transfer.check_sources(rules, len(readers))
    plans = [transfer.make_plan(
      params, reader.shapes(), rules, row_tables=self.row_tables(),
      target_rows=self.rows(), source_rows=reader.rows(), run=run)
      for run, reader in enumerate(readers)]
    for plan, reader in zip(plans, readers, strict=True):
      params = transfer.merge(plan, params, reader.params(transfer.sources(plan)))
    return self.to_devices(params), transfer.join(plans), readers

  def optim_rules(self, mode):
    """Returns the rules of `recjax.optim` that a mode of transfer adds to the config's."""
    return getattr(self.model, "optim_rules", lambda mode: ())(mode)

  def size(self):
    """Returns how large the data set is, for people."""
    manifest = self.data.manifest
    return ", ".join(f"{manifest[key]:,} {key}" for key in ("users", "items", "interactions"))

  def names(self, users, split):
    """Returns bytes [n]: external ids of those that an evaluator of `split` measures."""
    del split
    return np.asarray(self.data.user_ids)[users]

  def train_lengths(self, users):
    """Returns int32 [n]: how much these users train on; None where there are no users."""
    part = "targets" if "targets" in self.data.parts else "train"
    return self.data.lengths(part)[users].astype(np.int32)

  def item_counts(self):
    """Returns int64 [N + 1]: how often each item occurs in train; None where there are none."""
    return self.data.item_counts("train")

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
    devices = partition.data_devices(self.mesh)
    seen = ("train", "val") if "train+val" in contexts else ("train",)
    make = functools.partial(
      by_task.make, objective=self.objective, model=self.model, config=config, split=split,
      contexts=contexts, protocols=protocols, seed=config.candidates_seed,
      batch_size=-(-config.batch_size // devices) * devices,
      history_length=self.history_length(*seen),
      put=lambda x: partition.put(x, partition.by_rows(self.mesh)))
    if self.data.shards is None:
      cache_dir = f"{self.config.data_dir}/{self.data.name}/candidates"
      return make(self.data, max_users=config.max_users,
                  cache_dir=None if self.data.withholds else cache_dir)
    if self.objective.task != "ranking":
      raise errors.UserError(f"data set {self.data.name!r} is sharded, and {self.objective.task} "
                             "is evaluated with all of it in memory; prepare it with "
                             "--config.shards=0")
    return blocks.Blocks(self.data, make, split=split, max_users=config.max_users,
                         seed=config.candidates_seed)

  def metric_names(self):
    """Returns every "PROTOCOL/METRIC" that `config.eval.metric` may name."""
    return by_task.metric_names(self.objective, self.config.eval)


class GraphExperiment(Experiment):
  """What a config of a graph describes: triples in the place of users."""

  def rows(self, leaves=None):
    used = {name for leaf, (name, _) in self.model.row_tables().items()
            if leaves is None or leaf in leaves}
    return {name: checkpoint.Rows(*rows) for name, rows in self.data.row_names().items()
            if name in used}

  def describe_features(self):
    return ()

  def size(self):
    manifest = self.data.manifest
    return ", ".join(f"{manifest[key]:,} {key}" for key in ("entities", "relations", "triples"))

  def names(self, users, split):
    return links.names_of(self.data, self.data.split(split)[users])

  def train_lengths(self, users):
    return None

  def item_counts(self):
    return None

  def evaluator(self, split, *, contexts, protocols=None):
    config, devices = self.config.eval, partition.data_devices(self.mesh)
    common = dict(
      split=split, contexts=contexts, protocols=protocols or config.protocols,
      seed=config.candidates_seed, batch_size=-(-config.batch_size // devices) * devices,
      max_users=config.max_users, put=lambda x: partition.put(x, partition.by_rows(self.mesh)))
    return by_task.make(self.data, objective=self.objective, model=self.model, config=config,
                        **common)


@functools.partial(jax.jit, static_argnums=0)
def _init(model, key, inputs, tables):
  return model.init(key, **inputs, tables=tables)["params"]


def forget_start():
  """Drops what `_init` was compiled to, once for equal models: 40 to 80 MB for six blocks."""
  _init.clear_cache()


def build(config):
  """Returns the Experiment of `config`, reading its data set from `config.data_dir`."""
  if not config.data_dir:
    raise errors.UserError("--config.data_dir is required: the folder that recjax.prepare wrote")
  data = kinds.load(config.data_dir, config.dataset)
  if data.kind == graphs.KIND:
    return _build_graph(config, data)
  data, provided, people = views.as_configured(config, data)
  describe = functools.partial(objectives.make, **config.objective.to_dict(),
                               num_items=data.num_items)
  draft = describe()  # a head of labels has as many as it says
  asked = auxiliary_data.read(config.data_dir, data, dict(draft.auxiliary))
  data = auxiliary_data.identified(data, asked)
  model = models.make(**{**config.model.to_dict(), "num_items": data.num_items,
                         "num_users": data.num_users, "field_rows": batches.field_rows(data),
                         "features": {name: p.options for name, p in provided.items()},
                         "feature_sizes": {name: p.size for name, p in provided.items()},
                         "user_features": {name: p.options for name, p in people.items()},
                         "user_feature_sizes": {name: p.size for name, p in people.items()},
                         "facts": views.facts(config, data, draft)})
  objective = describe(known=model.objectives)
  tables = batches.attribute_tables(
    data, [(name, width, slots) for name, _, width, slots in model.fields],
    extra_tokens=model.extra_tokens)
  tables |= providers.tables(provided, extra_tokens=model.extra_tokens)
  tables |= views.user_tables(data, config, people)
  tables |= views.item_flags(data, config, extra_tokens=model.extra_tokens, features=bool(provided))
  tables |= profiles.tables(data, [name for name, _ in getattr(model, "profile", ())])
  if getattr(model, "biases", False):
    tables |= ratings.item_table(data)
  if name := getattr(model, "extra_ratings", ""):
    tables |= ratings.extra_tables(data, sequences.load(config.data_dir, name))
  other = None
  if name := getattr(model, "other", ""):
    other = views.beside(config.data_dir, name, data)
    tables["companion"] = batches.companions(other)
  beside, more = auxiliary_lib.make(asked, model, tables)
  return _assemble(Experiment, config, data, model, objective, tables | more, other=other,
                   provided=provided, people=people, auxiliary=beside)


def _build_graph(config, data):
  model = models.make(**{**config.model.to_dict(), "num_entities": data.num_entities,
                         "num_relations": data.num_relations, "field_rows": {}})
  objective = objectives.make(**config.objective.to_dict(), num_entities=data.num_entities,
                              known=model.objectives)
  return _assemble(GraphExperiment, config, data, model, objective, {})


def _assemble(cls, config, data, model, objective, tables, **fields):
  tables = jax.tree.map(jnp.asarray, tables)  # of no mesh: steps read them inside `shard_map`, too
  mesh = partition.make_mesh(config.num_devices, config.model_devices)
  apply_fn = step_lib.make_apply(model, tables, fields.get("auxiliary"))
  split = _split(model, tables, mesh)
  if split and "auxiliary" in fields:
    auxiliary_lib.check_whole(fields["auxiliary"], config.model_devices)
  return cls(config=config, data=data, mesh=mesh, model=model, objective=objective, tables=tables,
             apply_fn=apply_fn, split=split, **fields,
             predict=step_lib.make_predict(apply_fn, objective, mesh, split))


def _split(model, tables, mesh):
  """Returns which of the model's tables are split over the model axis of the mesh."""
  devices = mesh.shape[partition.MODEL_AXIS]
  if devices == 1:
    return {}
  if not getattr(model, "splits_items", False):
    raise errors.UserError(f"model_devices={devices}: {type(model).__name__} does not split its "
                           "tables over devices; set model_devices=1")
  if getattr(model, "features", ()):
    raise errors.UserError(f"model_devices={devices}: vectors of items with model.features need "
                           "whole tables; set model_devices=1")
  if model.num_items < 8 * devices:
    raise errors.UserError(f"model_devices={devices} is too many for {model.num_items} items")
  shapes = jax.eval_shape(lambda: _init(model, jax.random.key(0), model.example_inputs(), tables))
  return partition.split_rows(
    shapes, {leaf: axis for leaf, (vocabulary, axis) in model.row_tables().items()
             if vocabulary in ("item", "output")}, mesh)


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
  config.num_devices = None  # as many as there are here, and tables split alike where that goes
  config.model_devices = math.gcd(config.get("model_devices", 1), jax.local_device_count())
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
  like = exp.abstract(partition.pad_rows(exp.params_shapes(), exp.split, exp.mesh))
  params = trees.unflatten(reader.params(list(want), like=trees.flatten(like), split=exp.split))
  if reader.task_of:
    config.transfer.checkpoint = backbone or config.transfer.checkpoint
    whole, plan, (source,) = exp.carry(config.transfer, exp.init_params(0))
    task_trees.check_backbone(workdir, reader.task_of, source.backbone(transfer.sources(plan)))
    params = trees.join(exp.place(whole), trees.flatten(params))
  return exp, params, reader
