"""Causal transformers: the next item at every position, as SASRec (Kang & McAuley 2018)."""

from recjax.models import auxiliary
from recjax.models import patches
from recjax.models import transformer

VARIANTS = {
  # The survey's transformer with a causal mask: its next-item twin, with the same transfer rules.
  "survey_code": dict(norm="pre", act="gelu_tanh", output="untied", initializer="torch",
                      num_layers=6, item_width=128, user_width=32, heads=4, hidden=512,
                      max_len=100),
  # Small and tied, in the shape of the paper's ML-1M model, without a user embedding.
  "sasrec": dict(norm="pre", act="relu", output="tied", initializer="bert", num_layers=2,
                 item_width=64, user_width=0, heads=1, hidden=64, max_len=200, dropout=0.2,
                 final_norm=True, output_dropout=False),
  # The paper's ML-1M model as its authors released it. Their layer norm adds 1e-8 to the variance,
  # ours 1e-6.
  "kang": dict(norm="query", act="relu", output="tied", initializer="glorot", num_layers=2,
               item_width=50, user_width=0, heads=1, hidden=50, max_len=200, dropout=0.2,
               final_norm=True, output_dropout=False, scale_items=True),
  # The same blocks, wider and without the scale, as the PyTorch code of Petrov & Macdonald 2023: a
  # second item table scores. With one table, what lowers the scores of all items makes all inputs
  # alike, and training stays at popularity for thousands of steps. Where it starts is ours: vectors
  # are small (theirs N(0, 1)), and scores have biases (theirs none) of log(beta / K), where gBCE of
  # equal scores is least (the prior of Lin et al. 2017, Focal Loss, Section 3.3). NDCG@10 on
  # MovieLens-1M's validation after 240 steps with dropout 0.2: 13.3, without small vectors 2.8;
  # without either, with dropout 0.5, 2.1.
  "gsasrec": dict(norm="query", act="relu", output="untied", initializer="bert", num_layers=2,
                  item_width=128, user_width=0, heads=1, hidden=128, max_len=200, dropout=0.5,
                  final_norm=True, output_dropout=False, head_bias=-6.73),
}


class SASRec(transformer.SequenceTransformer):
  """Scores the item after every position from that position and those before it."""
  causal: bool = True
  objectives = ("causal_next_item", "contrast", *patches.USER_TASKS, *auxiliary.OF_ITEMS,
                *auxiliary.OF_USERS)
