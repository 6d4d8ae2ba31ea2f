"""External names of every row that a model's tables may have."""

import numpy as np

# A control character in front keeps special rows apart from any external id.
PAD, MASK, UNKNOWN = b"\x01pad", b"\x01mask", b"\x01unknown"


def row_names(data, *, extra_tokens=0, also_trained=()):
  """Returns {vocabulary: (names bytes [rows], trained bool [rows])} of a data set.

  Vocabularies: "item" (PAD, items, MASK, extra tokens), "output" (PAD, items), "user" (users 1..U)
  and every attribute (values 1..K, unknown). Rows that `data` does not train (items of other
  domains, users without training interactions, attributes of no item here) are marked, since a
  transfer must not carry what was never learned.

  Args:
    data: `sequences.Dataset`.
    extra_tokens: ids after MASK.
    also_trained: bool [N + 1] each, items whose own vectors are trained, of whichever domain.
  """
  special = [MASK] + [b"\x01token%d" % i for i in range(extra_tokens)]
  items = np.asarray(data.item_ids[1:])
  here = np.asarray(data.in_domain[1:])
  learned = np.logical_or.reduce([here, *(flags[1:] for flags in also_trained)])
  names = {
    "item": (_join([PAD], items, special), _join_flags(True, learned, len(special))),
    "output": (_join([PAD], items, []), _join_flags(True, here, 0)),
    "user": (np.asarray(data.user_ids[1:]), data.lengths("train")[1:] > 0),
  }
  for field, feature in data.features.items():
    used = np.zeros(len(feature.ids), bool)
    used[np.asarray(feature.values)[data.in_domain].ravel()] = True
    names[field] = (_join([], np.asarray(feature.ids[1:]), [UNKNOWN]), np.append(used[1:], True))
  return names


def _join(before, middle, after):
  width = max([middle.dtype.itemsize, *map(len, before), *map(len, after)])
  parts = [np.array(part, f"S{width}").reshape(-1) for part in (before, middle, after)]
  return np.concatenate(parts)


def _join_flags(first, middle, after):
  return np.concatenate([[first], middle, np.ones(after, bool)])
