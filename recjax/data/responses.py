"""Questions about a user's next behavior, and their answers, the labels.

A question is {"name", "of", "threshold"}. `of` says what is asked:

    clicks     whether the user chooses an item; others are drawn for comparison
    liked      whether the user rates an item with at least `threshold`
    rating     which rating the user gives next
    decade     when what the user chooses next was released, by the year that ends its title
    ATTRIBUTE  any attribute of items: the first value of what the user chooses next

Of the first two an item is given; they are told from the others by `is_click`.
"""

import re

import numpy as np

from recjax import errors
from recjax.data import behaviors
from recjax.data import ratings

CLICKS = ("clicks", "liked")
NO, YES = 1, 2  # labels of CLICKS; 0 is none, as everywhere
_YEAR = re.compile(rb"\((\d{3})\d\)\s*$")


def is_click(question):
  """Returns whether a question is about a given item."""
  return question["of"] in CLICKS


def columns(data, questions):
  """Returns {"label/NAME": int32 [R]} of questions, but those whose label is always yes."""
  return {f"label/{q['name']}": labels(data, q)[0] for q in questions if q["of"] != "clicks"}


def facts(data, questions):
  """Returns {model attribute: function that finds it}: (name, classes) of every question.

  Classes are 0 where an item is scored.
  """
  count = lambda q: 0 if is_click(q) else len(labels(data, q)[1]) - 1
  return {"responses": lambda: tuple((q["name"], count(q)) for q in questions)}


def labels(data, question):
  """Returns (int32 [R] label of every row, 0 for none; names bytes [L + 1], row 0 empty).

  Args:
    data: `sequences.Dataset`, not sharded.
    question: see the module's docstring; not of clicks.
  """
  of = question["of"]
  if of in ("liked", "rating") and data.ratings is None:
    raise errors.UserError(f"data set {data.name!r} has no ratings, which objective."
                           f"{question['name']} asks for")
  if of == "liked":
    likes = np.asarray(data.ratings) >= question["threshold"]
    return np.where(likes, YES, NO).astype(np.int32), np.array([b"", b"no", b"yes"])
  if of == "rating":
    return behaviors.levels(data), np.array([b"", *(b"%g" % x for x in ratings.levels(data))])
  of_item, names = _decades(data) if of == "decade" else _attribute(data, question)
  return of_item[np.asarray(data.items)], names


def _attribute(data, question):
  """Returns (int32 [N + 1], names) of the first value of an attribute."""
  known = {**data.features, "decade": None, "rating": None}
  feature = errors.choose(known, question["of"], f"objective.{question['name']}: attribute")
  return np.asarray(feature.values)[:, 0].astype(np.int32), np.asarray(feature.ids)


def _decades(data):
  """Returns (int32 [N + 1], names) of the decades that titles end with, "Jumanji (1995)"."""
  if "title" not in data.texts:
    raise errors.UserError(f"data set {data.name!r} has no titles, which name the decades")
  found = [_YEAR.search(title) for title in np.asarray(data.texts["title"]).tolist()]
  decade = np.array([b"" if match is None else match[1] + b"0s" for match in found])
  names, of_item = np.unique(np.append(b"", decade), return_inverse=True)
  if len(names) == 1:
    raise errors.UserError(f"data set {data.name!r}: no title ends with a year in parentheses")
  return of_item.reshape(-1)[1:].astype(np.int32), names
