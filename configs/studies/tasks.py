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

TITLES = {"mip": "MIP", "nip": "NIP", "mip_nip": "MIP + NIP", "mip_contrast": "MIP + contrast",
          "mip_attributes": "MIP + attributes", "all": "all"}
ALL = "mip+nip+contrast+attributes"


def get_config(arg=None):
  """Returns the study's config; `arg` is "cpu" or nothing."""
  arg = spec.parse_arg(arg, cpu=False)
  size = "cpu" if arg.cpu else "full"
  config = common.study(
    f"Pre-training tasks on MovieLens-1M (size {size})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4))
  tune = f"configs/tasks_ml1m.py:data=tgt,size={size}"
  config.runs = {"none": {"config": tune}}
  for name in TITLES:
    tasks = ALL if name == "all" else name.replace("_", "+")
    common.add_transfer(config, name, source=f"source_{name}", tune=tune, shared=arg.cpu,
                        pretrain=f"configs/tasks_ml1m.py:tasks={tasks},size={size}")
  config.rows = (("no pre-training", "none"), *((title, name) for name, title in TITLES.items()))
  joined = tuple(name for name in TITLES if name not in ("mip", "nip"))
  config.baselines = {"mip": "none", "nip": "none", **dict.fromkeys(joined, "mip")}
  config.comparisons = (("MIP – NIP", "mip", "nip"), ("none – popularity", "none", "popularity"))
  config.claims = (
    ("Pre-training helps the cold target", tuple((name, "none") for name in TITLES)),
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
