"""The survey's Table 1: MovieLens-1M and its two domains, ours beside the printed numbers.

No run is trained. What to expect: the source agrees wherever Table 1 has a number; the target has
5,811 users against 6,040, 1,013 items with an interaction against 1,012, and 606 items with
metadata against 512; the report says what is known of the reasons.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/table1.py --workdir=W --config.data_dir=DIR
"""

import ml_collections

from configs.studies import common
from recjax import spec


def get_config(arg=None):
  """Returns the study's config; there are no arguments."""
  spec.parse_arg(arg)  # One that is given is a mistake.
  config = ml_collections.ConfigDict()
  config.title = "Table 1: MovieLens-1M, whole and in two domains"
  config.data_dir = ""
  config.prepare = common.prepare("ml1m")
  covered = lambda printed, note=None: {
    f"feature_coverage/survey_{name}": (printed, note) for name in ("director", "actor")}
  config.data_rows = (
    ("whole", "ml1m", {
      "users": None, "items": None, "interactions": None, "mean_train_length": None,
      **covered("1,987")}),
    ("source", "ml1m_src", {
      "users": "6,040", "items": "2,656", "interactions": "622k", "mean_train_length": "97.9",
      **covered("1,381")}),
    ("target", "ml1m_tgt", {
      "users": ("6,040", "the survey counts every user of MovieLens-1M. Users with fewer than five "
                "target interactions cannot be split and are left out; its released files hold "
                "5,810, ours one more, because theirs lack the last user (6040)."),
      "items": ("1,012", "ours counts the whole domain, with items that no kept interaction has."),
      "items_seen": ("1,012", "which 15 interactions of a user are the last depends on how equal "
                     "times are ordered, and that can move an item in or out."),
      "interactions": "81k", "mean_train_length": "8.85",
      **covered("512", "the released table of metadata covers more of the target's items than "
                "Table 1 says; the reason is not known.")}),
  )
  config.notes = """\
- Published: Zeng et al. 2021, "Knowledge Transfer via Pre-training for Recommendation: A Review and
  Prospect", Table 1. Items with metadata are those that the authors' released table has a director
  or an actor for (`survey_director`, `survey_actor`).
- The mean train length is over all users with interactions, also those without train items."""
  return config
