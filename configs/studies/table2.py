"""The survey's Table 2: does pre-training on one domain of MovieLens-1M help the other?

Grid: {Caser, BERT4Rec} x {none, embedding, model} transfer x {next item, masked item} pre-training
x {without, with} metadata of the movies: 20 rows, and beside them rows without transfer that the
survey lacks (ItemKNN, GRU4Rec, SASRec with BCE and with full softmax, gSASRec). Every transfer row
is fine-tuned with the next-item task and compared with `none` of its own model and metadata.

Full size: the survey's models, five seeds with a pre-training each, for a GPU or TPU. `:cpu`:
BERT4Rec with two layers of 64; pre-trained once a task, fine-tuned with five seeds. `:proof`: every
row at full size for three steps, to see that it runs.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/table2.py:cpu --workdir=W --config.data_dir=DIR

The metadata are the survey authors' anonymous table (`meta=survey`, the default);
`table2.py:cpu,meta=imdb` or `meta=omdb` take the names of IMDB-5000 or of the OMDb-style table.
"""

import ml_collections

from configs.studies import common
from recjax import spec

TASKS = {
  "caser": (("nip", "next_window"), ("mip", "masked_window")),
  "bert4rec": (("nip", "next_item"), ("mip", "masked_item")),
}
TITLES = {"caser": "Caser", "bert4rec": "BERT4Rec"}


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, proof=False, meta="survey")
  size = "cpu" if arg.cpu else "full"
  config = grid(
    f"Table 2: transfer by pre-training on MovieLens-1M (size {size})",
    configs={"caser": "configs/caser_ml1m.py:data={data},size={size},meta={meta},task={task}",
             "bert4rec": "configs/bert4rec_ml1m.py:data={data},size={size},meta={meta}"},
    size=size, metas=("none", arg.meta), share_sources=arg.cpu)
  config.prepare = common.prepare("ml1m")
  extra = (("ItemKNN", "item_knn", "configs/item_knn.py:dataset=ml1m_tgt"),
           ("GRU4Rec", "gru4rec", "configs/gru4rec_ml1m.py:data=tgt"),
           ("SASRec, BCE", "sasrec_bce", "configs/sasrec_ml1m.py:data=tgt,variant=kang"),
           ("SASRec, softmax", "sasrec", "configs/sasrec_ml1m.py:data=tgt,variant=sasrec"),
           ("gSASRec", "gsasrec", "configs/sasrec_ml1m.py:data=tgt,variant=gsasrec"))
  for label, name, path in extra:
    config.runs[name] = {"config": path, **({"seeds": (0,)} if name == "item_knn" else {})}
    config.rows += ((label, name),)
  protocol = "uniform100_global"
  names = [f"{protocol}/{metric}@{k}" for metric in ("ndcg", "recall") for k in (3, 5, 10)]
  config.published = {  # Zeng et al. 2021, Table 2; the other cells are not at hand.
    label: dict(zip(names, values, strict=True)) for label, values in {
      "Caser": (14.46, 16.82, 19.83, 13.20, 17.30, 23.91),
      "BERT4Rec": (42.34, 51.56, 61.18, 40.94, 56.79, 77.87),
      "BERT4Rec + meta: model, MIP": (45.12, 54.48, 63.97, 43.72, 59.88, 80.64)}.items()}
  config.notes += """
- The survey's Caser row comes from a defect in its evaluation (every positive was replaced by its
  neighbor in the item numbering) and from data in file order;
  `configs/studies/caser_legacy.py` reproduces it. Ours ranks the true items."""
  if arg.proof:
    common.proof(config, "Table 2 at full size")
  return config


def grid(title, *, configs, size, metas, share_sources, seeds=(0, 1, 2, 3, 4)):
  """Returns the study of {model} x {metadata} x {none, embedding, model} x {NIP, MIP}.

  Args:
    title: heading of the report.
    configs: {model: "FILE.py:..." with {data}, {size}, {meta} and {task}}.
    size: full or cpu.
    metas: whose metadata; "none" for rows without.
    share_sources: one pre-training a task for all seeds, instead of one a seed.
    seeds: of the fine-tuning runs.
  """
  config = ml_collections.ConfigDict()
  config.title = title
  config.data_dir = ""
  config.seeds = seeds
  config.overrides = ()
  config.bootstrap_draws = 10_000
  # Seeds of a run at once: worth it where one alone leaves the device idle.
  config.cohort_size = len(seeds) if size == "full" else 1
  config.time_alone = True  # one run of a kind by itself, to say what that saved
  config.headline = ("ndcg@10", "recall@10", "mrr")
  config.runs, config.rows, config.baselines = {}, (), {}
  source_seeds = (seeds[0],) * len(seeds) if share_sources else seeds
  for model, path in configs.items():
    for meta in metas:
      known = meta != "none"
      prefix = f"{model}_meta" if known else model
      label = TITLES[model] + " + meta" * known
      target = path.format(data="tgt", size=size, meta=meta, task="nip")
      tune = {"config": target, "overrides": (("objective.name", TASKS[model][0][1]),)}
      if model == "caser":
        tune["cohort_size"] = len(seeds)
      config.runs[f"{prefix}_none"] = dict(tune)
      config.rows += ((label, f"{prefix}_none"),)
      for task, objective in TASKS[model]:
        config.runs[f"{prefix}_source_{task}"] = {
          "config": path.format(data="src", size=size, meta=meta, task=task),
          "overrides": (("objective.name", objective),),
          "seeds": tuple(dict.fromkeys(source_seeds))}
      for mode, task in (("embedding", "nip"), ("embedding", "mip"), ("model", "nip"),
                         ("model", "mip")):
        name = f"{prefix}_{mode}_{task}"
        config.runs[name] = {**tune, "source": f"{prefix}_source_{task}", "mode": mode,
                             "source_seeds": source_seeds}
        config.rows += ((f"{label}: {mode}, {task.upper()}", name),)
        config.baselines[name] = f"{prefix}_none"
  config.claims = claims(configs, metas)
  config.notes = common.TASKS
  if share_sources:
    config.notes += common.SHARED
  return config


def claims(models, metas):
  """Returns what the survey concludes from Table 2 (Sec. 4.5), in our words, as pairs of rows.

  The first of each pair should be the better one. Only the conclusion that shallow models prefer
  embedding transfer was at hand to be checked against its text.
  """
  prefixes = [f"{model}{'_meta' * (meta != 'none')}" for model in models for meta in metas]
  transfers = [f"{mode}_{task}" for mode in ("embedding", "model") for task in ("nip", "mip")]
  def prefer(model, first, second):
    return tuple((f"{p}_{first}_{task}", f"{p}_{second}_{task}") for p in prefixes
                 if p.startswith(model) for task in ("nip", "mip"))

  found = [("Pre-training on the source domain helps the cold target domain.",
            tuple((f"{p}_{name}", f"{p}_none") for p in prefixes for name in transfers)),
           ("The shallow model (Caser) gains more from embedding than from model transfer.",
            prefer("caser", "embedding", "model")),
           ("The deep model (BERT4Rec) gains more from model than from embedding transfer.",
            prefer("bert4rec", "model", "embedding")),
           ("For the deep model, masked item prediction is the better pre-training task.",
            tuple((f"{p}_{mode}_mip", f"{p}_{mode}_nip") for p in prefixes
                  if p.startswith("bert4rec") for mode in ("embedding", "model")))]
  if len(metas) > 1:
    found.append(("Metadata of the items improve the result, with and without transfer.",
                  tuple((f"{model}_meta_{row}", f"{model}_{row}") for model in models
                        for row in ("none", *transfers))))
  return tuple(found)
