"""Small trainable parts in a frozen network: what is trained of it, and the parts themselves.

Every part starts as nothing: a freshly patched network computes bit for bit what the network does.
The name of a part's module begins with "patch_", wherever it stands.

  none        nothing is added: the head alone is trained
  serial_two, serial_one, parallel   bottlenecks of PeterRec (Yuan et al. 2020), in convolutions
  adapter     bottlenecks behind attention and the feed-forward part (Houlsby et al. 2019)
  lora        low-rank additions to every matrix of a block (Hu et al. 2022)
  bias        nothing is added: every bias is trained (Ben Zaken et al. 2022, BitFit)
  prefix      further keys and values of attention (Li & Liang 2021)

Letters: W width, d of a bottleneck, r rank, P prefixes, H heads.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from recjax.models import layers

CONVOLUTIONAL = ("none", "serial_two", "serial_one", "parallel", "bias")
TRANSFORMER = ("none", "adapter", "lora", "bias", "prefix")
ROWS_ONLY = ("adapter", "prefix")  # not in `columns`
USER_TASKS = ("profile", "first_item")  # objectives that read a whole user; see the objectives
HEAD = r"head/.*"
PART = r".*/patch_[^/]+/.*"
# What a kind trains beside the head. PeterRec's code trains the second norm of each block too.
_TRAINED = {
  "none": (), "bias": (r".*/bias",), "lora": (PART,), "prefix": (PART,),
  **dict.fromkeys(("serial_two", "serial_one", "parallel"), (PART, r"encoder/block_\d+/norm_1/.*")),
  "adapter": (PART, r"(.*/)?[a-z_]*norm/.*"),
}


class Patch(NamedTuple):
  """What is added to every block (see the module): its kind, its size and the scale of LoRA."""
  kind: str
  size: int = 0
  scale: float = 1.0


NONE = Patch("none")


def transfer_rules(kind):
  """Returns what mode "patch" carries: all but the head, which the task has for its own."""
  fresh = ((PART, None),) if PART in _TRAINED[kind] else ()
  return (*fresh, (r"(embed|encoder)/.*", r"\g<0>"))


def optim_rules(kind, head=HEAD):
  """Returns rules of `recjax.optim` that freeze all but what a kind trains.

  Args:
    kind: a key of the table above.
    head: regex of what scores, which every task has for its own.
  """
  return (("|".join((*_TRAINED[kind], head)), {}), (r".*", {"freeze": True}))


class Bottleneck(nn.Module):
  """MP(x) = W_up GELU(W_down x + b) + b', W -> d -> W, without the skip around it."""
  width: int  # d
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    start = dict(kernel_init=layers.table_init("bert"), dtype=self.dtype)
    hidden = layers.ACTIVATIONS["gelu_tanh"](nn.Dense(self.width, name="down", **start)(x))
    return nn.Dense(x.shape[-1], name="up", **{**start, "kernel_init": nn.initializers.zeros_init()}
                    )(hidden)


class LowRank(nn.Module):
  """scale B (A x), beside a matrix W -> parts x features (Hu et al. 2022); B starts at 0."""
  rank: int  # r
  parts: int  # matrices that stand side by side in one, each with an A and a B of its own
  scale: float  # a / r
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, features):
    """Returns [..., parts * features]."""
    start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=(1, 2))
    down = self.param("down", start, (x.shape[-1], self.parts, self.rank))
    up = self.param("up", nn.initializers.zeros_init(), (self.parts, self.rank, features))
    code = jnp.einsum("...w,wpr->...pr", x, down.astype(self.dtype))
    found = jnp.einsum("...pr,prf->...pf", code, up.astype(self.dtype)) * self.scale
    return found.reshape(*x.shape[:-1], self.parts * features)


def dense(x, features, *, name, patch, initializer, dtype, parts=1):
  """Returns what a Dense layer of the calling module, with its low-rank addition, makes of x.

  Args:
    x: [..., W].
    features: of each of the `parts` that are computed side by side.
    name: of the layer.
    patch: a Patch.
    initializer: see `layers.dense`.
    dtype: likewise.
    parts: see `LowRank`.
  """
  y = layers.dense(parts * features, initializer=initializer, fan_in=x.shape[-1], name=name,
                   dtype=dtype)(x)
  if patch.kind == "lora":
    y = y + LowRank(patch.size, parts, patch.scale, dtype, name=f"patch_{name}")(
      x, features)
  return y


class Prefix(nn.Module):
  """What queries read from P learned keys and values (Li & Liang 2021), heads apart.

  The softmax goes over the prefixes alone, and their values start at 0, so that what is there
  already is left as it is; inside one softmax even a value of 0 would take weight from the others.
  """
  length: int  # P
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, query):
    """Returns [B, T, H, d] for queries of that shape."""
    shape = (self.length, *query.shape[2:])
    key = self.param("key", nn.initializers.normal(1.0), shape).astype(self.dtype)
    value = self.param("value", nn.initializers.zeros_init(), shape).astype(self.dtype)
    scores = jnp.einsum("bthd,phd->bhtp", query, key) / math.sqrt(query.shape[-1])
    weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
    return jnp.einsum("bhtp,phd->bthd", weights, value)


def size(kind, given, width):
  """Returns d, r or P of a kind: what is `given`, or without (0) W / 8, 8 and 8."""
  return given or (8 if kind in ("lora", "prefix") else max(width // 8, 1))


def merge(params, scale):
  """Returns a parameter tree with its low-rank additions added to their matrices, W + scale A B.

  The network without additions then computes what the one with them does, up to rounding.
  """
  if not isinstance(params, dict):
    return params
  tree = {}
  for name, node in params.items():
    added = params.get(f"patch_{name}")
    if name.startswith("patch_") and params.get(name.removeprefix("patch_")) is not None:
      continue
    tree[name] = merge(node, scale)
    if added is not None:
      added = jnp.einsum("wpr,prf->wpf", added["down"], added["up"])
      tree[name]["kernel"] += scale * added.reshape(tree[name]["kernel"].shape)
  return tree
