"""Vectors of users from who knows whom: do walks or edges tell better who else is a friend?

DeepWalk, node2vec whose walks stay near (p = 0.25, q = 4) or go far (p = 4, q = 0.25), LINE of both
orders and of each alone, on the friends of LastFM or the trust of Ciao. Held-out edges are told
from pairs without one; popularity, how many edges the other user has, stands beside them.

    python -m recjax.prepare --config=configs/data/lastfm_friends.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/social.py:cpu --workdir=W --config.data_dir=DIR

Full size: the authors' walks and widths, five seeds, for a GPU. `:cpu`: narrower, 10 walks a node,
three seeds.

Arguments: data=lastfm_friends|ciao_trust, cpu.
"""

from configs.studies import common
from recjax import errors
from recjax import spec

ROWS = (("DeepWalk", "deepwalk"), ("node2vec, p 0.25, q 4", "node2vec_near"),
        ("node2vec, p 4, q 0.25", "node2vec_far"), ("LINE", "line"),
        ("LINE, first order", "line_first"), ("LINE, second order", "line_second"))
TITLES = {"lastfm_friends": "LastFM's friends", "ciao_trust": "Ciao's trust"}


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, data="lastfm_friends")
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Social embeddings: {errors.choose(TITLES, arg.data, 'data')} (size {size})",
    prepare=common.prepare(arg.data),
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4),
    headline=("auc", "mrr", "hits@10"))
  def run(model, **fields):
    return {"config": f"configs/social.py:{model},data={arg.data},size={size}",
            "overrides": tuple(fields.items())}
  walks = lambda p, q: {"objective.skip_gram.p": p, "objective.skip_gram.q": q}
  config.runs = {
    "deepwalk": run("deepwalk"),
    "node2vec_near": run("node2vec", **walks(0.25, 4.0)),
    "node2vec_far": run("node2vec", **walks(4.0, 0.25)),
    "line": run("line"),
    "line_first": run("line", **{"model.orders": ("first",)}),
    "line_second": run("line", **{"model.orders": ("second",)})}
  config.rows = ROWS
  config.baseline = "deepwalk"
  config.comparisons = (("LINE: both orders – first", "line", "line_first"),
                        ("LINE: both orders – second", "line", "line_second"),
                        ("DeepWalk – popularity", "deepwalk", "popularity"))
  config.claims = (
    ("Biased walks are better than DeepWalk's", (("node2vec_near", "deepwalk"),
                                                 ("node2vec_far", "deepwalk")), "edges/auc"),
    ("LINE's orders complement each other", (("line", "line_first"), ("line", "line_second")),
     "edges/auc"))
  config.published = {}
  config.notes = """\
- The sample of the paired tests are the held-out edges; of each, the node where it begins is
  compared with the one where it ends and with 100 that it has no edge to.
- The papers judge their vectors by labels of nodes (BlogCatalog and others), which these graphs do
  not have."""
  return config
