"""BERT4Rec and SASRec in PyTorch, tuned by hand.

Logits only where there are labels, fused QKV, scaled_dot_product_attention, fused Adam, and as
options, `--options=bf16=1,compile=1,...` (launch/bench/tune.py finds the quickest):

    bf16      autocast to bfloat16
    compile   torch.compile (on a CPU it needs a C++ compiler)
    attention sdpa, or manual: softmax(Q K^T) written out
    micro     rows differentiated at once; gradients are added up
    cut       rows sorted by length, micro-batches cut to 25, 50 or 75 columns where these suffice:
              what recjax's fast path does
    threads   of torch; 0 is its own choice
"""

import numpy as np
import torch

from launch.bench import serving, workload
from launch.bench.contestants import tuned_model

WIDTHS = (25, 50, 75)
DEFAULTS = {"bf16": 0, "compile": 0, "attention": "sdpa", "micro": 0, "cut": 0, "threads": 0}


class Trainer:
  """A model, its optimizer and its batches: `step()` trains on the next batch."""

  def __init__(self, task, data, size, seed, options, device="cpu"):
    """Sets up a run.

    Args:
      task: bert4rec, sasrec or sasrec_bce.
      data: `sequences.Dataset`.
      size: `workload.Size`.
      seed: of everything.
      options: see the module's docstring.
      device: of torch.
    """
    if options["threads"]:
      torch.set_num_threads(options["threads"])
    torch.manual_seed(seed)
    self.masked, self.binary = task == "bert4rec", task == "sasrec_bce"
    self.size, self.options, self.device = size, options, device
    self.num_items = data.num_items
    self.rows = workload.windows(data, size.max_len + (not self.masked))
    self.model = tuned_model.Model(size, data.num_items, causal=not self.masked,
                                   attention=options["attention"]).to(device)
    self.run = torch.compile(self.model) if options["compile"] else self.model
    self.optimizer = torch.optim.Adam(self.model.parameters(), lr=size.lr, fused=True)
    if device != "cpu":
      torch.set_float32_matmul_precision("high")  # TF32, as launch/bench/gpu.py gives to recjax
    self.rng = np.random.default_rng(seed)
    self.order = workload.batches(len(self.rows), size.batch, seed)
    self.micro = options["micro"] or size.batch
    lengths = (self.rows > 0).sum(1) - (not self.masked)
    rate = size.rate if self.masked else 1.0
    spread = rate * (1 - rate) * lengths.mean() + rate**2 * lengths.var()
    self.room = self._round(self.micro * rate * lengths.mean() + 8 * np.sqrt(self.micro * spread))

  @staticmethod
  def _round(count):
    return -(-int(np.ceil(count)) // 64) * 64

  def step(self):
    """Returns (loss, users, tokens) of one optimizer step."""
    found = self.forward_backward()
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return found

  def compile(self):
    """Compiles for every shape that there may be, without training."""
    for _ in range(2):
      self.forward_backward()
    self.optimizer.zero_grad(set_to_none=True)

  def forward_backward(self):
    """Returns (loss, users, tokens) of the next batch; its gradients are in the parameters."""
    items = self.rows[next(self.order)]
    if self.masked:
      inputs, labels = workload.mask(items, rate=self.size.rate, num_items=self.num_items,
                                     rng=self.rng)
    else:
      inputs = items[:, :-1].astype(np.int64)
      labels = np.where(inputs > 0, items[:, 1:], 0).astype(np.int64)
    tokens = int((inputs > 0).sum())
    if self.options["cut"]:
      order = np.argsort((inputs > 0).sum(1), kind="stable")
      inputs, labels = inputs[order], labels[order]
    weight = max(int((labels > 0).sum()), 1)
    total = 0.0
    for low in range(0, len(inputs), self.micro):
      part = slice(low, low + self.micro)
      loss = self._loss(inputs[part], labels[part]) / weight
      loss.backward()
      total += loss.detach()
    return float(total), len(items), tokens

  def _loss(self, inputs, labels):
    room, longest = self.room, inputs.shape[1]
    if self.options["cut"]:
      needed = int((inputs > 0).sum(1).max())
      longest = next((width for width in WIDTHS if width >= needed), longest)
      inputs, labels = inputs[:, -longest:], labels[:, -longest:]
      share = self.size.rate if self.masked else 1.0
      most = len(inputs) * longest
      room = min(self._round(most * share + 8 * np.sqrt(most * share * (1 - share))), most)
    flat = labels.reshape(-1)
    found = np.flatnonzero(flat)[:room]
    positions = np.zeros(room, np.int64)
    positions[:len(found)] = found
    picked = np.where(np.arange(room) < len(found), flat[positions], 0)
    arrays = [inputs, positions, picked]
    if self.binary:
      arrays.append(self.rng.integers(1, self.num_items + 1, room))
    put = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(self.device, non_blocking=True)
    with torch.autocast(torch.device(self.device).type, torch.bfloat16,
                        enabled=bool(self.options["bf16"])):
      return self.run(*map(put, arrays))


def parse_options(text):
  """Returns the options of "name=value,...", those not named as in DEFAULTS."""
  options = dict(DEFAULTS)
  for part in filter(None, text.split(",")):
    name, _, value = part.partition("=")
    if name not in options:
      raise SystemExit(f"--options: unknown {name!r}; there are {', '.join(options)}")
    options[name] = value if name == "attention" else int(value)
  return options


def write_options(options):
  """Returns options as `parse_options` reads them."""
  return ",".join(f"{name}={value}" for name, value in options.items())


def main():
  args = serving.parse(__doc__, options="", device="cpu", at_once=1)
  data, size = workload.load(args.data_dir), serving.size(args)
  options = parse_options(args.options)
  trainer = Trainer(args.task, data, size, args.seed, options,
                    device=args.device)
  session = serving.Session(
    args, versions={"torch": torch.__version__},
    precision="bfloat16" if options["bf16"] else "float32",
    settings=write_options({**options, "threads": torch.get_num_threads()}),
    card=torch.cuda.get_device_name() if args.device == "cuda" else "cpu")
  while session.wanted():
    losses, users, tokens = zip(*(trainer.step() for _ in range(args.at_once)))
    if args.device == "cuda":
      torch.cuda.synchronize()
      session.facts["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
    session.took(loss=losses[-1], users=sum(users), tokens=sum(tokens), steps=args.at_once)


if __name__ == "__main__":
  main()
