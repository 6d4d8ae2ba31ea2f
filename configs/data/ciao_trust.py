"""Who trusts whom on Ciao: a directed social graph.

  python -m recjax.prepare --config=configs/data/ciao_trust.py --raw_dir=RAW --data_dir=DATA

RAW holds `ciao/trusts_origin.txt` (truster, trusted, 1; plain or .gz): 111,781 edges. A tenth is
held out to validate and a tenth to test, but none that is the last of a user. 7,317 of the 7,375
users have an edge. Takes 2 seconds.
"""

from configs.data import wn18rr


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  config = wn18rr.get_config(arg)
  config.name = "ciao_trust"
  config.title = "Ciao trust"
  config.files = dict(train="ciao/trusts_origin.txt")
  config.columns = ("head", "tail", "")
  config.relation = "trusts"
  config.hold_out = dict(val=0.1, test=0.1, seed=0)
  config.expect = dict(entities=7317, triples=111_781)
  return config
