"""Shallow transfer between two domains with shared users: MLP, MLP++, CoNet (Hu et al. 2018).

`model=mlp` is the paper's base network on one domain: vectors of 32, a tower 64, 32, 16, 8, weights
started N(0, 0.01), one unseen negative an interaction, Adam 1e-3, batches of 128, 50 epochs and
clipped gradients. Its users carry over to the other domain:

    python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/conet.py:model=mlp,domain=src --workdir=runs/kitchen \\
      --config.data_dir=DATA
    python -m recjax.train --config=configs/conet.py:model=mlp --workdir=runs/food \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/kitchen \\
      --config.transfer.mode=embedding

`model=mlp++` learns both domains at once, a tower each on the same users; `model=conet` connects
the towers; `model=sconet` also keeps the connections sparse, by an L1 penalty whose size is ours
(--config.objective.cross_pair.sparsity). The target domain is the run's data set, the other one
`model.other`:

    python -m recjax.train --config=configs/conet.py --workdir=runs/conet --config.data_dir=DATA

The last item of a user tests, ranked among 99 unseen items of the domain (`uniform100_domain`;
HR@10 is recall@10) and among all (`full`).

Arguments: model=conet|sconet|mlp++|mlp, data=food_kitchen (to food from kitchen)|cold (the same,
at most 5 training items a target user)|douban (to music from book), domain=tgt|src, size=full|cpu
(batches of 512, 20 epochs).
"""

from configs import common
from recjax import errors
from recjax import spec

DATA = {  # target, source
  "food_kitchen": ("food_src", "kitchen_src"),
  "cold": ("food_tgt", "kitchen_src"),
  "douban": ("douban_music", "douban_book"),
}
SIZES = {"full": (128, 50.0), "cpu": (512, 20.0)}
SPARSITY = {"conet": 0.0, "sconet": 1e-4, "mlp++": 0.0, "mlp": 0.0}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, model="conet", data="food_kitchen", domain="tgt", size="full")
  sparsity = errors.choose(SPARSITY, arg.model, "model")
  target, source = errors.choose(DATA, arg.data, "data")
  config = common.get_config()
  config.dataset, other = errors.choose(
    {"tgt": (target, source), "src": (source, target)}, arg.domain, "domain")
  config.model.update(name="conet", variant="conet" if arg.model == "sconet" else arg.model,
                      factors=8, num_layers=3, initializer="small")
  pairs = dict(criterion="bce", num_negatives=1, calibration=0.75, negatives="position",
               unseen=True, proposal="uniform", power=0.75)
  if arg.model == "mlp":
    config.model.name = "neumf"
    config.objective.name, config.objective.pair = "pair", pairs
  else:
    config.model.other = other
    config.objective.name = "cross_pair"
    config.objective.cross_pair = dict(pairs, sparsity=sparsity)
  config.batch_size, config.total_epochs = errors.choose(SIZES, arg.size, "size")
  config.optim.clip_norm = 10.0  # of all gradients together; the released code's is of each
  config.eval.update(metric="uniform100_domain/ndcg@10", num_negatives=99,
                     protocols=("uniform100_domain", "full"), contexts=("train",))
  return config


def sweep(add):
  """Learning rates, chosen on validation."""
  for lr in (1e-3, 3e-4):
    add(**{"optim.lr": lr})
