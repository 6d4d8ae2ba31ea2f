"""MovieLens-1M as the modern leaderboards rank it: leave-one-out, all 3,416 items, T = 200.

What others reach there, Recall@10 / NDCG@10: SASRec with full softmax .3152/.1821 (Klenitskiy and
Vasilev 2023), gSASRec .3003/.1726 and BERT4Rec .2821/.1516 (Petrov and Macdonald 2023, 2022).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/leaderboard_ml1m.py:sasrec --workdir=runs/sasrec \\
      --config.data_dir=DATA

The leaderboards give the model a test user's whole past: read the context `train+val`.

Arguments: model=sasrec|bert4rec (or either name alone).
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, model="sasrec", sasrec=False, bert4rec=False)
  chosen = "bert4rec" if arg.bert4rec else "sasrec" if arg.sasrec else arg.model
  config = common.get_config()
  config.dataset = "ml1m_5core"
  config.batch_size = 128
  config.micro_batch = 16  # what fits a CPU's cache
  config.eval.every_epochs = 5.0
  config.eval.patience = 10
  config.total_epochs = errors.choose({"sasrec": 200.0, "bert4rec": 400.0}, chosen, "model")
  config.model.update(name=chosen, variant=chosen)
  if chosen == "sasrec":
    config.objective.name = "causal_next_item"
  else:
    config.objective.masked_item.rate = 0.2
  return config
