"""Table 2's study on a second pair of domains, Amazon Kitchen to Food: only the configs differ.

Grid: {Caser, BERT4Rec} x {none, embedding, model} x {NIP, MIP}, ten rows (there is no metadata),
and ItemKNN. `:cpu` and `:proof` as in configs/studies/table2.py; `reverse` transfers from Food to
Kitchen.

    python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/food_kitchen.py:cpu --workdir=W \\
      --config.data_dir=DIR
"""

from configs.studies import common
from configs.studies import table2
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, proof=False, reverse=False)
  size = "cpu" if arg.cpu else "full"
  tail = "data={data},size={size}" + ",reverse" * arg.reverse
  title = ("Transfer by pre-training, Amazon "
           f"{'Food to Kitchen' if arg.reverse else 'Kitchen to Food'}")
  config = table2.grid(
    f"{title} (size {size})",
    configs={"caser": f"configs/caser_food_kitchen.py:{tail},task={{task}}",
             "bert4rec": f"configs/bert4rec_food_kitchen.py:{tail}"},
    size=size, metas=("none",), share_sources=arg.cpu)
  config.prepare = common.prepare("food_kitchen")
  target = "kitchen_tgt" if arg.reverse else "food_tgt"
  config.runs.item_knn = {"config": f"configs/item_knn.py:dataset={target}", "seeds": (0,)}
  config.rows += (("ItemKNN", "item_knn"),)
  if arg.proof:
    common.proof(config, f"{title} at full size")
  return config
