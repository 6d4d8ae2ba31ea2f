"""Pre-training with friends on LastFM: BERT4Rec over artists, whose users know each other.

    social=none       masked items alone
    social=friends    + 0.1 InfoNCE: vectors of friends' artists are pulled together (t = 0.1)
    social=connected  + 0.1 telling from two users' artists whether they are friends
    social=both
    social=users      masked items alone, with a vector of every user
    social=vectors    the same vector + what a graph's model has learned of the user: `vectors=FILE`

Judged by the artist that is held out of every user, random as all order in these data (see
configs/data/lastfm.py). Of the friendships four fifths are learned from, those that
configs/data/lastfm_friends.py trains on. Of the first four none has a user embedding: what friends
share has to be in what they listen to. configs/studies/social_pretraining.py asks what it gains.

    python -m recjax.prepare --config=configs/data/lastfm.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.prepare --config=configs/data/lastfm_friends.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/social_lastfm.py:social=friends,size=cpu \\
      --workdir=runs/friends --config.data_dir=DATA

The vectors of users are made of the same friendships:

    python -m recjax.train --config=configs/social.py:deepwalk,data=lastfm_friends,size=cpu \\
      --workdir=runs/deepwalk --config.data_dir=DATA
    python -m recjax.export --workdir=runs/deepwalk --leaves=second/embedding --output=users.npz
    python -m recjax.train \\
      --config=configs/social_lastfm.py:social=vectors,vectors=users.npz,size=cpu \\
      --workdir=runs/vectors --config.data_dir=DATA

size=full reads all artists with 2 layers of 64, for 200 epochs; size=cpu 25 of them, drawn anew in
every step, with 2 layers of 32, for 50 epochs. Pairs are compared within groups of 32.

Arguments: social (above), size=full|cpu, vectors=FILE.
"""

from configs import common
from recjax import errors
from recjax import spec

PARTS = {"none": (), "users": (), "vectors": (),
         "friends": (("friends", 0.1),), "connected": (("connected", 0.1),),
         "both": (("friends", 0.1), ("connected", 0.1))}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, social="friends", size="full", vectors="")
  parts = errors.choose(PARTS, arg.social, "social")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  config = common.get_config()
  config.dataset = "lastfm"
  config.model.update(num_layers=2, item_width=64, user_width=0, heads=2, hidden=256, max_len=50)
  config.batch_size, config.micro_batch, config.total_epochs = 128, 32, 200.0
  if arg.social in ("users", "vectors"):
    config.model.user_width = 32
  if arg.social == "vectors":
    config.model.user_features = common.exported("friends", arg.vectors, argument="social=vectors")
  if small:
    config.model.update(item_width=32, hidden=128, max_len=25)
    config.total_epochs = 50.0
  config.eval.update(every_epochs=config.total_epochs / 10, contexts=("train",),
                     protocols=("full", "uniform100_domain"))
  config.objective.update(
    name="mix", window="random",
    friends=dict(graph="lastfm_friends", projection=32, temperature=0.1, pool="mean", group=32),
    connected=dict(graph="lastfm_friends"))
  config.objective.mix.parts = (("masked_item", 1.0), *parts)
  return config


def sweep(add):
  """The weight of friends and the temperature, chosen on validation."""
  for weight in (0.0, 0.03, 0.1, 0.3):
    add(**{"objective.mix.parts": (("masked_item", 1.0), ("friends", weight))})
  for temperature in (0.05, 0.5):
    add(**{"objective.friends.temperature": temperature})
