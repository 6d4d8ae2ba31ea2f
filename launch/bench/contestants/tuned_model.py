"""The transformer of recjax's `survey_code` in PyTorch, written for speed; parameters by its names.

Everything that does not depend on padding or labels is one function of tensors, which torch.compile
takes whole: `Model.forward` returns the sum of the losses at given positions.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class Model(nn.Module):
  """Losses at chosen positions of left-padded items."""

  def __init__(self, size, num_items, *, causal, attention="sdpa"):
    super().__init__()
    self.size, self.causal, self.attention = size, causal, attention
    width, hidden = size.width, size.hidden
    shapes = {"embed/item/embedding": (num_items + 2, width),
              "embed/item_pos/embedding": (size.max_len, width)}
    for index in range(size.layers):
      block = f"encoder/block_{index}"
      for name, out, into in (("attention/qkv", 3 * width, width), ("attention/out", width, width),
                              ("mlp/up", hidden, width), ("mlp/down", width, hidden)):
        shapes |= {f"{block}/{name}/kernel": (out, into), f"{block}/{name}/bias": (out,)}
      for name in ("attention_norm", "mlp_norm"):
        shapes |= {f"{block}/{name}/scale": (width,), f"{block}/{name}/bias": (width,)}
    shapes |= {"head/scores/kernel": (num_items + 1, width), "head/scores/bias": (num_items + 1,)}
    self.leaves = nn.ParameterDict({name: nn.Parameter(torch.empty(shape))
                                    for name, shape in shapes.items()})
    self._start()

  def _start(self):
    """Starts as torch's own layers do: tables N(0, 1), weights and biases U(+-1 / sqrt(fan in))."""
    for name, leaf in self.leaves.items():
      if name.endswith("embedding"):
        nn.init.normal_(leaf)
      elif "norm/" in name:
        nn.init.constant_(leaf, float(name.endswith("scale")))
      else:
        bound = 1 / math.sqrt(self.leaves[name.replace("/bias", "/kernel")].shape[1])
        nn.init.uniform_(leaf, -bound, bound)

  def forward(self, items, positions, labels, negatives=None):
    """Returns the summed loss.

    Args:
      items: int64 [B, T].
      positions: int64 [C], flat, where there are labels; any place for those that are unused.
      labels: int64 [C], 0 where unused.
      negatives: int64 [C]: binary cross-entropy against them in place of the softmax.
    """
    x = self.encode(items).flatten(0, 1)[positions]
    if negatives is None:
      scores = self._linear(x, "head/scores")
      return functional.cross_entropy(scores, labels, ignore_index=0, reduction="sum")
    candidates = torch.stack([labels, negatives], -1)
    rows = self.leaves["head/scores/kernel"][candidates]
    scores = (rows * x[:, None]).sum(-1) + self.leaves["head/scores/bias"][candidates]
    losses = functional.softplus(-scores[:, 0]) + functional.softplus(scores[:, 1])
    return (losses * (labels > 0)).sum() / 2

  def encode(self, items):
    """int64 [B, T] -> [B, T, W]; position tables are aligned to the right."""
    length = items.shape[1]
    x = functional.embedding(items, self.leaves["embed/item/embedding"])
    x = self._drop(x + self.leaves["embed/item_pos/embedding"][-length:])
    mask = (items > 0)[:, None, None]
    if self.causal:
      past = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
      # A row of padding alone must look somewhere, or its softmax is NaN.
      mask = mask & past | torch.eye(length, dtype=torch.bool, device=items.device)
    for index in range(self.size.layers):
      block = f"encoder/block_{index}"
      y = self._attend(self._norm(x, f"{block}/attention_norm"), mask, block)
      x = x + self._drop(y)
      y = functional.gelu(self._linear(self._norm(x, f"{block}/mlp_norm"), f"{block}/mlp/up"),
                          approximate="tanh")
      x = self._drop(x + self._drop(self._linear(self._drop(y), f"{block}/mlp/down")))
    return x

  def _attend(self, x, mask, block):
    batch, length, width = x.shape
    heads, dropout = self.size.heads, self.size.dropout if self.training else 0.0
    qkv = self._linear(x, f"{block}/attention/qkv").view(batch, length, 3, heads, width // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    if self.attention == "sdpa":
      mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask,
                                                      dropout_p=dropout)
    else:
      scores = query @ key.transpose(-2, -1) / math.sqrt(width // heads)
      weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
      mixed = self._drop(weights).to(value.dtype) @ value
    return self._linear(mixed.transpose(1, 2).reshape(batch, length, width),
                        f"{block}/attention/out")

  def _linear(self, x, name):
    return functional.linear(x, self.leaves[f"{name}/kernel"], self.leaves[f"{name}/bias"])

  def _norm(self, x, name):
    return functional.layer_norm(x, x.shape[-1:], self.leaves[f"{name}/scale"],
                                 self.leaves[f"{name}/bias"], eps=1e-6)

  def _drop(self, x):
    return functional.dropout(x, self.size.dropout, self.training)

  def export(self):
    """Returns {name: float32 array}, in the shapes of recjax's leaves."""
    arrays = {name: leaf.detach().float().cpu().numpy() for name, leaf in self.leaves.items()}
    return {name: x.T if name.endswith("kernel") else x for name, x in arrays.items()}
