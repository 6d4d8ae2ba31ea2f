"""The arithmetic that training on a user cannot do without: what a share of the peak refers to.

A multiply and an add are two FLOPs. Counted are matrix products alone, of real tokens alone:

    every layer but the last   2 W (3 W)  queries, keys, values of n tokens
                               2 W per pair that attention looks at, and again to mix the values
                               2 W W      the output projection
                               4 W F      feed-forward
    the last layer             keys and values of n tokens, the rest for the m tokens with a label
    head                       2 W (N + 1) for each of the m labels, or 2 W K against K candidates

With W the width, F the feed-forward width. Backward is twice that: one product for the inputs and
one for the weights. Norms, softmax, dropout, embeddings and the optimizer count as nothing.
"""

import numpy as np


def transformer(length, labels, *, size, outputs, causal=False):
  """Returns the FLOPs of training on one user, or on each of an array of users.

  Args:
    length: n, real tokens of the user.
    labels: m, how many of them have a label.
    size: `workload.Size`.
    outputs: N + 1 scores of each label, or as many as there are candidates.
    causal: whether a token looks at itself and those before it only; then all tokens but those
      without a label are last, which for next items is none (m = n).
  """
  n, m = np.asarray(length, np.float64), np.asarray(labels, np.float64)
  wide, hidden = size.width, size.hidden
  pairs = n * (n + 1) / 2 if causal else n * n
  seen = pairs * m / np.maximum(n, 1)  # by the labeled tokens, on average
  rest = 2 * wide * wide + 4 * wide * hidden  # output projection and feed-forward of a token
  full = n * (6 * wide * wide + rest) + 4 * wide * pairs
  last = n * 4 * wide * wide + m * (2 * wide * wide + rest) + 4 * wide * seen
  forward = (size.layers - 1) * full + last + m * 2 * wide * outputs
  return 3 * forward


def of_task(task, lengths, *, size, num_items):
  """Returns the FLOPs of a user, the mean over `lengths` of their inputs.

  Args:
    task: bert4rec, sasrec or sasrec_bce.
    lengths: int [users].
    size: `workload.Size`.
    num_items: N.
  """
  masked = task == "bert4rec"
  labels = np.asarray(lengths) * (size.rate if masked else 1.0)
  outputs = 2 if task == "sasrec_bce" else num_items + 1
  return float(np.mean(transformer(lengths, labels, size=size, outputs=outputs,
                                   causal=not masked)))


def padded(task, size, *, num_items):
  """Returns the FLOPs of one user of `task`, bert4rec or sasrec, when padding is computed too.

  The usual "model FLOPs": every layer on all positions, attention on all pairs of them, logits
  where there are labels.
  """
  n = size.max_len
  m = n * (size.rate if task == "bert4rec" else 1.0)
  everywhere = transformer(n, n, size=size, outputs=0)
  return float(everywhere + 3 * m * 2 * size.width * (num_items + 1))
