"""MovieLens-1M as the modern leaderboards rank it: leave-one-out, all 3,416 items, T = 200.

What others reach there, Recall@10 / NDCG@10: SASRec with full softmax .3152/.1821 (Klenitskiy and
Vasilev 2023), gSASRec .3003/.1726, BERT4Rec .2821/.1516 and SASRec with its own loss .2392/.1259
(Petrov and Macdonald 2023, 2022).

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/leaderboard_ml1m.py:sasrec --workdir=runs/sasrec \\
      --config.data_dir=DATA

The leaderboards give the model a test user's whole past: read the context `train+val`.

Arguments: model=sasrec|bert4rec|gsasrec|sasrec_bce|gru4rec (or such a name alone), size=full|cpu,
negatives=position|row.

    sasrec      small pre-norm blocks, full softmax
    gsasrec     as its authors: width 128, 256 negatives for every position, dropout 0.5; but for
                where it starts (recjax/models/sasrec.py)
    sasrec_bce  as its authors: width 50, one unseen negative for every position
    gru4rec     width 128, full softmax

`size=cpu` halves the width of gsasrec and gru4rec, to 64. `negatives=row` lets the positions of a
row share the negatives of gsasrec: half the CPU time, the same gradient in expectation. Neither is
the published model: say so beside the numbers.
"""

from configs import common
from configs import sasrec_ml1m
from recjax import errors
from recjax import spec

EPOCHS = {"sasrec": 200.0, "bert4rec": 400.0, "gsasrec": 400.0, "sasrec_bce": 400.0,
          "gru4rec": 200.0}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, model="sasrec", size="full", negatives="position",
                       **dict.fromkeys(EPOCHS, False))
  chosen = next((name for name in EPOCHS if arg[name]), arg.model)
  config = common.get_config()
  config.dataset = "ml1m_5core"
  config.batch_size = 128
  config.micro_batch = 16  # what fits a CPU's cache
  config.micro_lengths = (50, 100, 150)
  config.eval.every_epochs = 5.0
  config.eval.patience = 10
  config.total_epochs = errors.choose(EPOCHS, chosen, "model")
  if chosen == "bert4rec":
    config.model.update(name="bert4rec", variant="bert4rec")
    config.objective.masked_item.rate = 0.2
    return config
  config.objective.name = "causal_next_item"
  if chosen == "gru4rec":
    config.model.update(name="gru4rec", variant="gru4rec")
    config.micro_batch = 32  # one step for every position: wider ones are quicker
  else:
    variant = {"sasrec_bce": "kang"}.get(chosen, chosen)
    config.model.update(name="sasrec", variant=variant)
    sasrec_ml1m.train_as(config, variant)
  if errors.choose({"full": False, "cpu": True}, arg.size, "size") and (
      chosen in ("gsasrec", "gru4rec")):
    config.model.update(item_width=64, hidden=64)
  if chosen == "gsasrec":
    config.objective.causal_next_item.negatives = arg.negatives
  return config
