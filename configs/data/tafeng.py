"""Ta-Feng: a grocery's baskets, four months of 2000 and 2001, for next-basket recommendation.

  python -m recjax.prepare --config=configs/data/tafeng.py --raw_dir=DIR --data_dir=DIR

RAW_DIR holds `tafeng/` or its files, tafeng_history.json and tafeng_future.json ({user: [[-1],
basket, ..., [-1]]}; plain or .gz), as the reproducibility studies of next-basket recommendation
share them. Takes 3 seconds. Counts are checked:

  data set   users   items  interactions  baskets
  tafeng    13,858  11,997       571,933   91,227   the last basket tests, the one before validates

The last basket of each user is the one in tafeng_future.json, and the 77,369 others are the
histories. A user has at least three baskets, so at least one to train on. Items may recur in any
later basket, as 19 % of a future basket's items do on average; nobody lists one twice in a basket.
The files have no times: a basket's place among its user's stands for it.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "Ta-Feng baskets"
  config.generated = False
  config.format = "baskets"

  config.baskets = (  # relative to raw_dir; each continues the users of the first
    "tafeng/tafeng_history.json", "tafeng/tafeng_future.json")

  # Fields of recjax.data.splits.Rule, which count baskets.
  config.datasets = dict(tafeng=dict(
    unit="baskets", val=1, test=1, min_interactions=3, min_full=3, min_item_interactions=1,
    drop_short=True))

  # {data set: {manifest key: value or (value, tolerance)}}
  config.check = True
  config.expect = dict(
    tafeng=dict(users=13_858, items=11_997, interactions=571_933, baskets=91_227,
                evaluated_users=13_858))
  config.legacy_expect = dict()
  config.notes = ()
  return config
