"""Any CSV or Parquet table of interactions, with or without domains and item attributes.

  python -m recjax.prepare --config=configs/data/table.py --raw_dir=DIR --data_dir=DIR \
      --config.interactions=listens.csv.gz --config.name=listens

The table (.csv, .tsv, .parquet; text also .gz) has a header and columns user, item, time and, if
there, rating, domain and basket. Ids are kept as texts. Without a domain column one data set NAME
is written; with one, also NAME_DOMAIN for each. No counts are expected; the command prints them. It
takes about one second per million rows; 25 million rows of 162,000 users take 350 MB of memory,
5 million take 330 MB.

Data that do not fit the device that trains on them: `--config.shards=64` writes Parquet files that
training streams. launch/spark_prepare.py does the same on many machines.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.name = "table"
  config.title = "interactions of a table"
  config.generated = False
  config.format = "table"

  config.interactions = "interactions.csv"  # relative to raw_dir
  config.separator = ","  # of CSV; .tsv is split at tabs
  # "" leaves a column out. Those after time may be missing as long as they keep these names. Rows
  # of a user that follow each other with the same basket (without that column: time) are one.
  config.columns = dict(user="user", item="item", time="time", rating="rating", domain="domain",
                        basket="basket")
  config.time_unit = "s"  # s, ms, us, ns, or iso for 2015-03-01 12:00:00
  config.rating_range = ()  # (low, high), inclusive; a rating outside is an error

  # Optional table of items; each column but these two is a feature, `|` between several values.
  config.items = ""
  config.item_columns = dict(item="item", title="title")
  config.features = ()  # names of columns; empty for all
  config.texts = ()  # columns that are prose, for features of kind "text"

  # Optional table of users; each column but their ids is an attribute, one label a user.
  config.users = ""
  config.user_column = "user"

  # Fields of recjax.data.splits.Rule, for the whole and for each domain. `domain_splits` maps a
  # domain to fields of its own, for example {"books": dict(keep_last=15, val=2, test=3,
  # min_interactions=5, min_full=7)}.
  config.split = dict(order="time", unit="interactions", keep_last=0, val=1, test=1,
                      min_interactions=3, min_full=3, min_item_interactions=1, drop_short=True)
  config.domain_splits = dict()

  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict()  # {data set: {manifest key: value or (value, tolerance)}}
  config.legacy_expect = dict()
  config.notes = ()
  return config
