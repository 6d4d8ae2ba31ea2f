"""Defaults that every training config starts from; see `recjax.train` for how they are used."""

import ml_collections
from ml_collections import config_dict

from recjax import errors


def get_config():
  """Returns the defaults. Fields that are None are off, or left to the model's variant."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.data_dir = ""  # where recjax.prepare wrote
  config.dataset = ""  # a folder in data_dir
  config.history = ""  # another one, whose train split users bring along (see first_item)
  config.held_out_items = ()  # (share of the items, seed): removed from training, to be cold
  config.held_out_users = ()  # (share of the users, seed), likewise; config.history they keep
  config.mixed_shards = config_dict.placeholder(int)  # of a sharded data set, at once; None: 8
  config.num_devices = config_dict.placeholder(int)  # None: all; a CPU is one, or as many as asked
  config.model_devices = 1  # of these, so many split the rows of the item tables among them
  config.batch_size = 256  # users a step
  config.micro_batch = config_dict.placeholder(int)  # users a device differentiates at once
  config.micro_lengths = ()  # columns that micro-batches of shorter users are cut to

  # One of total_steps, total_epochs, total_examples.
  config.total_steps = config_dict.placeholder(int)
  config.total_epochs = config_dict.placeholder(float)
  config.total_examples = config_dict.placeholder(int)

  config.model = dict(
    name="bert4rec", variant="survey_code", dtype="float32",
    fields=(),  # (attribute, width, slots), concatenated to the item
    features=(),  # (name, {"kind": attribute, given or text, ...}), see recjax/data/providers.py
    aggregate=config_dict.placeholder(str),  # concat, sum, gate, mlp, replace, fusion
    fusion_blocks=config_dict.placeholder(int),  # how many, of fusion
    item_dropout=config_dict.placeholder(float),  # of items' own vectors, beside features
    user_features=(),  # likewise, of users: attribute or given
    user_aggregate=config_dict.placeholder(str),  # sum, gate, mlp, replace
    num_layers=config_dict.placeholder(int), item_width=config_dict.placeholder(int),
    user_width=config_dict.placeholder(int), heads=config_dict.placeholder(int),
    hidden=config_dict.placeholder(int), max_len=config_dict.placeholder(int),
    dropout=config_dict.placeholder(float), layout=config_dict.placeholder(str),
    patch=config_dict.placeholder(str),  # see recjax/models/patches.py; with transfer.mode=patch
    patch_width=config_dict.placeholder(int),
    attention_kernel=config_dict.placeholder(str),  # on a GPU flash; or cuDNN's fused: no dropout
    remat=config_dict.placeholder(bool))  # blocks again backward: less memory, more arithmetic

  item_loss = dict(  # see recjax/objectives/item_loss.py
    criterion="softmax",  # softmax, bce, gbce, sampled_softmax
    num_negatives=256, calibration=0.75, negatives="position", unseen=False,
    proposal="uniform", power=0.75)  # negatives: uniform, popularity (count^power), in_batch
  config.objective = dict(
    name="masked_item",
    window=config_dict.placeholder(str),  # last, random, prefix; None: the objective's own
    # name="mix": ((objective, weight), ...) on one batch; `evaluate` predicts, "" is the first
    mix=dict(parts=(), evaluate=""),
    masked_item=dict(rate=0.15, mask_share=0.8, random_share=0.1, **item_loss),
    next_item=dict(item_loss), causal_next_item=dict(item_loss))

  config.optim = dict(
    name="adam", lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, momentum=0.9, weight_decay=0.0,
    clip_norm=config_dict.placeholder(float), decay="constant", final_lr_scale=0.0,
    warmup_steps=config_dict.placeholder(int), warmup_epochs=config_dict.placeholder(float),
    warmup_examples=config_dict.placeholder(int), warmup_percent=config_dict.placeholder(float),
    # Large tables: update only the rows that a batch meets. None: where that is quicker, sampled
    # losses of large catalogs (Adam is then lazy; see recjax/sparse.py).
    sparse_rows=config_dict.placeholder(bool),
    rules=())  # ((regex over parameters, dict(freeze=, lr_scale=, weight_decay=)), ...)

  config.eval = dict(
    every_steps=config_dict.placeholder(int), every_epochs=1.0,  # validation; set one
    metric="full/ndcg@10",  # decides which checkpoint is best
    patience=config_dict.placeholder(int),  # validations without improvement before stopping
    protocols=("full", "uniform100_domain", "pop100", "uniform100_global"),
    contexts=("train", "train+val"),  # what the model sees before the test items
    ks=(3, 5, 10), num_negatives=100, candidates_seed=0, batch_size=256,
    max_users=config_dict.placeholder(int))

  config.checkpoint = dict(
    keep=2,  # newest ones, beside the best
    every_steps=config_dict.placeholder(int), every_epochs=config_dict.placeholder(float))

  config.transfer = dict(
    checkpoint="",  # workdir of the source run (or several, with commas); empty: no transfer
    step=config_dict.placeholder(int),  # None: the source's best
    mode="none",  # none, embedding, model, patch, or rules
    rules=(),  # ((target regex, source template or None), ...) with mode="rules"
    freeze="",  # regex of parameters that stay as they are
    # True: checkpoints hold what is trained alone, and name the source that the rest is (KBs).
    task_tree=config_dict.placeholder(bool))

  config.log = dict(every_steps=100, every_epochs=config_dict.placeholder(float), tensorboard=True)
  return config


def exported(name, path, *, argument):
  """Returns `model.features` (or `user_features`) NAME of the vectors that recjax.export wrote.

  Raises:
    UserError: there is no `path`, which the config's `argument` needs.
  """
  if not path:
    raise errors.UserError(f"{argument} needs vectors=FILE, which recjax.export has written")
  return ((name, {"kind": "given", "path": path, "standardize": True}),)
