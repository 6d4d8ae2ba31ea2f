"""BERT4Rec, SASRec and Caser in PyTorch as they are usually written: plain modules, eager, float32.

The transformer is that of the common BERT4Rec implementations: attention as softmax(Q K^T) with
dropout on its weights, layer norm before each part, logits of all items at all positions, the loss
at the labels. Caser follows Tang & Wang 2018, Section 3.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from launch.bench import serving, workload


class Block(nn.Module):
  """One layer: attention and feed-forward, normed before, dropped out after."""

  def __init__(self, size):
    super().__init__()
    self.heads = size.heads
    self.query, self.key, self.value, self.out = (
      nn.Linear(size.width, size.width) for _ in range(4))
    self.norms = nn.ModuleList([nn.LayerNorm(size.width, eps=1e-6) for _ in range(2)])
    self.up, self.down = nn.Linear(size.width, size.hidden), nn.Linear(size.hidden, size.width)
    self.drop = nn.Dropout(size.dropout)

  def forward(self, x, mask):
    """[B, T, W] -> [B, T, W]; `mask` is True where attention may look, [B, 1, T or 1, T]."""
    x = x + self.drop(self.attend(self.norms[0](x), mask))
    hidden = functional.gelu(self.up(self.norms[1](x)), approximate="tanh")
    return self.drop(x + self.drop(self.down(self.drop(hidden))))

  def attend(self, x, mask):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017)."""
    split = lambda y: y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # [B, H, T, d]
    query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights = self.drop(scores.masked_fill(~mask, -1e9).softmax(-1))
    return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


class Transformer(nn.Module):
  """Encodes left-padded items; `head` scores ids 0..N."""

  def __init__(self, size, num_items, *, causal):
    super().__init__()
    self.items = nn.Embedding(num_items + 2, size.width)
    self.places = nn.Embedding(size.max_len, size.width)
    self.blocks = nn.ModuleList([Block(size) for _ in range(size.layers)])
    self.head = nn.Linear(size.width, num_items + 1)
    self.drop, self.causal = nn.Dropout(size.dropout), causal

  def forward(self, items):
    """int64 [B, T] -> [B, T, W]."""
    mask = (items > 0)[:, None, None]
    if self.causal:
      mask = mask & torch.ones(items.shape[1], items.shape[1], dtype=torch.bool).tril()
    x = self.drop(self.items(items) + self.places.weight)
    for block in self.blocks:
      x = block(x, mask)
    return x


class Caser(nn.Module):
  """Scores chosen items after a window of L items of a user (Tang & Wang 2018, Eq. 3-10)."""

  def __init__(self, size, num_items, num_users):
    super().__init__()
    self.items = nn.Embedding(num_items + 1, size.width)
    self.users = nn.Embedding(num_users + 1, size.width)
    self.vertical = nn.Conv2d(1, size.vertical, (size.max_len, 1))
    self.horizontal = nn.ModuleList([nn.Conv2d(1, size.horizontal, (height, size.width))
                                     for height in range(1, size.max_len + 1)])
    found = size.vertical * size.width + size.horizontal * size.max_len
    self.joined = nn.Linear(found, size.width)
    self.scores = nn.Embedding(num_items + 1, 2 * size.width)
    self.bias = nn.Embedding(num_items + 1, 1)
    self.drop = nn.Dropout(size.dropout)
    for table in (self.items, self.users, self.scores):
      nn.init.normal_(table.weight, std=1 / table.embedding_dim)
    nn.init.zeros_(self.bias.weight)

  def forward(self, users, items, candidates):
    """int64 [B], [B, L], [B, K] -> [B, K]."""
    image = self.items(items)[:, None]  # [B, 1, L, W]
    found = [self.vertical(image).flatten(1)]
    for convolution in self.horizontal:
      found.append(functional.relu(convolution(image)[..., 0]).amax(-1))
    z = functional.relu(self.joined(self.drop(torch.cat(found, 1))))
    z = torch.cat([z, self.users(users)], 1)
    return (self.scores(candidates) @ z[..., None] + self.bias(candidates))[..., 0]


def main():
  args = serving.parse(__doc__, threads=0)
  if args.threads:
    torch.set_num_threads(args.threads)
  torch.manual_seed(args.seed)
  data = workload.load(args.data_dir)
  session = serving.Session(args, versions={"torch": torch.__version__}, precision="float32",
                            settings=f"threads={torch.get_num_threads()}")
  run = caser if args.task == "caser" else transformer
  run(args, data, session)


def transformer(args, data, session):
  """Trains BERT4Rec or SASRec as long as the session wants."""
  size, num_items = serving.size(args), data.num_items
  masked = args.task == "bert4rec"
  rows = workload.windows(data, size.max_len + (not masked))
  model = Transformer(size, num_items, causal=not masked)
  optimizer = torch.optim.Adam(model.parameters(), lr=size.lr)
  rng, order = np.random.default_rng(args.seed), workload.batches(len(rows), size.batch, args.seed)
  while session.wanted():
    items = rows[next(order)]
    if masked:
      inputs, labels = workload.mask(items, rate=size.rate, num_items=num_items, rng=rng)
    else:
      inputs = items[:, :-1].astype(np.int64)
      labels = np.where(inputs > 0, items[:, 1:], 0).astype(np.int64)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer.zero_grad()
    if args.task == "sasrec_bce":
      loss = binary_loss(model, x, y, torch.randint(1, num_items + 1, y.shape))
    else:
      scores = model.head(model(x))
      loss = functional.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=0)
    loss.backward()
    optimizer.step()
    session.took(loss=loss.item(), users=len(items), tokens=(inputs > 0).sum())


def binary_loss(model, items, labels, negatives):
  """Returns the cross-entropy of the label against one negative at every position, their mean."""
  candidates = torch.stack([labels, negatives], -1)
  encoded = model(items)
  scores = (model.head.weight[candidates] @ encoded[..., None])[..., 0]
  scores = scores + model.head.bias[candidates]
  losses = functional.softplus(-scores[..., 0]) + functional.softplus(scores[..., 1])
  real = labels > 0
  return (losses * real).sum() / real.sum() / 2


def caser(args, data, session):
  """Trains Caser as long as the session wants; negatives are items that the user never had."""
  size = workload.CaserSize()
  users, rows = workload.sliding(data, size.max_len + size.targets)
  seen = np.zeros((data.num_users + 1, data.num_items + 1), bool)
  np.logical_or.at(seen, (users[:, None], rows), True)
  model = Caser(size, data.num_items, data.num_users)
  optimizer = torch.optim.Adam(model.parameters(), lr=size.lr, weight_decay=size.weight_decay)
  rng, order = np.random.default_rng(args.seed), workload.batches(len(rows), size.batch, args.seed)
  at_once = 20
  while session.wanted():
    for _ in range(at_once):
      chosen = next(order)
      owners, items = users[chosen], rows[chosen].astype(np.int64)
      drawn = rng.integers(1, data.num_items + 1, (size.batch, size.negatives))
      while (again := seen[owners[:, None], drawn]).any():
        drawn[again] = rng.integers(1, data.num_items + 1, again.sum())
      candidates = np.concatenate([items[:, size.max_len:], drawn], 1)
      scores = model(*map(torch.from_numpy, (owners.astype(np.int64), items[:, :size.max_len],
                                             candidates)))
      loss = (functional.softplus(-scores[:, :size.targets]).mean()
              + functional.softplus(scores[:, size.targets:]).mean())
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
    count = at_once * size.batch
    session.took(loss=loss.item(), users=count, tokens=count * size.max_len, steps=at_once)


if __name__ == "__main__":
  main()
