"""RecBole's BERT4Rec and SASRec, through its Config, data set, data loader and models.

The sequences are given as RecBole's "benchmark files", one row a user, since its own augmentation
makes every prefix a sequence. Of a sequence its SASRec predicts one item, the last, where the
others predict every next item: it has less to do. `step_s` is the optimizer step alone, without the
loader, whose masking is a Python loop.
"""

import importlib.metadata
import logging
import pathlib
import tempfile
import time

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed

from launch.bench import serving, workload

NAMES = {"bert4rec": "BERT4Rec", "sasrec": "SASRec"}


def main():
  args = serving.parse(__doc__, threads=0)
  if args.task not in NAMES:
    raise SystemExit(f"RecBole has no {args.task} of this kind")
  if args.threads:
    torch.set_num_threads(args.threads)
  session = serving.Session(
    args, versions={"recbole": importlib.metadata.version("recbole"), "torch": torch.__version__},
    precision="float32", settings=f"threads={torch.get_num_threads()}")
  logging.disable(logging.WARNING)
  size = serving.size(args)
  with tempfile.TemporaryDirectory() as folder:
    write(workload.load(args.data_dir), folder, size, masked=args.task == "bert4rec")
    config = Config(model=NAMES[args.task], dataset="ml1m",
                    config_dict=settings(args, folder, size))
    init_seed(args.seed, reproducibility=False)
    dataset = create_dataset(config)
    loader, _, _ = data_preparation(config, dataset)
  model = get_model(config["model"])(config, loader.dataset).to(config["device"])
  optimizer = torch.optim.Adam(model.parameters(), lr=size.lr)
  model.train()
  batches = endless(loader, size.batch)
  while session.wanted():
    batch = next(batches)
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    optimizer.step()
    step_s = time.perf_counter() - start
    session.took(loss=loss.item(), users=len(batch), step_s=step_s,
                 tokens=batch["item_length"].sum().item())


def endless(loader, size):
  """Yields whole batches of a loader, epoch after epoch."""
  while True:
    for batch in loader:
      if len(batch) == size:
        yield batch


def write(data, folder, size, *, masked):
  """Writes RecBole's atomic files: a row a user, its last items and (SASRec) the one after them."""
  rows = workload.windows(data, size.max_len + (not masked))
  path = pathlib.Path(folder, "ml1m")
  path.mkdir()
  for part in ("train", "valid", "test"):
    # All items once, so that the vocabulary is whole; they are no part of training.
    lines = [f"u{item}\t{item}\t{item}" for item in range(1, data.num_items + 1)]
    if part == "train":
      known = [row[row > 0] for row in rows]
      lines = [f"u{user}\t{' '.join(map(str, row if masked else row[:-1]))}\t{row[-1]}"
               for user, row in enumerate(known, 1)]
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    (path / f"ml1m.{part}.inter").write_text("\n".join([header, *lines]) + "\n")


def settings(args, folder, size):
  """Returns RecBole's config fields; dropout where it has it: after the embedding, on attention's
  weights, after both parts of a layer."""
  return {
    "data_path": folder, "checkpoint_dir": folder, "benchmark_filename": ["train", "valid", "test"],
    "alias_of_item_id": ["item_id_list"], "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id",
    "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
    "MAX_ITEM_LIST_LENGTH": size.max_len, "train_batch_size": size.batch, "eval_batch_size": 256,
    "n_layers": size.layers, "n_heads": size.heads, "hidden_size": size.width,
    "inner_size": size.hidden, "hidden_dropout_prob": size.dropout,
    "attn_dropout_prob": size.dropout, "mask_ratio": size.rate, "ft_ratio": 0.0,
    "loss_type": "CE", "train_neg_sample_args": None, "learning_rate": size.lr,
    "seed": args.seed, "use_gpu": False, "show_progress": False, "state": "ERROR", "worker": 0}


if __name__ == "__main__":
  main()
