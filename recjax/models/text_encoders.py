"""One vector of a text: word averages, convolutions, a recurrent network, a transformer.

Letters: n texts, L words, D width of words and of what comes out. Texts are padded on the right;
padding changes nothing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax.models import layers

WIDTHS = (3, 4, 5)  # of convolutions, Kim 2014


class WordAverage(nn.Module):
  """The mean of the words' vectors; weighted, where there are weights."""
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep, weights):
    """Returns [n, D].

    Args:
      x: [n, L, D], zero at padding.
      keep: bool [n, L], False at padding.
      weights: float32 [n, L], zero at padding, or None.
    """
    weights = keep.astype(x.dtype) if weights is None else weights.astype(x.dtype)
    total = jnp.einsum("nl,nld->nd", weights, x)
    return total / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)


class CNN(nn.Module):
  """Convolutions over 3, 4 and 5 words, ReLU, the largest over time, joined (Kim 2014).

  A window begins at every word and may reach beyond the last one, where everything is zero.
  """
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep, weights):
    """Returns [n, D]; see `WordAverage`."""
    found = []
    for width in WIDTHS:
      convolve = layers.Convolution(width, 0, nn.initializers.lecun_normal(), self.dtype,
                                    name=f"conv_{width}")
      y = nn.relu(convolve(x))
      found.append(jnp.where(keep[..., None], y, 0).max(1))  # ReLU: nothing is below 0
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(jnp.concatenate(found, -1))


class BiGRUAttention(nn.Module):
  """A GRU in each direction and additive attention, a = softmax(q^T tanh(W h + b)).

  Bahdanau et al. 2015, as Bansal et al. 2016 read the texts of items.
  """
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep, weights):
    """Returns [n, D]; see `WordAverage`."""
    width = x.shape[-1]
    cell = lambda name: nn.RNN(nn.GRUCell(-(-width // 2), dtype=self.dtype), name=name)
    lengths = keep.sum(1)
    h = nn.Bidirectional(cell("forward"), cell("backward"))(x, seq_lengths=lengths)  # [n, L, ~D]
    query = self.param("query", nn.initializers.normal(width**-0.5), (width,))
    scores = jnp.tanh(nn.Dense(width, dtype=self.dtype, name="attention")(h)) @ query
    scores = jnp.where(keep, scores.astype(jnp.float32), layers.MASKED_SCORE)
    mixed = jnp.einsum("nl,nld->nd", nn.softmax(scores).astype(h.dtype), h)
    return nn.Dense(width, dtype=self.dtype, name="out")(mixed)


class TransformerCLS(nn.Module):
  """One pre-norm transformer layer over [CLS] and the words; what CLS has become comes back."""
  max_len: int
  dtype: jnp.dtype
  heads: int = 2

  @nn.compact
  def __call__(self, x, keep, weights):
    """Returns [n, D]; see `WordAverage`."""
    start, width = nn.initializers.normal(0.02), x.shape[-1]
    cls = self.param("cls", start, (width,)).astype(self.dtype)
    places = self.param("places", start, (self.max_len, width)).astype(self.dtype)
    x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, width)), x + places[:x.shape[1]]], 1)
    keep = jnp.pad(keep, ((0, 0), (1, 0)), constant_values=True)
    norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
    attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
    y = norm("attention_norm")(x)
    # Only CLS is read, so only CLS need ask.
    x = x[:, :1] + attend(y[:, :1], y, mask=keep[:, None, None])
    y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="up")(norm("mlp_norm")(x)))
    x = x + nn.Dense(width, dtype=self.dtype, name="down")(y)
    return norm("final_norm")(x)[:, 0]


def without_principal(x, known):
  """Returns x [n, D] less its part along the first principal component (Arora et al. 2017).

  The component is that of all rows that are `known` (bool [n]), uncentered; no gradient passes
  through it.
  """
  rows = jnp.where(known[:, None], x, 0).astype(jnp.float32)
  axis = jax.lax.stop_gradient(jnp.linalg.eigh(rows.T @ rows)[1][:, -1]).astype(x.dtype)
  return x - (x @ axis)[:, None] * axis
