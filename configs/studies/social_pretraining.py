"""Do friends help to know what a user likes? LastFM, masked artists with and without their friends.

Rows: masked items alone (MIP), with vectors of friends pulled together (InfoNCE), with telling
whether two users are friends, with both; each trained from scratch and judged by the artist that is
held out of every user. With `vectors=FILE` also MIP with a vector of every user, and with what a
model of the graph has learned of the user beside it.

Full size: five seeds, 20 runs, for a GPU. `:cpu`: three seeds of a small model, 12 runs; six more
with `vectors`; 22 minutes of a core.

    python -m recjax.prepare --config=configs/data/lastfm.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.prepare --config=configs/data/lastfm_friends.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/social_pretraining.py:cpu --workdir=W \\
      --config.data_dir=DIR

For `social_pretraining.py:cpu,vectors=users.npz` the file is made as configs/social_lastfm.py says.
"""

from configs.studies import common
from recjax import spec

ROWS = (("MIP", "none"), ("MIP + friends", "friends"), ("MIP + connected or not", "connected"),
        ("MIP + both", "both"))
OF_USERS = (("MIP, users", "users"), ("MIP, users with social vectors", "vectors"))


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, vectors="")
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Social-relation-enhanced pre-training on LastFM (size {size})",
    prepare=f"{common.prepare('lastfm')} and {common.prepare('lastfm_friends')}",
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4))
  config.runs = {run: {"config": f"configs/social_lastfm.py:social={run},size={size}"}
                 for _, run in ROWS}
  config.rows = ROWS
  config.baselines = {run: "none" for _, run in ROWS[1:]}
  if arg.vectors:
    for title, run in OF_USERS:
      config.runs[run] = {
        "config": f"configs/social_lastfm.py:social={run},size={size},vectors={arg.vectors}"}
    config.rows += OF_USERS
    config.baselines.update(users="none", vectors="users")
  config.comparisons = (("MIP – popularity", "none", "popularity"),
                        ("both – friends alone", "both", "friends"))
  config.claims = (
    ("Friends make masked item prediction better",
     tuple((run, "none") for _, run in ROWS[1:])),
    *((("Vectors of a social graph help users' own", (("vectors", "users"),)),)
      if arg.vectors else ()))
  config.published = {}
  config.notes = """\
- LastFM's listens have no times: what is held out of a user is random, and the order of artists
  says nothing.
- Friendships are between users that are all in train and in test: they tell the models which users
  are alike, and nothing of the artists that are held out."""
  return config
