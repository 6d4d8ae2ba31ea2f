"""Friends on LastFM (HetRec 2011), and any other list of edges.

  python -m recjax.prepare --config=configs/data/lastfm_friends.py --raw_dir=RAW --data_dir=DATA

RAW holds `lastfm-hetrec2011/user_friends.dat` (userID, friendID, with a header; each pair in both
directions). 1,892 users, 12,717 pairs; a tenth of the pairs is held out to validate and a tenth to
test, but none that is the last of its user. Counts are checked; takes a second.
"""

from configs.data import wn18rr


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  config = wn18rr.get_config(arg)
  config.name = "lastfm_friends"
  config.title = "LastFM friends"
  config.files = dict(train="lastfm-hetrec2011/user_friends.dat")
  config.columns = ("head", "tail")
  config.skip = 1
  config.relation = "friend"
  config.symmetric = True
  config.hold_out = dict(val=0.1, test=0.1, seed=0)
  config.expect = dict(entities=1892, val=1272, test=1272, train=20_346)
  return config
