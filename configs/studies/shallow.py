"""Shallow transfer between two domains with shared users (Hu et al. 2018).

Rows: the base MLP on the target alone, the same from the user vectors of the MLP of the source,
MLP++, CoNet and SCoNet, which learn both domains at once. `data=food_kitchen` (default), `cold`
(target users with at most 5 training items) or `douban`. `:cpu` takes 7 to 16 minutes of an AVX-512
core, 40 of an older one; the full size has not been run.

    python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.prepare --config=configs/data/douban.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/shallow.py:cpu --workdir=W \\
      --config.data_dir=DIR
"""

from configs.studies import common
from recjax import errors
from recjax import spec

TITLES = {"food_kitchen": "Amazon Kitchen to Food", "cold": "Amazon Kitchen to Food, cold users",
          "douban": "Douban Book to Music"}


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, data="food_kitchen", seeds=3)
  size = "cpu" if arg.cpu else "full"
  title = errors.choose(TITLES, arg.data, "data")
  config = common.study(
    f"Shallow transfer, {title} (size {size})",
    prepare=common.prepare("douban" if arg.data == "douban" else "food_kitchen"),
    seeds=tuple(range(arg.seeds)),
    headline=("recall@10", "ndcg@10", "mrr"))
  path = f"configs/conet.py:data={arg.data},size={size},model={{model}}"
  config.runs = {
    "mlp": {"config": path.format(model="mlp")},
    "source": {"config": path.format(model="mlp") + ",domain=src"},
    "mlp_users": {"config": path.format(model="mlp"), "source": "source", "mode": "embedding"},
    "mlp_plus": {"config": path.format(model="mlp++")},
    "conet": {"config": path.format(model="conet")},
    "sconet": {"config": path.format(model="sconet")}}
  config.rows = (("MLP", "mlp"), ("MLP, users of the source", "mlp_users"), ("MLP++", "mlp_plus"),
                 ("CoNet", "conet"), ("SCoNet", "sconet"))
  config.baseline = "mlp"
  metric = "uniform100_domain/ndcg@10"
  config.claims = (
    ("Users of the source help the target", (("mlp_users", "mlp"),), metric),
    ("Learning both domains at once helps", (("mlp_plus", "mlp"), ("conet", "mlp")), metric),
    ("Connections across help beyond shared users", (("conet", "mlp_plus"),), metric),
    ("Sparse connections are better", (("sconet", "conet"),), metric))
  config.published = {}
  config.notes = """\
- The paper's data are not these. On Amazon, books from movies, it has HR@10, NDCG@10 and MRR (99
  negatives) of .5014, .3143 and .3113 for MLP, .5050, .3175 and .3053 for MLP++, .5167, .3261 and
  .3163 for CoNet, .5338, .3424 and .3351 for SCoNet; and says that the gain of carrying the users'
  vectors over is "so small that it can be ignored"."""
  return config
