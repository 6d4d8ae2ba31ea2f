"""RecTools' BERT4Rec and SASRec, trained by their own `fit`, with their own data set and loader.

A Lightning callback stands between two batches and waits there until the next one is asked for.
`step_s` is the step alone, without the loader. SASRec has the pre-norm layers of its BERT4Rec here
(`transformer_layers_type`), whose feed-forward part is 4 times as wide as the model.
"""

import importlib.metadata
import logging
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import dataset as rectools_dataset
from rectools.models.nn.transformers import bert4rec, net_blocks, sasrec

from launch.bench import serving, workload

LOSSES = {"bert4rec": "softmax", "sasrec": "softmax", "sasrec_bce": "BCE"}


class Turns(pl.Callback):
  """Times every training batch, and stops when no more are wanted."""

  def __init__(self, session, size):
    self._session, self._size = session, size
    self._start = 0.0

  def __deepcopy__(self, memo):
    return self  # RecTools copies its trainer, but there is one session

  def on_train_start(self, trainer, module):
    """Waits for the first request; the loader makes a batch only afterwards."""
    trainer.should_stop = not self._session.wanted()

  def on_train_batch_start(self, trainer, module, batch, index):
    """Notes when the batch is there."""
    self._start = time.perf_counter()

  def on_train_batch_end(self, trainer, module, outputs, batch, index):
    """Reports the step and waits for the next request."""
    step_s = time.perf_counter() - self._start
    self._session.took(loss=outputs["loss"].item(), users=len(batch["x"]), step_s=step_s,
                       tokens=(batch["x"] > 0).sum().item())
    trainer.should_stop = not self._session.wanted()


def main():
  args = serving.parse(__doc__, threads=0)
  if args.task not in LOSSES:
    raise SystemExit(f"RecTools has no {args.task} of this kind")
  if args.threads:
    torch.set_num_threads(args.threads)
  warnings.simplefilter("ignore")
  logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
  session = serving.Session(
    args, versions={"rectools": importlib.metadata.version("rectools"),
                    "torch": torch.__version__},
    precision="float32", settings=f"threads={torch.get_num_threads()}")
  size = serving.size(args)
  pl.seed_everything(args.seed)
  # No epoch limit, no progress, no files: only steps.
  trainer = lambda: pl.Trainer(
    max_epochs=10**6, min_epochs=0, accelerator="cpu", devices=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[Turns(session, size)])
  common = dict(
    n_blocks=size.layers, n_heads=size.heads, n_factors=size.width, dropout_rate=size.dropout,
    session_max_len=size.max_len, loss=LOSSES[args.task], n_negatives=1, lr=size.lr,
    batch_size=size.batch, epochs=1, get_trainer_func=trainer, verbose=0)
  if args.task == "bert4rec":
    model = bert4rec.BERT4RecModel(mask_prob=size.rate, **common)
  else:
    model = sasrec.SASRecModel(
      transformer_layers_type=net_blocks.PreLNTransformerLayers, **common)
  model.fit(interactions(workload.load(args.data_dir)))


def interactions(data):
  """Returns RecTools' data set of all training interactions; times are places in the sequence."""
  begin, end = data.span("train")
  users = np.repeat(np.arange(len(begin)), end - begin)
  rows = np.concatenate([np.arange(low, high) for low, high in zip(begin, end, strict=True)])
  frame = pd.DataFrame({"user_id": users, "item_id": np.asarray(data.items)[rows], "weight": 1.0,
                        "datetime": pd.to_datetime(rows, unit="s")})
  return rectools_dataset.Dataset.construct(frame)


if __name__ == "__main__":
  main()
