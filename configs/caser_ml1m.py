"""Caser on MovieLens-1M, the survey's second model: pre-train on a domain, tune on another.

Convolutions over the last 5 items, 3 next items as targets and 3 drawn negatives a window, with the
survey's sizes: width 100 (225 with metadata: one director and four actors of 25 each), 4 vertical
and 16 horizontal filters, dropout 0.5, batch 512, Adam 1e-3 with L2 1e-6, 10 epochs. `task=mip`
hides one item of every 5 instead and predicts it among all (batch 256).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/caser_ml1m.py:data=src,size=cpu --workdir=runs/src \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/caser_ml1m.py:data=tgt --workdir=runs/tgt \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/src --config.transfer.mode=embedding

The survey's released code also carried the items with "embedding", and never trained what it had
transferred:

      --config.model.transfer_items=true --config.transfer.freeze='embed/(user|item)/embedding'

(with mode=model '(embed|conv_v|conv_h_\\d)/.*'), and drew negatives from both domains
(--config.objective.next_window.pool=global).

`size=cpu` is the same model with fewer epochs of pre-training where they take long: 5 with
metadata, 4 with task=mip, 2 with both. Then two CPU cores, otherwise idle, pre-train in about 3
minutes; tuning takes 10 seconds.

Arguments: data=src|tgt|all|asreleased (what the survey's Caser rows were computed from),
size=full|cpu, meta=none|survey|imdb|omdb, task=nip|mip, variant=survey|repo (the authors'
repository: width 50, 50 epochs).
"""

from configs import bert4rec_ml1m
from configs import common
from recjax import errors
from recjax import spec

CPU_EPOCHS = {("nip", False): 10.0, ("nip", True): 5.0, ("mip", False): 4.0, ("mip", True): 2.0}
DATA = {"src": "ml1m_src", "tgt": "ml1m_tgt", "all": "ml1m", "asreleased": "ml1m_tgt_asreleased"}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="src", size="full", meta="none", task="nip", variant="survey")
  config = common.get_config()
  config.dataset = errors.choose(DATA, arg.data, "data")
  config.model.update(name="caser", variant=arg.variant, max_len=5, vertical=4, horizontal=16,
                      dropout=0.5, transfer_items=False)
  config.model.fields = bert4rec_ml1m.fields(arg.meta, width=25, actors=4)
  config.objective.next_window = dict(targets=3, num_negatives=3, pool="domain")
  config.objective.masked_window = dict(mask_share=0.8, random_share=0.1)
  config.objective.name, config.batch_size = errors.choose(
    {"nip": ("next_window", 512), "mip": ("masked_window", 256)}, arg.task, "task")
  config.total_epochs = errors.choose({"survey": 10.0, "repo": 50.0}, arg.variant, "variant")
  if errors.choose({"full": False, "cpu": True}, arg.size, "size") and arg.data in ("src", "all"):
    config.total_epochs = min(config.total_epochs, CPU_EPOCHS[arg.task, arg.meta != "none"])
  config.optim.weight_decay = 1e-6
  return config


def sweep(add):
  """Around the survey's sizes, chosen on validation."""
  for lr in (1e-3, 3e-4):
    for dropout in (0.3, 0.5):
      for weight_decay in (1e-6, 1e-4):
        add(**{"optim.lr": lr, "model.dropout": dropout, "optim.weight_decay": weight_decay})
