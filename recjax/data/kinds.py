"""Prepared data sets of any kind: the one place that tells sequences from graphs on disk."""

from recjax import errors
from recjax.data import graphs, sequences

LOADERS = {sequences.KIND: sequences.load, graphs.KIND: graphs.load}


def load(data_dir, name):
  """Returns the data set `name` of `data_dir`: a `sequences.Dataset` or a `graphs.Graph`."""
  kind = sequences.read_manifest(data_dir, name).get("kind", sequences.KIND)
  return errors.choose(LOADERS, kind, f"the kind of data set {name!r}")(data_dir, name)
