"""MovieLens-1M, whole and cut into the two domains of the survey (Zeng et al. 2021, Sec. 4).

  python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=DIR --data_dir=DIR

RAW_DIR holds `ml-1m/` (ratings.dat, movies.dat and, for what users are, users.dat, plain or .gz),
or those files themselves, or `ml-1m.zip`; with --config.download=true the zip is fetched into it
(5.9 MB). Takes 3 seconds.

A movie is in the target domain iff its first-listed genre is one of eight. Interactions are sorted
by (time, row of ratings.dat). What to expect (the build fails otherwise; --config.check=false
lifts that, for ML-1M-like data):

  data set   users  items  interactions  mean train  evaluated
  ml1m       6,040  3,706     1,000,209     163.598      6,040   last 1 tests, 1 before validates
  ml1m_5core 6,040  3,416       999,611     163.499      6,040   the same, items with 5 ratings
  ml1m_src   6,040  2,656       621,521      97.923      5,942   2 validate, 3 test, rest trains
  ml1m_tgt   5,811  1,050        80,649       8.846      5,811   last 15: up to 10 train, 2, 3
  ml1m_tgt_asreleased
             5,577  1,050       378,602       4.758      5,577   file order: up to 5 train, 3, 3

`ml1m_5core` is the data of the modern leaderboards, row for row that of the SASRec repository.
Table 1 of the survey prints 622k interactions with 97.9 training items and 81k with 8.85.

`ml1m_tgt_asreleased` is what the survey's released Caser files (c_train, c_eval, c_test) hold, user
by user: the last 11 target ratings of everyone with 7 or more (but user 6040), in the order of
ratings.dat, which is not that of time. 59,998 of the interactions are split. The rest are older
ones, kept so that they are never drawn as negatives, and those of users with fewer than 7. Use it
only to reproduce those rows of the survey.

Movies have the feature `genre` and, for each table of `metadata` found below RAW_DIR, those of

  table   features, each with (rated movies that have one, distinct values)
  imdb    imdb_director (1,099, 638)  imdb_actor (1,099, 1,796)      IMDB-5000, by title and year
  omdb    director (3,695, 2,033)  writer (3,630, 5,141)  actor (3,698, 7,512)
  survey  survey_director (1,987, 1,148)  survey_actor (1,987, 4,080)  anonymous numbers

Users have the attributes gender (2 values), age (7 groups) and occupation (21), of users.dat. Texts
of movies are `title` and, from the table omdb, `plot` (3,685 movies; cut after 1,024 bytes).

The manifests' `items_with_metadata` counts the movies with any feature but genre. With the survey's
table alone it is 1,987 for ml1m and 1,381 for ml1m_src as in Table 1, but 606 for ml1m_tgt (594
among the movies that are left in it), where Table 1 prints 512.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.title = "MovieLens-1M"
  config.generated = False
  config.format = "ml1m"

  # Only with download=true, and only if raw_dir has no ML-1M.
  config.download = False
  config.url = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
  config.md5 = "c4d9eecfca2ab87c1945afe126590906"
  config.max_bytes = 8 << 20

  config.rating_range = (1, 5)
  config.domains = dict(
    tgt=("Action", "Thriller", "Crime", "Horror", "Mystery", "Film-Noir", "War", "Fantasy"),
    src=("Comedy", "Drama", "Adventure", "Animation", "Children's", "Romance", "Documentary",
         "Sci-Fi", "Western", "Musical"),
  )

  # Tables of who made the movies, relative to raw_dir or right in it, plain or .gz. "" leaves one
  # out; one that is not there is left out with a note. The survey's is released as a pickle, which
  # is never read: save {movie: [[directors], [actors]]} as JSON.
  config.metadata = dict(imdb="imdb-5000/movie_metadata.csv",
                         omdb="ml1m-text/movies_extrainfos.dat",
                         survey="authors-release/seq_meta.json")

  # Fields of recjax.data.splits.Rule. Every field that one may want to override is spelled out.
  whole = dict(domain=None, order="time", keep_last=0, train=0, val=1, test=1, min_interactions=3,
               min_full=3, min_item_interactions=1, drop_short=True)
  config.datasets = dict(
    ml1m=whole,
    ml1m_5core={**whole, "min_item_interactions": 5},
    # 98 users have at most 5 source movies: no training items, yet Table 1's mean counts them.
    ml1m_src={**whole, "domain": "src", "val": 2, "test": 3, "min_interactions": 6, "min_full": 6,
              "drop_short": False},
    # Users with 5 or 6 target movies train and test but do not validate; with fewer they are out.
    # legacy_overlap=true lets those validate on two of their three test items, as the released
    # code did. legacy_drop_last_user=true loses user 6040, as the released target file did.
    ml1m_tgt={**whole, "domain": "tgt", "keep_last": 15, "val": 2, "test": 3,
              "min_interactions": 5, "min_full": 7, "legacy_overlap": False,
              "legacy_drop_last_user": False},
    ml1m_tgt_asreleased={**whole, "domain": "tgt", "order": "file", "train": 5, "val": 3,
                         "test": 3, "min_interactions": 7, "min_full": 7,
                         "legacy_drop_last_user": True},
  )

  # {data set: {manifest key: value or (value, tolerance)}}
  config.shards = 0  # Parquet files to spread the users over; 0: arrays that fit a device
  config.check = True
  config.expect = dict(
    ml1m=dict(users=6040, items=3706, interactions=1_000_209, evaluated_users=6040),
    ml1m_5core=dict(users=6040, items=3416, interactions=999_611, evaluated_users=6040),
    ml1m_src=dict(users=6040, items=2656, interactions=621_521, mean_train_length=(97.9, 0.05)),
    ml1m_tgt=dict(users=5811, items=1050, interactions=80_649, evaluated_users=5811,
                  mean_train_length=(8.846, 0.001)),
    ml1m_tgt_asreleased=dict(users=5577, items=1050, evaluated_users=5577,
                             mean_train_length=(4.758, 0.001)),
  )
  # Replaces entries of `expect` for a data set with legacy_drop_last_user=true.
  config.legacy_expect = dict(
    ml1m_tgt=dict(users=5810, interactions=80_634, evaluated_users=5810),
  )
  config.notes = (
    "ml1m_tgt has 5,811 evaluated users and 80,649 interactions. The survey's 5,810 (and 80,634) "
    "arise because its released target file lacks the last user, 6040, apparently never flushed; "
    "--config.datasets.ml1m_tgt.legacy_drop_last_user=true reproduces them.",
  )
  return config
