"""BERT4SessRec: clicks on items that are known by their content (Chen 2019c; Zeng et al. 2021).

Stage 1 fills in masked items of sessions, as BERT4Rec does; items are their content alone
(`features` with `aggregate="replace"`), on either side, so that new ones need no vector. Stage 2
scores a click on any item, s = MLP([u; v; u * v]), from the session's vector u and the item's v.

Letters: B batch, T positions, K items asked about, W width.
"""

import flax.linen as nn
import jax.numpy as jnp

from recjax import errors
from recjax.models import layers
from recjax.models import transformer

VARIANTS = {
  "bert4sessrec": dict(
    norm="post", act="gelu_erf", output="tied", initializer="bert", num_layers=2, item_width=64,
    user_width=0, heads=2, hidden=256, max_len=50, dropout=0.1, embed_norm=True, extra_tokens=1,
    hidden_dropout=False, output_dropout=False, aggregate="replace", widths=(256, 128),
    head_dropout=0.2),
}
READS = ("mask", "cls", "mean")


class BERT4SessRec(transformer.SequenceTransformer):
  """Scores every item at a MASK, or clicks on items after a session.

  Parameters live under embed/, encoder/block_i/ and head/click/: paths that checkpoints depend on.
  """
  responses: tuple = ()  # (name, classes) of the heads, found in the data
  read: str = "mask"  # u: the vector of an appended MASK or CLS, or the mean over the session
  widths: tuple = (256, 128)  # inside the head
  head_dropout: float = 0.2
  objectives = ("masked_item", "click")
  choices = {**transformer.SequenceTransformer.choices, "read": READS}

  @nn.compact
  def __call__(self, items, users, tables, *, positions=None, candidates=None, readout=None,
               targets=None, head=None, room=None, train=False):
    """Returns (scores of ids 0..N, or of clicks on `targets`; dict of intermediates).

    Args:
      items, users, tables, positions, candidates, readout, room, train: see
        `SequenceTransformer`.
      targets: int32 [B, K] items.
      head: "click": answers are [B, K] scores of `targets`.
    """
    if not self.responses or head is None and not self.is_initializing():
      x, table, out = self._encode(items, users, tables, positions, room=room, train=train)
      return self._score(x, table, candidates, readout), out
    session, table, out = self._session(items, users, tables, train=train)
    vectors = jnp.take(table, targets, axis=0)  # [B, K, W]
    session = jnp.broadcast_to(session[:, None], vectors.shape)
    joined = jnp.concatenate([session, vectors, session * vectors], -1)
    heads = layers.Heads(self.responses, self.widths, self.head_dropout, joined.dtype, name="head")
    (name, _), = self.responses
    return heads(name, joined, train=train), out

  def _session(self, items, users, tables, *, train):
    """Returns (u [B, W], vectors of all rows [R, W], intermediates).

    What is appended takes the place of the first of `max_len` items.
    """
    if self.read == "mean":
      x, table, out = self._encode(items, users, tables, None, train=train)
      keep = (items > 0)[..., None]
      return (x * keep).sum(1) / jnp.maximum(keep.sum(1), 1), table, out
    token = self.num_items + (1 if self.read == "mask" else 2)
    items = jnp.concatenate([items, jnp.full_like(items[:, :1], token)], axis=1)[:, -self.max_len:]
    last = jnp.full((len(items), 1), items.shape[1] - 1, jnp.int32)
    x, table, out = self._encode(items, users, tables, last, train=train)
    return x[:, 0], table, out

  def check(self):
    """Raises UserError where sizes do not fit together."""
    super().check()
    if not self.features or self.aggregate != "replace" or self.output != "tied":
      raise errors.UserError("config.model: bert4sessrec knows items by their content alone; name "
                             "model.features, and set aggregate=replace and output=tied")
    if self.user_width or self.fields:
      raise errors.UserError("config.model: bert4sessrec compares sessions with items, both of "
                             "item_width; set user_width=0 and fields=()")
    if self.read == "cls" and not self.extra_tokens:
      raise errors.UserError("config.model: read=cls needs a token of its own; set extra_tokens=1")

  def example_inputs(self):
    """Returns inputs that start the parameters, as small as can be."""
    inputs = super().example_inputs()
    return {**inputs, "targets": inputs["items"][:, :1]} if self.responses else inputs
