"""Rating prediction on MovieLens-1M (survey, Table 3): autoencoders and BERT4Rec.

`data=src` trains on the source domain, `data=tgt` on the cold target (at most 10 ratings a user).
The checkpoint with the smallest pooled RMSE on validation is reported; training stops after five
validations that are no better.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/rating_ml1m.py:model=recjax,data=src \\
      --workdir=runs/src --config.data_dir=DATA
    python -m recjax.train --config=configs/rating_ml1m.py:model=recjax,data=tgt,extra \\
      --workdir=runs/tgt --config.data_dir=DATA --config.transfer.checkpoint=runs/src \\
      --config.transfer.mode=model

Models:
  bert4rec   the survey's: item 128, rating 128, user 32, 6 layers; 15 % of the ratings are hidden.
             The head starts at the mean rating and predictions are clipped to the range of ratings;
             --config.model.mean_bias=false --config.model.clip=false does without
  bert4rec_recjax  the same idea where ratings are few: 2 layers of 64 without users, small tables
             to start with, 30 % hidden
  oppermann  the survey's DACF, as its repository: 256-128-256 sigmoid, Adam 5e-4, batch 16
  nvidia     Kuchaiev & Ginsburg 2017: 512-512-1024-512-512 SELU, dropout 0.8 on the code, one dense
             re-feeding a step, SGD 0.005 with momentum 0.9, batch 128
  recjax     ours: one hidden layer explains what item and user biases leave, of hidden ratings;
             --config.model.biases=false does without them, =true gives them to oppermann

Other arguments: size=full|cpu (narrower bert4rec and nvidia); extra: the autoencoders also read
what the target's users rated in the source domain's train split; items: both forms of bert4rec
learn masked items beside ratings, two losses on one batch (metrics.jsonl has each), and are judged
by ratings; --config.objective.mix.evaluate=masked_item --config.eval.metric=full/ndcg@10
--config.eval.protocols="('full',)" judges items instead.
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, model="bert4rec", data="tgt", size="full", extra=False, items=False)
  config = common.get_config()
  config.dataset = errors.choose({"src": "ml1m_src", "tgt": "ml1m_tgt"}, arg.data, "data")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  config.total_epochs = 60.0
  config.eval.update(metric="rating/rmse", protocols=("rating",), patience=5)
  config.objective.masked_rating = dict(rate=0.15, held_out=3)
  config.objective.autoencode = dict(refeed=0)
  presets = {"bert4rec": _bert4rec, "bert4rec_recjax": _bert4rec_recjax, "oppermann": _oppermann,
             "nvidia": _nvidia, "recjax": _recjax}
  errors.choose(presets, arg.model, "model")(config, small)
  if arg.items:
    if config.model.name != "bert4rec_rating":
      raise errors.UserError("items: only bert4rec learns items beside ratings")
    config.model.item_head = True
    config.objective.name = "mix"
    config.objective.mix.parts = (("masked_rating", 1.0), ("masked_item", 0.1))
  if arg.extra:
    if arg.data == "src" or config.model.name != "autoencoder":
      raise errors.UserError("extra: only the target's autoencoders read ratings of the source")
    config.model.extra_ratings = "ml1m_src"
  return config


def _bert4rec(config, small):
  config.model.update(name="bert4rec_rating", variant="survey_code", rating_width=128,
                      mean_bias=True, clip=True)
  config.objective.name = "masked_rating"
  if small:
    config.model.update(num_layers=2, item_width=64, rating_width=64, user_width=32, heads=2,
                        hidden=256)
    if config.dataset == "ml1m_src":
      config.total_epochs, config.micro_batch = 20.0, 32


def _bert4rec_recjax(config, small):
  del small
  config.model.update(name="bert4rec_rating", variant="recjax", rating_width=64)
  config.objective.name = "masked_rating"
  config.objective.masked_rating.rate = 0.3
  config.optim.lr = 5e-4


def _oppermann(config, small):
  del small  # It is.
  config.model.update(name="autoencoder", variant="oppermann", widths=(256, 128, 256),
                      biases=False)
  config.objective.name = "autoencode"
  config.batch_size = 16
  config.optim.lr = 5e-4


def _nvidia(config, small):
  widths = (128, 128, 256, 128, 128) if small else (512, 512, 1024, 512, 512)
  config.model.update(name="autoencoder", variant="nvidia", widths=widths, dropout=0.8, tied=False,
                      last_act=True)
  config.objective.name = "autoencode"
  config.objective.autoencode.refeed = 1
  config.batch_size = 128
  config.total_epochs = 200.0
  config.optim.update(name="sgd", lr=0.005, momentum=0.9)


def _recjax(config, small):
  del small
  config.model.update(name="autoencoder", variant="recjax", widths=(64,), dropout=0.5,
                      biases=True)
  config.objective.name = "masked_rating"
  config.objective.masked_rating.rate = 0.5
  config.batch_size = 64
  config.optim.update(name="adamw", weight_decay=0.01)


def sweep(add):
  """Around the default model's sizes, chosen on validation."""
  for lr in (1e-3, 3e-4):
    for rate in (0.15, 0.3):
      for dropout in (0.1, 0.3):
        add(**{"optim.lr": lr, "objective.masked_rating.rate": rate, "model.dropout": dropout})
