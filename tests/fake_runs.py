"""Runs without training, for the tests of studies and reports: the files that a trainer leaves."""

import json
import pathlib

import ml_collections
import numpy as np

from recjax import slices
from recjax.data import sequences
from recjax.evaluators import values as values_lib

USERS = 300
CONTEXTS = ("train", "train+val")
PROTOCOLS = ("uniform100_global", "uniform100_domain", "pop100", "full")
METRICS = ("ndcg@3", "ndcg@5", "ndcg@10", "recall@3", "recall@5", "recall@10", "mrr")
ITEM_METRICS = ("hit@10", "dcg@10", "rr")
RATING_METRICS = ("mse", "mae")  # per user; their runs also report the pooled rmse
CONFIG_FILE = '''
import ml_collections

def get_config(arg="tgt"):
  return ml_collections.ConfigDict(dict(
    seed=0, data_dir="", dataset=arg, total_epochs=2, ks=(3, 5, 10),
    objective=dict(name="next_item"), transfer=dict(checkpoint=None, mode="none")))
'''


SPEED = {"examples_per_s": 1e4, "train_s": 10.0, "compile_s": 2.0, "wall_s": 75.0,
         "peak_memory_gb": 0.5, "devices": 1, "platform": "cpu"}


def make_data(data_dir, *names):
  """Saves data sets of one user and three items."""
  for name in names:
    sequences.save(pathlib.Path(data_dir) / name, sequences.Dataset(
      manifest={"name": name, "generated": True, "interactions": 3, "raw_sha256": "a"},
      user_ids=np.array([b"", b"u"]), item_ids=np.array([b"", b"a", b"b", b"c"]),
      in_domain=np.array([False, True, True, True]), offsets=np.array([0, 0, 3]),
      items=np.array([1, 2, 3], np.int32), times=np.arange(3),
      splits=np.array([[[0, 0]] * 3, [[0, 1], [1, 2], [2, 3]]], np.int32)))


def make_study(folder, **changes):
  """Returns a study of two sources and three rows, its run config and data in `folder`."""
  (folder / "run.py").write_text(CONFIG_FILE)
  make_data(folder / "data", "src", "tgt")
  run = lambda data, **kw: {"config": f"{folder}/run.py:{data}", **kw}
  config = ml_collections.ConfigDict(dict(
    title="A study", data_dir=str(folder / "data"), seeds=(0, 1, 2), baseline="none",
    rows=(("none", "none"), ("model", "model"), ("embedding | MIP", "embedding")),
    runs={
      "none": run("tgt"),
      "a_source": run("src", overrides=(("objective.name", "masked_item"),)),
      "model": run("tgt", source="z_source", mode="model"),
      "z_source": run("src"),
      "embedding": run("tgt", source="a_source", mode="embedding"),
    },
    comparisons=(("model – embedding", "model", "embedding"),
                 ("none – popularity", "none", "popularity")),
    published={"none": {"uniform100_global/ndcg@10": 61.18}},
    bootstrap_draws=500, notes="- A remark."))
  config.update(changes)
  return config


def make_trainer(gains=(), *, broken=(), calls=None):
  """Returns a `train(config, workdir)` that writes a finished run's files.

  Args:
    gains: {transfer mode: what it adds to every metric, or {slice of users: what it adds}}.
    broken: transfer modes that raise.
    calls: list to which each call's config is appended.
  """
  def train(config, workdir):
    if calls is not None:
      calls.append(config)
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    if config.transfer.mode in broken:
      raise ValueError("it broke\nin two lines")
    write_run(pathlib.Path(workdir), config.to_dict(), dict(gains).get(config.transfer.mode, 0.0))
  return train


def write_run(folder, config, gain=0.0, *, users=USERS, older=False):
  """Writes the files of a finished ranking run.

  Args:
    folder: where to.
    config: of the run.
    gain: what is added to every metric of every user, or {slice of HISTORY: what is added there}.
    users: how many there are.
    older: leave out what earlier versions did not write: slices, single items, references.
  """
  seed = config["seed"]
  rng = np.random.default_rng([seed, len(config["transfer"]["mode"])])
  level = np.random.default_rng(0).uniform(0.2, 0.6, users)  # of each user, the same in every run
  lengths = np.random.default_rng(1).choice([2, 7, 30], users, p=[0.2, 0.5, 0.3])
  if isinstance(gain, dict):
    gain = np.array([gain.get(name, 0.0) for name in slices.HISTORY])[slices.of_history(lengths)]
  gain, order = np.broadcast_to(gain, users), rng.permutation(users)
  values = {f"{c}/{p}/{m}": (level + gain + 0.05 * rng.standard_normal(users))[order].astype("f4")
            for c in CONTEXTS for p in PROTOCOLS for m in METRICS}
  values |= {f"popularity/{p}/{m}": (level - 0.1)[order].astype("f4")
             for p in PROTOCOLS for m in METRICS}
  mean = lambda prefix: {p: {m: float(values[f"{prefix}/{p}/{m}"].mean()) for m in METRICS}
                         for p in PROTOCOLS}
  contexts = {c: mean(c) for c in CONTEXTS}
  extra = {}
  if not older:
    extra = {"references": ["popularity", "chance"],
             "slices": _write_positives(folder, values, lengths, order)}
  np.savez(folder / "per_user_test.npz", users=order.astype(np.int32) + 1,
           external_users=np.array([b"u%d" % u for u in order]),
           **({} if older else {"train_length": lengths[order].astype(np.int32)}), **values)
  rows = [{"step": step, "split": "val", "full/ndcg@10": 0.1 * (1 - 0.5 ** (step / 20))
           + gain.mean() + 0.004 * rng.standard_normal()} for step in range(0, 101, 10)]
  rows.append({"step": 5, "split": "train", "loss": 1.0})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "report.json").write_text(json.dumps({
    "run": {"name": folder.parent.name, "seed": seed, "steps": 100, "best_step": 90,
            "parameters": 1234, "finished": True, **_trained(config["transfer"]["mode"])},
    "data": {"name": config["dataset"], "generated": True, "users": users, "items": 50,
             "interactions": 3, "evaluated_users": users, "mean_train_length": 8.5,
             "raw_sha256": "a"},
    "context": "train", "test": contexts["train"], "contexts": contexts,
    "popularity": mean("popularity"),
    "chance": {p: dict.fromkeys(METRICS, 0.05) for p in PROTOCOLS},
    "speed": SPEED, **extra}))


def _trained(mode):
  """Returns what a run says of its trained parameters: less with embeddings, no word in "rules"."""
  count = {"embedding": 123}.get(mode, 1234)
  return {} if mode == "rules" else {"trained_parameters": count, "trained_bytes": 4 * count}


def _write_positives(folder, values, lengths, order):
  """Writes per_positive_test.npz of two held-out items a user; returns the report's slices."""
  users = len(order)
  counts = np.array([0, 0, 1, 2, 4, 7, 8])  # of items 1..6: cold, three in the tail, mid, head
  rows = np.repeat(np.arange(users, dtype=np.int32), 2)
  items = np.random.default_rng(2).integers(1, 7, (users, 2))[order].ravel().astype(np.int32)
  value = lambda c, p: np.repeat(values[f"{c}/{p}/ndcg@10"], 2)
  nest = lambda name: {name: {p: {m: value(name, p) for m in ITEM_METRICS} for p in PROTOCOLS}}
  of = lambda name: values_lib.Results(
    np.arange(users),
    {"train": {p: {m: values[f"{name}/{p}/{m}"] for m in METRICS} for p in PROTOCOLS}},
    values_lib.Positives(rows, items, {"train": nest(name)[name]}))
  np.savez(folder / "per_positive_test.npz", rows=rows, items=items, train_count=counts[items],
           popularity=slices.of_popularity(counts)[items],
           **{f"train/{p}/{m}": value("train", p) for p in PROTOCOLS for m in ITEM_METRICS})
  return slices.summarize({"test": of("train"), "popularity": of("popularity")}, "train",
                          lengths[order], counts, np.ones(7, bool))


def write_rating_run(folder, config, gain=0.0, *, users=USERS):
  """Writes the files of a finished rating run; `gain` is added to every user's errors."""
  rng = np.random.default_rng([config["seed"], 7])
  level = np.random.default_rng(0).uniform(0.6, 1.2, users)
  of_user = lambda shift: {m: (level + shift + 0.05 * rng.standard_normal(users)).astype("f4")
                           for m in RATING_METRICS}
  tables = {"train": of_user(gain), "item_user_bias": of_user(0.1), "global_mean": of_user(0.4)}
  mean = lambda table: {"heldout": {"rmse": float(np.sqrt(table["mse"].mean())),
                                    **{m: float(v.mean()) for m, v in table.items()}}}
  lengths = np.random.default_rng(1).choice([2, 7, 30], users).astype(np.int32)
  results = {name: values_lib.Results(np.arange(users), {"train": {"heldout": table}})
             for name, table in (("test", tables["train"]), *list(tables.items())[1:])}
  cut = slices.summarize(results, "train", lengths, np.zeros(2, int), np.array([False, True]))
  np.savez(folder / "per_user_test.npz", users=np.arange(users) + 1,
           external_users=np.array([b"u%d" % u for u in range(users)]), train_length=lengths,
           **{f"{name}/heldout/{m}": v for name, t in tables.items() for m, v in t.items()})
  rows = [{"step": step, "split": "val", "heldout/rmse": 1.2 - step / 500 + gain}
          for step in range(0, 101, 10)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "report.json").write_text(json.dumps({
    "run": {"seed": config["seed"], "steps": 100, "best_step": 90, "finished": True},
    "data": {"name": config["dataset"], "generated": True, "users": users},
    "context": "train", "test": mean(tables["train"]), "contexts": {"train": mean(tables["train"])},
    "references": ["global_mean", "item_user_bias"], "slices": cut,
    **{name: mean(tables[name]) for name in ("global_mean", "item_user_bias")}, "speed": SPEED}))
