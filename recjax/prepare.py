"""Prepares raw interactions, or the triples of a graph, for training.

  python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=DIR --data_dir=DIR

writes `DATA_DIR/<data set>/` for every data set of the config and prints their counts.
"""

from absl import flags

from recjax import cli
from recjax.data import graph_prepare, prepare


def main(argv):
  """Runs the command on absl's flags."""
  del argv
  cli.require(flags.FLAGS, "config", "data_dir")
  config = flags.FLAGS.config
  make = graph_prepare.prepare_graph if config.format == "triples" else prepare.prepare
  make(config, raw_dir=flags.FLAGS.raw_dir, data_dir=flags.FLAGS.data_dir)


if __name__ == "__main__":
  cli.define_config("config")
  flags.DEFINE_string("raw_dir", None, "Folder of the raw data; formats that generate need none.")
  flags.DEFINE_string("data_dir", None, "Folder that the prepared data sets go to.")
  cli.run(main)
