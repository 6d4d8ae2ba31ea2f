"""Douban Book and Music: two domains of ratings that share users, without times.

  python -m recjax.prepare --config=configs/data/douban.py --raw_dir=DIR --data_dir=DIR

RAW_DIR holds `douban-book-music/` or its files, douban_book_ratings.dat and
douban_music_ratings.dat (lines of user, item and rating with tabs between; plain or .gz). Takes 2
seconds. Counts are checked:

  data set      users   items  interactions  mean train
  douban        2,012  12,344       165,750      80.243   one tests, one validates, the rest trains
  douban_book   1,870   6,777        96,041      49.178   the same
  douban_music  1,330   5,567        69,709      50.065   the same

Users with fewer than three ratings are left out; of all 2,216, 1,566 have rated in both domains.
There are no times, and nobody says what the order of the rows means. So what is held out of a user
is chosen at random, by `seed`, and not by the order of the files, which might be that of time or
its reverse. The `times` of these data sets are that random order.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "Douban Book and Music"
  config.generated = False
  config.format = "untimed"

  config.files = dict(book="douban-book-music/douban_book_ratings.dat",  # relative to raw_dir
                      music="douban-book-music/douban_music_ratings.dat")
  config.rating_range = (1, 5)
  config.seed = 0  # of the order of a user's interactions

  # Fields of recjax.data.splits.Rule.
  whole = dict(domain=None, order="time", keep_last=0, val=1, test=1, min_interactions=3,
               min_full=3, min_item_interactions=1, drop_short=True)
  config.datasets = dict(douban=whole, douban_book={**whole, "domain": "book"},
                         douban_music={**whole, "domain": "music"})

  # {data set: {manifest key: value or (value, tolerance)}}
  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict(
    # 2,110 users of books and 1,672 of music: 1,566 of both.
    douban=dict(vocabulary_users=2110 + 1672 - 1566, items=12_344, interactions=165_750),
    douban_book=dict(absent_users=1672 - 1566, items=6777, interactions=96_041),
    douban_music=dict(absent_users=2110 - 1566, items=5567, interactions=69_709),
  )
  config.legacy_expect = dict()
  config.notes = ()
  return config
