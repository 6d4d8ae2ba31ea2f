"""A transformer over baskets, which tells whether one follows the other (Yang et al. 2019).

BERT (Devlin et al. 2019) with items for words and baskets for sentences: [CLS] b1 [SEP] b2 [SEP].
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax.models import layers
from recjax.models import transformer

VARIANTS = {
  # Small, in the shape of Sun et al. 2019 and as BERT otherwise.
  "bert": dict(norm="post", act="gelu_erf", output="tied_transform", initializer="bert",
               num_layers=2, item_width=64, user_width=0, heads=2, hidden=256, max_len=64,
               dropout=0.1, embed_norm=True, hidden_dropout=False, output_dropout=False),
}


class Pooler(nn.Module):
  """The two logits, "does not follow" and "follows", of a pair from its first position."""
  initializer: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """Returns float32 [..., 2]."""
    width = x.shape[-1]
    project = lambda size, name: layers.dense(size, initializer=self.initializer, fan_in=width,
                                              name=name, dtype=self.dtype)
    return project(2, "follows")(nn.tanh(project(width, "pooler")(x))).astype(jnp.float32)


class BasketBERT(transformer.SequenceTransformer):
  """Scores items at positions of two baskets, or whether the second follows the first.

  Ids after MASK are CLS and SEP. What tells pairs apart lives under pair/.
  """
  max_len: int = 64
  segments: int = 2
  extra_tokens: int = 2
  objectives = ("masked_basket", "next_basket", "basket_items")

  @nn.compact
  def __call__(self, items, users, tables, *, segments, ages=None, positions=None, candidates=None,
               readout=None, pairs=False, train=False):
    """Returns (scores, dict of intermediates), as `transformer.SequenceTransformer` does.

    Args:
      items: int32 [B, T]; N + 1 is MASK, N + 2 CLS, N + 3 SEP.
      users: int32 [B]; 0 is an unknown user.
      tables: {field: int32 [N + 4, slots]}.
      segments: int32 [B, T], 0 for the first basket and 1 for the second.
      ages: see `sequence_embed.SequenceEmbed`.
      positions: int32 [S, C].
      candidates: see `transformer.SequenceTransformer`, as is the next.
      readout: likewise.
      pairs: True: `positions` are those of CLS, and float32 [S, C, 2] of the pairs come back.
      train: whether dropout is on.
    """
    x, table, out = self._encode(items, users, tables, positions, train=train, segments=segments,
                                 ages=ages)
    pooler = Pooler(self.initializer, jnp.dtype(self.dtype), name="pair")
    if self.is_initializing():
      pooler(x)
    if pairs:
      return pooler(x), out
    return self._score(x, table, candidates, readout), out

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    inputs = super().example_inputs()
    return {**inputs, "segments": jnp.zeros_like(inputs["items"])}

  def transfer_rules(self, mode):
    """Returns the rules of a transfer mode, or None for an unknown mode.

    "model" carries all but what tells pairs apart: the target ranks items, as the source's head of
    masked items does.
    """
    if mode == "model":
      return ((r"(embed|encoder|head)/.*", r"\g<0>"),)
    return super().transfer_rules(mode)
