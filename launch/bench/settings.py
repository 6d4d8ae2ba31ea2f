"""The configs of recjax that are compared: the work of `workload`, on the fast or the plain path.

FAST is what recjax is timed with: raise it when recjax learns something new.
"""

import os

from configs import bert4rec_ml1m, caser_ml1m
from launch.bench import workload
from recjax import spec

# Fields of a config that change how quickly the same step is taken, not what it computes.
_CUT = {"micro_batch": 8, "micro_lengths": (40, 72),
        "num_devices": len(os.sched_getaffinity(0))}
FAST = {"bert4rec": _CUT, "sasrec": _CUT, "sasrec_bce": _CUT, "caser": {"num_devices": 1}}
# The whole batch at once, padding and unlabeled positions included.
_WHOLE = {"micro_batch": None, "micro_lengths": (), "num_devices": 1, "model.layout": "rows"}
PLAIN = {"bert4rec": _WHOLE, "sasrec": _WHOLE, "sasrec_bce": _WHOLE, "caser": {"num_devices": 1}}
PATHS = ("fast", "plain")


def get_config(task, *, path="fast", data_dir, size=None, dtype="float32", **fields):
  """Returns the config of a task.

  Args:
    task: of `workload.TASKS`.
    path: of PATHS.
    data_dir: where recjax.prepare wrote.
    size: `workload.Size` of a transformer.
    dtype: float32 or bfloat16.
    fields: {dotted name: value} to set last.
  """
  if task == "caser":
    config = caser_ml1m.get_config("data=all,variant=repo")
  else:
    config = bert4rec_ml1m.get_config("data=all")
    _transformer(config, task, size or workload.Size())
  config.data_dir, config.model.dtype = data_dir, dtype
  config.eval.update(protocols=("full",), contexts=("train",), metric="full/ndcg@10")
  return spec.override(config, {**(FAST if path == "fast" else PLAIN)[task], **fields})


def _transformer(config, task, size):
  # Dropout in every place that any contestant has it: after the embedding, on attention's weights,
  # after both parts of a layer, inside the feed-forward part, after the layer.
  config.model.update(
    variant="survey_code", user_width=0, item_width=size.width, num_layers=size.layers,
    heads=size.heads, hidden=size.hidden, max_len=size.max_len, dropout=size.dropout)
  config.batch_size, config.optim.lr = size.batch, size.lr
  config.objective.masked_item.rate = size.rate
  if task != "bert4rec":
    config.model.name = "sasrec"
    config.objective.name = "causal_next_item"
  if task == "sasrec_bce":
    config.objective.causal_next_item.update(criterion="bce", num_negatives=1)
