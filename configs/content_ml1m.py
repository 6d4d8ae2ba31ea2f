"""Content-based sequence models on MovieLens-1M: items by titles, plots, genres or given vectors.

Every item's own vector is aggregated with what is known of it, g = concat, sum, gate, mlp or
replace (only what is known: scores items that nobody has rated). Input and output (the head is
tied) read the same vectors; `encoder` reads the texts: word_avg, cnn, bigru_attention or
transformer_cls. `of=title+plot` adds plots, which need `ml1m-text/movies_extrainfos.dat` in RAW.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train \\
      --config=configs/content_ml1m.py:features=text+genre,of=title+plot,g=gate,size=cpu \\
      --workdir=runs/content --config.data_dir=DATA

`features=given` reads any table of vectors by movie id, as sentence-transformers make them, from
.npz (ids, vectors), Parquet or .npy:

    ... --config=configs/content_ml1m.py:features=given,path=vectors.npz,g=sum ...

Items of `--config.held_out_items="(0.1, 0)"` are kept from training, to be ranked cold; with
`--config.model.item_dropout=0.3` the model learns to do without items' own vectors. On data `tgt`,
`--config.transfer.checkpoint=runs/content --config.transfer.mode=model` carries projections,
encoders and words (by word).

At size cpu (64 words) six epochs of the target domain take 10 s of a core with word averages,
45 with the transformer, 80 with the BiGRU and 100 with the CNN. configs/studies/cold_start.py
compares them on cold items. Measured so far: one short run,
data=tgt,features=text+genre,of=title+plot,g=replace,size=cpu, 5 epochs, a tenth of the movies
held out, context train, full: NDCG@10 5.59 % (popularity 5.26), MRR of items that nobody
trained on 0.19 % (popularity 0.10, chance 0.72), in 4 minutes of a shared CPU core.

`model=content_cosine` trains nothing: it ranks by how like an item is to those of the history.

Arguments: data=all|src|tgt, model=sasrec|bert4rec|gru4rec|content_cosine, features=text+genre+given
(any of them, joined by +), of=title+plot+genre (likewise), encoder=..., path=FILE, size=full|cpu,
g=concat|sum|gate|mlp|replace.
"""

from configs import common
from recjax import errors
from recjax import spec


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, data="all", model="sasrec", features="text", g="sum",
                       of="title", encoder="word_avg", path="", size="full")
  config = common.get_config()
  config.dataset = errors.choose({"all": "ml1m", "src": "ml1m_src", "tgt": "ml1m_tgt"}, arg.data,
                                 "data")
  config.model.name = config.model.variant = arg.model
  config.objective.name = errors.choose(
    {"sasrec": "causal_next_item", "gru4rec": "causal_next_item", "bert4rec": "masked_item",
     "content_cosine": "untrained"}, arg.model, "model")
  cpu = errors.choose({"full": False, "cpu": True}, arg.size, "size")
  config.model.max_len = 50 if cpu else 200
  config.total_epochs = 20.0 if cpu else 200.0
  config.eval.update(every_epochs=5.0, protocols=("full", "uniform100_domain"))
  config.eval.metric, config.eval.patience = "full/ndcg@10", 4
  config.model.features = features(
    arg.features.split("+"), width=32 if cpu else 64, of=tuple(arg.of.split("+")),
    encoder=arg.encoder, path=arg.path)
  if arg.model != "content_cosine":
    config.model.aggregate = arg.g
  if arg.model == "gru4rec" and arg.g == "concat":
    raise errors.UserError("model=gru4rec does not go with g=concat: its states are scored against "
                           "items of another width; take g=sum, gate or mlp")
  return config


def features(names, *, width, of=("title", "plot"), encoder="word_avg", path=""):
  """Returns `config.model.features` of providers of ML-1M's movies.

  Args:
    names: of text, genre and given.
    width: of words and attributes.
    of: what text reads.
    encoder: of text.
    path: of given vectors.
  """
  known = {
    "text": {"kind": "text", "of": of, "encoder": encoder, "width": width,
             "tfidf": encoder == "word_avg"},
    "genre": {"kind": "attribute", "width": width},
    "given": {"kind": "given", "path": path, "standardize": True}}
  return tuple((name, errors.choose(known, name, "features")) for name in names)


def sweep(add):
  """How to aggregate, and how much to do without items' own vectors."""
  for aggregate in ("concat", "sum", "gate", "mlp"):
    for item_dropout in (0.0, 0.3):
      add(**{"model.aggregate": aggregate, "model.item_dropout": item_dropout})
