"""Several pre-training tasks on one batch (survey, Section 5: new tasks on heterogeneous data).

BERT4Rec on MovieLens-1M learns any of, joined by + in `tasks`:

    mip         masked items (weight 1)
    nip         the item after a random past (1)
    contrast    whose of two views of a sequence belong together: crops, masks and reorderings of it
                (0.1; CL4SRec, Xie et al. 2022)
    attributes  genres, directors and actors of a hidden movie, and of a movie by its row
                (0.1 each; MAP and AAP of S3-Rec, Zhou et al. 2020)

`data=src` pre-trains on the source domain, `data=tgt` tunes on the cold target with the next item,
whatever the tasks are, `data=all` is leave-one-out on the whole. metrics.jsonl reports every task
apart. Weights are guesses; `sweep` has others. Which task is worth its time is the question of
configs/studies/tasks.py.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DATA
    python -m recjax.train --config=configs/tasks_ml1m.py:tasks=mip+contrast,size=cpu \\
      --workdir=runs/contrast --config.data_dir=DATA
    python -m recjax.train --config=configs/tasks_ml1m.py:data=tgt,size=cpu --workdir=runs/tgt \\
      --config.data_dir=DATA --config.transfer.checkpoint=runs/contrast \\
      --config.transfer.mode=model

size=cpu reads the last 30 movies of a user, with 2 layers of 64, for 15 epochs (tgt: 10).

Arguments: tasks (above), data=src|tgt|all, size=full|cpu.
"""

from configs import cl4srec_ml1m
from configs import knowledge_ml1m
from recjax import errors
from recjax import spec

PARTS = {"mip": (("masked_item", 1.0),), "nip": (("next_item", 1.0),),
         "contrast": (("contrast", 0.1),), "attributes": knowledge_ml1m.PARTS["attributes"]}


def get_config(arg=None):
  """Returns the config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, tasks="mip+contrast", data="src", size="full")
  parts = [errors.choose(PARTS, task, "tasks") for task in arg.tasks.split("+")]
  config = knowledge_ml1m.get_config(f"know=none,data={arg.data},size={arg.size}")
  config.objective.contrast = dict(cl4srec_ml1m.CONTRAST, append_mask=True)
  if arg.data != "tgt":
    config.micro_lengths = ()  # views are not cut
    config.objective.name = "mix"
    config.objective.mix.parts = sum(parts, ())
    if "nip" in arg.tasks.split("+") and len(parts) > 1:
      config.objective.window = "prefix"  # all tasks read the past that it cuts off
  return config


def sweep(add):
  """The weight of the second task, chosen on validation."""
  for weight in (0.03, 0.1, 0.3, 1.0):
    add(**{"objective.mix.parts": (("masked_item", 1.0), ("contrast", weight))})
