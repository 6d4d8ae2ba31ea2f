"""Recommendation functions on MovieLens-1M, leave-one-out with 99 negatives.

Rows: matrix factorization (dot), FM, GMF, MLP, NeuMF from scratch and NeuMF pre-trained, which
starts from the GMF and the MLP of its seed with the average of their logits; matrix factorization
with BPR and with softmax over all items; ItemKNN. All with 8 factors, one seed; `seeds=3` for more.
`:cpu` takes 20 minutes of a core.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/functions.py:cpu --workdir=W \\
      --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec

ROWS = (("dot", "dot", "model=dot"), ("dot, BPR", "dot_bpr", "model=dot,criterion=bpr"),
        ("dot, softmax", "dot_softmax", "model=dot,criterion=softmax"), ("FM", "fm", "model=fm"),
        ("GMF", "gmf", "model=gmf"), ("MLP", "mlp", "model=mlp"), ("NeuMF", "neumf", "model=neumf"))
PRETRAINED = "NeuMF, pre-trained"


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, seeds=1)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Recommendation functions on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=tuple(range(arg.seeds)),
    headline=("recall@10", "ndcg@10", "mrr"))
  path = "configs/pair_ml1m.py:size={size},{rest}"
  config.runs = {run: {"config": path.format(size=size, rest=rest)} for _, run, rest in ROWS}
  config.runs.neumf_pretrained = {"config": path.format(size=size, rest="model=neumf"),
                                  "source": "gmf,mlp", "mode": "fusion"}
  config.runs.item_knn = {
    "config": "configs/item_knn.py:dataset=ml1m", "seeds": (0,),
    "overrides": (("eval.num_negatives", 99), ("eval.contexts", ("train",)))}
  config.rows = (*((label, run) for label, run, _ in ROWS), (PRETRAINED, "neumf_pretrained"),
                 ("ItemKNN", "item_knn"))
  config.baseline = "dot"
  config.claims = (
    ("NeuMF is better than either of its parts", (("neumf", "gmf"), ("neumf", "mlp")),
     "uniform100_domain/ndcg@10"),
    ("Pre-training helps NeuMF", (("neumf_pretrained", "neumf"),), "uniform100_domain/ndcg@10"))
  config.published = {
    PRETRAINED: {"uniform100_domain/recall@10": 68.8, "uniform100_domain/ndcg@10": 41.0}}
  config.notes = """\
- recall@10 of `uniform100_domain` is the HR@10 of He et al. 2017: one held-out item among 99 that
  the user has not rated. Their numbers (8 factors, pre-trained) are quoted from memory."""
  return config
