"""The study of the survey's Section 4: transfer mode x pre-training task, for any model."""

import ml_collections

# Notes of reports.
TASKS = """\
- NIP: next item prediction, MIP: masked item prediction. Both name the pre-training task; every
  target run is fine-tuned with NIP."""
SHARED = """
- Each pre-training ran once and feeds every seed: the spread over seeds is that of fine-tuning
  alone, not that of pre-training."""


def prepare(name):
  """Returns the command that prepares the raw data of configs/data/NAME.py, with {data_dir}."""
  return (f"python -m recjax.prepare --config=configs/data/{name}.py --raw_dir=RAW"
          " --data_dir={data_dir}")


def study(title, *, prepare, seeds, headline=("ndcg@10", "recall@10", "mrr"), overrides=()):
  """Returns the fields that every study has, of those that recjax/study_plan.py lists.

  Args:
    title: heading of the report.
    prepare: command that prepares the data, with {data_dir}.
    seeds: of the runs that do not say otherwise.
    headline: metrics of the table.
    overrides: ((field, value), ...) of all runs.
  """
  config = ml_collections.ConfigDict()
  config.title = title
  config.data_dir = ""
  config.prepare = prepare
  config.seeds = seeds
  config.overrides = overrides
  config.bootstrap_draws = 10_000
  config.headline = headline
  return config


def add_transfer(config, name, *, source, pretrain, tune, shared):
  """Adds a pre-training and the runs that are tuned from it, by mode "model", to `config.runs`.

  Args:
    config: of `study`.
    name: of the tuned runs.
    source: of the pre-training.
    pretrain: its config, "FILE.py:arg".
    tune: theirs.
    shared: whether one pre-training, of the first seed, feeds every seed.
  """
  seeds = config.seeds[:1] if shared else config.seeds
  config.runs[source] = {"config": pretrain, "seeds": seeds}
  config.runs[name] = {"config": tune, "source": source, "mode": "model",
                       "source_seeds": seeds * (len(config.seeds) // len(seeds))}


def proof(config, title):
  """Cuts a study to three steps a run and a single seed, to see that each of its rows runs."""
  config.update(title=f"{title}, three steps a row", seeds=(0,), overrides=(
    *config.overrides, ("total_epochs", None), ("total_steps", 3), ("eval.every_epochs", None),
    ("eval.every_steps", 3), ("eval.max_users", 256)))
  for run in config.runs.values():
    run.update({field: (0,) for field in ("seeds", "source_seeds") if field in run})


def transfer_study(title, *, prepare, source, target, seeds, source_seeds=None):
  """Returns a study of {none, embedding, model} x {NIP, MIP} pre-training, tuned with NIP.

  Args:
    title: heading of the report.
    prepare: command that prepares the data, with {data_dir}.
    source: config of a pre-training run, "FILE.py:arg".
    target: config of a fine-tuning run.
    seeds: of the fine-tuning runs.
    source_seeds: of the pre-training that each of `seeds` starts from (default: the same ones).
  """
  config = study(title, prepare=prepare, seeds=seeds)
  source_seeds = source_seeds or seeds
  config.runs = {"none": _tune(target)}
  for task, objective in (("nip", "next_item"), ("mip", "masked_item")):
    config.runs[f"source_{task}"] = {
      "config": source, "overrides": (("objective.name", objective),),
      "seeds": tuple(dict.fromkeys(source_seeds))}
    for mode in ("embedding", "model"):
      config.runs[f"{mode}_{task}"] = _tune(
        target, source=f"source_{task}", mode=mode, source_seeds=source_seeds)
  config.rows = (
    ("none", "none"),
    ("embedding, NIP", "embedding_nip"),
    ("embedding, MIP", "embedding_mip"),
    ("model, NIP", "model_nip"),
    ("model, MIP", "model_mip"),
  )
  config.baseline = "none"
  config.comparisons = (
    ("none – popularity", "none", "popularity"),
    ("embedding: MIP – NIP", "embedding_mip", "embedding_nip"),
    ("model: MIP – NIP", "model_mip", "model_nip"),
    ("NIP: model – embedding", "model_nip", "embedding_nip"),
    ("MIP: model – embedding", "model_mip", "embedding_mip"),
  )
  moved = ("embedding_nip", "embedding_mip", "model_nip", "model_mip")
  config.claims = (
    ("Pre-training helps", tuple((run, "none") for run in moved)),
    ("Model transfer is better than embedding transfer",
     (("model_nip", "embedding_nip"), ("model_mip", "embedding_mip"))),
    ("Pre-training with MIP is better than with NIP",
     (("embedding_mip", "embedding_nip"), ("model_mip", "model_nip"))),
  )
  config.published = {}
  config.notes = TASKS
  if len(set(source_seeds)) == 1:
    config.notes += SHARED
  return config


def _tune(config, **transfer):
  return {"config": config, "overrides": (("objective.name", "next_item"),), **transfer}
