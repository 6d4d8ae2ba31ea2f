"""Vectors of users from a social graph: DeepWalk, node2vec, LINE.

    python -m recjax.prepare --config=configs/data/lastfm_friends.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/social.py:deepwalk,data=lastfm_friends \\
      --workdir=runs/deepwalk --config.data_dir=DATA
    python -m recjax.export --workdir=runs/deepwalk --leaves=second/embedding \\
      --output=users.npz

Judged by telling held-out edges from pairs without one: recjax/evaluators/edges.py. The vectors
become a feature table by external user id; of LINE both orders, side by side:

    python -m recjax.export --workdir=runs/line --leaves=first/embedding,second/embedding \\
      --normalize --output=users.npz

deepwalk: width 128, 80 walks a node of length 40, window 10 (the authors' sizes for BlogCatalog);
node2vec: 10 walks of length 80, p = q = 1 unless said otherwise
(--config.objective.skip_gram.p=0.25); line: width 100 an order, 5 negatives, SGD from 0.025 an edge
down to 1e-4 of it. Losses are means over a batch: LINE's rate is therefore multiplied by the
batch. `size=cpu` takes 10 walks a node (LINE: 200 epochs) and narrower vectors.

Arguments: deepwalk|node2vec|line, data=lastfm_friends|ciao_trust, size=full|cpu.
"""

from configs import common
from recjax import errors
from recjax import spec

MODELS = ("deepwalk", "node2vec", "line")
DATA = ("lastfm_friends", "ciao_trust")


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, **dict.fromkeys(MODELS, False), data="lastfm_friends", size="full")
  chosen = [name for name in MODELS if arg[name]] or ["deepwalk"]
  if len(chosen) > 1:
    raise errors.UserError(f"choose one of {', '.join(chosen)}")
  small = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  config = common.get_config()
  config.dataset = errors.choose(dict(zip(DATA, DATA, strict=True)), arg.data, "data")
  config.model.update(name="node_vectors", variant="line" if chosen == ["line"] else "deepwalk",
                      orders=("first", "second") if chosen == ["line"] else ("second",))
  walks = {"deepwalk": dict(length=40, p=1.0, q=1.0), "node2vec": dict(length=80, p=1.0, q=1.0),
           "line": dict(length=40, p=1.0, q=1.0)}[chosen[0]]
  config.objective.skip_gram = dict(window=10, num_negatives=5, **walks)
  config.objective.edge_sampling = dict(num_negatives=5)
  config.eval.update(metric="edges/auc", protocols=("edges",), contexts=("train",))
  if chosen == ["line"]:
    _line(config, small)
  else:
    _walks(config, small, walks=80.0 if chosen == ["deepwalk"] else 10.0)
  return config


def _walks(config, small, *, walks):
  config.objective.name, config.batch_size = "skip_gram", 128
  config.model.width = 64 if small else 128
  config.total_epochs = min(walks, 10.0) if small else walks
  config.optim.update(name="adam", lr=0.01, decay="linear", final_lr_scale=1e-2)
  config.eval.every_epochs = config.total_epochs / 5


def _line(config, small):
  config.objective.name, config.batch_size = "edge_sampling", 256
  config.model.width = 50 if small else 100
  config.total_epochs = 200.0 if small else 1000.0
  config.optim.update(name="sgd", lr=0.025 * config.batch_size, momentum=0.0, decay="linear",
                      final_lr_scale=1e-4)
  config.eval.every_epochs = config.total_epochs / 10
