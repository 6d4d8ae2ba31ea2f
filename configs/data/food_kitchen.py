"""Amazon Food and Kitchen: two domains that share all users, with times.

  python -m recjax.prepare --config=configs/data/food_kitchen.py --raw_dir=DIR --data_dir=DIR

RAW_DIR holds `amazon-food-kitchen/` or its files: afk_50_preprocessed.txt (one user a line, "user
item|time item|time ..."; plain or .gz), map_item_50.txt ({asin: [number, domain]}, food 0, kitchen
1) and map_user_50.txt ({id: number}). Takes 2 seconds. Counts are checked:

  data set      users   items  interactions  mean train
  food_kitchen  7,144  28,095       173,548      22.293   last 1 tests, 1 before validates
  food_src      7,144  11,837        83,663       9.711   the same
  kitchen_src   7,144  16,258        89,885      10.582   the same
  food_tgt      7,144  11,837        46,444       4.501   last 7: up to 5 train, 1, 1
  kitchen_tgt   7,144  16,258        47,294       4.620   the same

Either domain can be the source of the other; kitchen, the larger, to food is the usual direction
(kitchen_src, then food_tgt). Every user has 5 to 45 interactions in each domain, in the median 9
with food and 10 with kitchen. ML-1M's 2 + 3 held-out items would leave no training items to users
with 5 (18 % with food, 14 % with kitchen), and its last 15 would cut only one user in four: so one
item validates and one tests, and a cold target user keeps the last 7, of which 3 to 5 train.

Nobody chooses an item twice. Times are whole days, and what one user chose in one day is listed by
item number (food first): the order within a day says nothing. Ties keep it. Domains are cut before
anything is split, so that a target test item may be older than source training items.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "Amazon Food and Kitchen"
  config.generated = False
  config.format = "sequences"

  config.sequences = "amazon-food-kitchen/afk_50_preprocessed.txt"  # all relative to raw_dir
  config.item_map = "amazon-food-kitchen/map_item_50.txt"  # "": numbers are ids, one domain
  config.user_map = "amazon-food-kitchen/map_user_50.txt"  # "": numbers are ids
  config.item_domains = ("food", "kitchen")  # names of the codes 0, 1, ... in the map of items
  config.time_unit = "s"

  # Fields of recjax.data.splits.Rule.
  whole = dict(domain=None, order="time", keep_last=0, val=1, test=1, min_interactions=3,
               min_full=3, min_item_interactions=1, drop_short=True)
  config.datasets = dict(
    food_kitchen=whole,
    food_src={**whole, "domain": "food"},
    kitchen_src={**whole, "domain": "kitchen"},
    food_tgt={**whole, "domain": "food", "keep_last": 7},
    kitchen_tgt={**whole, "domain": "kitchen", "keep_last": 7},
  )

  # {data set: {manifest key: value or (value, tolerance)}}
  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict(
    food_kitchen=dict(users=7144, items=28_095, interactions=173_548, evaluated_users=7144),
    food_src=dict(users=7144, items=11_837, interactions=83_663, evaluated_users=7144),
    kitchen_src=dict(users=7144, items=16_258, interactions=89_885, evaluated_users=7144),
    food_tgt=dict(users=7144, items=11_837, interactions=46_444, evaluated_users=7144),
    kitchen_tgt=dict(users=7144, items=16_258, interactions=47_294, evaluated_users=7144),
  )
  config.legacy_expect = dict()
  config.notes = ()
  return config
