"""Which pre-training tasks are worth it? MovieLens-1M, source to cold target (survey, Section 5).

Rows: no pre-training; masked items (MIP), next items (NIP), and MIP with each further task: NIP,
contrast between users (CL4SRec), attributes of movies (MAP and AAP of S3-Rec), all of them. All are
carried over by `model` and tuned alike, so that they differ in what was pre-trained alone.

Full size: five seeds with a pre-training each, for a GPU or TPU; it has not been run. `:cpu`: one
pre-training a row on the last 30 movies of a user, 15 epochs, tuned with three seeds: 27 runs, half
an hour of a core that other work shared.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/tasks.py:cpu --workdir=W --config.data_dir=DIR
"""

from configs.studies import common
from recjax import spec

TASKS = {"mip": "MIP", "nip": "NIP", "mip+nip": "MIP + NIP", "mip+contrast": "MIP + contrast",
         "mip+attributes": "MIP + attributes", "mip+nip+contrast+attributes": "all"}


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Pre-training tasks on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4))
  tune = f"configs/tasks_ml1m.py:data=tgt,size={size}"
  sources = config.seeds[:1] if arg.cpu else config.seeds
  config.runs = {"none": {"config": tune}}
  names = {}
  for tasks in TASKS:
    name = names[tasks] = "all" if TASKS[tasks] == "all" else tasks.replace("+", "_")
    config.runs[f"source_{name}"] = {
      "config": f"configs/tasks_ml1m.py:tasks={tasks},size={size}", "seeds": sources}
    config.runs[name] = {"config": tune, "source": f"source_{name}", "mode": "model",
                         "source_seeds": sources * (len(config.seeds) // len(sources))}
  config.rows = (("no pre-training", "none"),
                 *((title, names[tasks]) for tasks, title in TASKS.items()))
  joined = tuple(names[tasks] for tasks in TASKS if "+" in tasks)
  config.baselines = {"mip": "none", "nip": "none", **dict.fromkeys(joined, "mip")}
  config.comparisons = (("MIP – NIP", "mip", "nip"), ("none – popularity", "none", "popularity"))
  config.claims = (
    ("Pre-training helps the cold target",
     tuple((name, "none") for name in names.values())),
    ("Further tasks make masked items better", tuple((name, "mip") for name in joined)))
  config.published = {}
  config.notes = """\
- All rows are tuned on the target with the next-item task. Weights of the tasks are fixed
  (configs/tasks_ml1m.py), not chosen.
- Attributes are genres, directors and actors (of the OMDb-style table) of at least five movies of
  the source domain."""
  if arg.cpu:
    config.notes += common.SHARED
  return config
