"""A small generated two-domain data set, for the quick start and for tests. Nothing is downloaded.

  python -m recjax.prepare --config=configs/data/demo.py --data_dir=DIR

Writes `demo`, `demo_src` and `demo_tgt` in 2 seconds. 1,500 users, most of them in both domains,
have one taste each, long source histories and short target ones, so that what is learned about a
user in the source helps in the target by construction (recjax/data/demo.py tells how). Items have
the features `genre` and `creator`, whose values both domains share.

  data set  users  items  interactions  mean train
  demo      1,500    500        70,277      44.851   last one tests, one before validates
  demo_src  1,368    300        59,443      38.452   2 validate, 3 test
  demo_tgt  1,262    200        10,834       3.779   2 validate, 3 test

Ranking all target items with plain linear algebra gives NDCG@10 = 0.10 by popularity, 0.17 from the
target's training items and 0.23 from user factors of the source alone.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "generated two-domain demo"
  config.generated = True
  config.format = "demo"
  config.generate = dict(seed=0, users=1500, source_items=300, target_items=200, creators=40, dim=8,
                         both=0.8)

  # Fields of recjax.data.splits.Rule; the target is split as in configs/data/ml1m.py.
  whole = dict(domain=None, keep_last=0, val=1, test=1, min_interactions=3, min_full=3,
               min_item_interactions=1, drop_short=True)
  config.datasets = dict(
    demo=whole,
    demo_src={**whole, "domain": "src", "val": 2, "test": 3, "min_interactions": 6, "min_full": 6},
    demo_tgt={**whole, "domain": "tgt", "keep_last": 15, "val": 2, "test": 3,
              "min_interactions": 5, "min_full": 7},
  )

  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict()
  config.legacy_expect = dict()
  config.notes = ()
  return config
