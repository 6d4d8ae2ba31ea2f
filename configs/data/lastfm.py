"""What users of LastFM listen to (HetRec 2011); who their friends are is data/lastfm_friends.py.

  python -m recjax.prepare --config=configs/data/lastfm.py --raw_dir=RAW --data_dir=DATA

RAW holds `lastfm-hetrec2011/user_artists.dat` (userID, artistID, how often, with a header): the at
most 50 artists that each of 1,892 users plays most. Takes a second. Artists of fewer than five
users are left out (23 % of the rows), and then users with fewer than three. Counts are checked:

  data set  users  items  interactions  mean train
  lastfm    1,868  2,828        71,426      36.226   one tests, one validates, the rest trains

There are no times (the dates of tags are months, of few users), so what is held out of a user is
random, by `seed`, and the order of a "sequence" says nothing: models learn which artists go
together. Users have the ids of the social graph.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "LastFM artists"
  config.generated = False
  config.format = "untimed"

  config.files = dict(lastfm="lastfm-hetrec2011/user_artists.dat")  # relative to raw_dir
  config.skip = 1  # the header
  config.rating_range = ()  # any: how often a user played an artist
  config.seed = 0  # of the order of a user's interactions

  # Fields of recjax.data.splits.Rule.
  config.datasets = dict(lastfm=dict(
    domain=None, order="time", keep_last=0, val=1, test=1, min_interactions=3, min_full=3,
    min_item_interactions=5, drop_short=True))

  # {data set: {manifest key: value or (value, tolerance)}}
  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict(lastfm=dict(users=1868, items=2828, interactions=71_426))
  config.legacy_expect = dict()
  config.notes = ()
  return config
