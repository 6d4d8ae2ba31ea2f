"""Next-basket pre-training on Ta-Feng, then ranking of the next basket's items.

`phase=pretrain` learns from pairs of baskets, "[CLS] b1 [SEP] b2 [SEP]": items hidden in both (MIP)
and whether b2 is what the user bought next (NBP), both with weight 1; `tasks=mip` leaves NBP out.
`phase=tune` ranks the items of the next basket at a MASK that follows the user's last baskets, from
scratch or from a pre-training. Both read the training baskets of the same users; the last basket
tests and the one before it validates.

    python -m recjax.prepare --config=configs/data/tafeng.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/nbp_tafeng.py:phase=pretrain,size=cpu \\
      --workdir=runs/nbp --config.data_dir=DATA
    python -m recjax.train --config=configs/nbp_tafeng.py:phase=tune,size=cpu \\
      --workdir=runs/tuned --config.data_dir=DATA \\
      --config.transfer.checkpoint=runs/nbp --config.transfer.mode=model

The protocol is `full_repeats`: all 11,997 items are ranked, those of the history included, since
baskets repeat. On the test baskets of 1,024 users popularity reaches NDCG@10 8.2 % and Recall@10
7.6 %, personal frequency 12.3 % and 15.0 %, from all baskets before. Sizes and rates are ours,
after Sun et al. 2019. What they reach: README.md, "Fine-tuning"; configs/studies/nbp.py compares.

Arguments: phase=pretrain|tune, tasks=mip_nbp|mip, size=full|cpu.
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, phase="pretrain", tasks="mip_nbp", size="full")
  pretrain = errors.choose({"pretrain": True, "tune": False}, arg.phase, "phase")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  config = common.get_config()
  config.dataset = "tafeng"
  config.model.update(name="basket_bert", variant="bert", max_len=64, num_layers=2 if small else 4,
                      item_width=64 if small else 128, heads=2 if small else 4,
                      hidden=256 if small else 512)
  row = dict(length=64, look_back=192, shared_position=True)
  pair = dict(row, context=1)  # b1 is one basket
  # Its parts predict as `basket_items` does, so that validation means the same in both phases.
  config.objective.masked_basket = dict(config.objective.masked_item, **pair)
  config.objective.next_basket = dict(pair)
  config.objective.basket_items = dict(row, context=0)  # as many baskets as fit
  config.objective.name = "mix" if pretrain else "basket_items"
  config.objective.mix.parts = errors.choose({
    "mip_nbp": (("masked_basket", 1.0), ("next_basket", 1.0)),
    "mip": (("masked_basket", 1.0),)}, arg.tasks, "tasks")
  config.batch_size = 256
  if small:
    config.micro_batch, config.micro_lengths = 64, (12, 24, 40)
  config.total_epochs = 60.0 if pretrain else 30.0
  config.optim.update(lr=1e-3, warmup_percent=5.0, decay="linear", clip_norm=5.0)
  config.eval.update(
    every_epochs=5.0 if pretrain else 2.0, metric="full_repeats/ndcg@10", ks=(5, 10),
    protocols=("full_repeats",), contexts=("train+val", "train"))
  return config


def sweep(add):
  """Learning rate and what the pair's first half holds, chosen on validation."""
  for lr in (3e-4, 1e-3, 3e-3):
    for context in (0, 1):
      add(**{"optim.lr": lr, "objective.masked_basket.context": context,
             "objective.next_basket.context": context})
