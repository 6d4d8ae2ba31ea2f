"""BERT4Rec: a bidirectional transformer over a user's items (Sun et al. 2019)."""

from recjax.models import auxiliary
from recjax.models import patches
from recjax.models import transformer

VARIANTS = {
  # The code behind the survey's Table 2: pre-norm, tanh-GELU, untied head, user embedding.
  "survey_code": dict(norm="pre", act="gelu_tanh", output="untied", initializer="torch",
                      num_layers=6, item_width=128, user_width=32, heads=4, hidden=512,
                      max_len=100),
  # The survey's text (Eq. 3-6): post-norm and ReLU.
  "survey_text": dict(norm="post", act="relu", output="untied", initializer="torch", num_layers=6,
                      item_width=128, user_width=32, heads=4, hidden=512, max_len=100,
                      hidden_dropout=False, output_dropout=False),
  # Sun et al. 2019 on ML-1M: post-norm, embedding norm, segment rows, tied head behind a transform;
  # two tokens beside PAD and MASK, as the released vocabulary.
  "bert4rec": dict(norm="post", act="gelu_erf", output="tied_transform", initializer="bert",
                   num_layers=2, item_width=64, user_width=0, heads=2, hidden=256, max_len=200,
                   dropout=0.2, embed_norm=True, segments=2, extra_tokens=2, hidden_dropout=False,
                   output_dropout=False),
}


class BERT4Rec(transformer.SequenceTransformer):
  """Scores every item at a MASK from the items on both sides of it."""
  objectives = ("masked_item", "next_item", "contrast", *patches.USER_TASKS, *auxiliary.OF_ITEMS,
                *auxiliary.OF_USERS, *auxiliary.BIDIRECTIONAL)
