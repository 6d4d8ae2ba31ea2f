"""A knowledge graph of MovieLens-1M's movies: who directs, writes and stars, genre, country, ...

  python -m recjax.prepare --config=configs/data/ml1m_kg.py --raw_dir=RAW --data_dir=DATA

RAW holds `ml1m-kg/kg.txt` (head, relation, tail) and `ml1m-kg/item_index2entity_id.txt` (MovieLens
id, entity), as MKR (Wang et al. 2019) publishes them: 20,782 triples of 7,008 entities and 7
relations; 2,347 movies are entities. A tenth of the triples is held out, half to validate and half
to test, but none that is the last of its entity. Counts are checked; takes a second.
"""

from configs.data import wn18rr


def get_config(arg=None):
  """Returns the config; `arg` is not used."""
  config = wn18rr.get_config(arg)
  config.name = "ml1m_kg"
  config.title = "MovieLens-1M knowledge graph"
  config.files = dict(train="ml1m-kg/kg.txt")
  config.hold_out = dict(val=0.05, test=0.05, seed=0)
  config.items = dict(file="ml1m-kg/item_index2entity_id.txt", columns=("item", "entity"))
  config.expect = dict(entities=7008, relations=7, triples=20_782)
  return config
