"""Does next-basket pre-training help to recommend the next basket? Ta-Feng (Yang et al. 2019).

Rows: no pre-training, pre-trained to fill in masked items (MIP), and by that and next-basket
prediction (MIP + NBP), all fine-tuned alike, beside popularity and personal frequency. All of it
uses the same users and the same training baskets, so that pre-training has no further data.

Full size: three seeds with a pre-training each, 12 runs, for a GPU or TPU. `:cpu`: a small model,
pre-trained once a task and fine-tuned with three seeds, 11 runs, 49 minutes of an AVX-512 core. The
full size has not been run.

    python -m recjax.prepare --config=configs/data/tafeng.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/nbp.py:cpu --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Next-basket pre-training on Ta-Feng (size {size})",
    prepare=common.prepare("tafeng"),
    seeds=(0, 1, 2),
    headline=("ndcg@10", "recall@10", "f1@5", "hit@5"))

  tune = f"configs/nbp_tafeng.py:phase=tune,size={size}"
  config.runs = {"none": {"config": tune}}
  for tasks in ("mip", "mip_nbp"):
    common.add_transfer(
      config, tasks, source=f"source_{tasks}", tune=tune, shared=arg.cpu,
      pretrain=f"configs/nbp_tafeng.py:phase=pretrain,tasks={tasks},size={size}")
  config.rows = (("none", "none"), ("MIP", "mip"), ("MIP + NBP", "mip_nbp"))
  config.baseline = "none"
  config.comparisons = (
    ("none – personal frequency", "none", "personal_frequency"),
    ("MIP + NBP – personal frequency", "mip_nbp", "personal_frequency"),
    ("MIP + NBP – MIP", "mip_nbp", "mip"))
  config.claims = (
    ("Pre-training helps to recommend the next basket", (("mip", "none"), ("mip_nbp", "none"))),
    ("Next-basket prediction adds to masked items", (("mip_nbp", "mip"),)),
    ("The models beat personal frequency", (("none", "personal_frequency"),
                                            ("mip_nbp", "personal_frequency"))))
  config.published = {}
  config.notes = """\
- MIP: masked item prediction; NBP: next-basket prediction, whether a basket is the user's next.
- `full_repeats` ranks all items, those of the history included. `personal_frequency` ranks them by
  how often the user has bought them, then by how often everybody has.
- Recall divides by the smaller of k and the basket's size, F1 is of hits / k and hits / size."""
  if arg.cpu:
    config.notes += common.SHARED
  return config
