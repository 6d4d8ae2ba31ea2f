"""WN18RR, the link-prediction benchmark; and any other graph of tab-separated triples.

  python -m recjax.prepare --config=configs/data/wn18rr.py --raw_dir=RAW --data_dir=DATA

RAW holds `wn18rr/train.txt`, `valid.txt` and `test.txt` (head, relation, tail; plain or .gz), or
those files themselves. Counts are checked: 40,943 entities, 11 relations, 86,835 + 3,034 + 3,134
triples. Takes 2 seconds.

Another graph is a matter of the fields below: which files hold which split, what their columns are,
and, where there is only one file, which random share of its triples is held out.
"""

import ml_collections


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.name = "wn18rr"
  config.title = "WN18RR"
  config.generated = False
  config.format = "triples"

  config.files = dict(train="wn18rr/train.txt", val="wn18rr/valid.txt", test="wn18rr/test.txt")
  config.columns = ("head", "relation", "tail")  # of the files; "" is not read
  config.separator = "\t"
  config.skip = 0  # lines of a header
  config.relation = ""  # of files without such a column
  config.symmetric = False  # True: an edge holds in both directions
  # Shares of train that are held out where `files` names no file for them.
  config.hold_out = dict(val=0.0, test=0.0, seed=0)
  config.items = dict(file="", columns=("item", "entity"))  # which items are entities

  config.check = True
  config.expect = dict(entities=40_943, relations=11, train=86_835, val=3034, test=3134)
  config.notes = ()
  return config
