"""Does pre-training on one domain help another? BERT4Rec on small generated data, three seeds.

Grid: transfer {none, embedding, model} x pre-training task {next item, masked item}. The data are
generated so that transfer helps (configs/data/demo.py): the report shows that everything works, not
how good a method is. 17 runs, two minutes on two CPU cores.

    python -m recjax.study --config=configs/studies/demo.py --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; there are no arguments."""
  spec.parse_arg(arg)  # One that is given is a mistake.
  return common.transfer_study(
    "Transfer by pre-training: BERT4Rec on generated data",
    prepare="python -m recjax.prepare --config=configs/data/demo.py --data_dir={data_dir}",
    source="configs/bert4rec_demo.py:data=src", target="configs/bert4rec_demo.py:data=tgt",
    seeds=(0, 1, 2), source_seeds=(0, 0, 0))
