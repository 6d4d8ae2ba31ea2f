"""The survey's defective Caser protocol: wrong in exactly the known way, and only on request."""

import dataclasses
import pathlib

import evaluator_data
import numpy as np
import pytest

from configs import common
from recjax import errors
from recjax import spec
from recjax.data import sequences
from recjax.evaluators import candidates
from recjax.evaluators import ranking

LEGACY = "survey_caser_legacy"


def _data():
  data = evaluator_data.random_dataset(num_users=60)
  rank = np.random.default_rng(5).permutation(data.num_items) + 1
  return dataclasses.replace(data, first_seen=np.concatenate([[0], rank]).astype(np.int32))


def test_the_item_before_is_the_one_that_appeared_before():
  data = _data()
  before = candidates.item_before(data)
  for item in range(1, data.num_items + 1):
    rank = data.first_seen[item]
    want = item if rank == 1 else np.flatnonzero(data.first_seen == rank - 1)[0]
    assert before[item] == want
  assert before[0] == 0  # padding stays padding


def test_the_neighbors_of_positives_are_ranked_among_the_same_negatives():
  data = _data()
  before, users = candidates.item_before(data), data.users_in("test")
  scores = np.random.default_rng(0).normal(
    size=(data.num_users + 1, data.num_items + 1)).astype(np.float32)
  found = ranking.Ranking(data, protocols=(LEGACY, "uniform100_global"), contexts=("train",),
                          batch_size=16).run(evaluator_data.lookup, scores)
  negatives = candidates.sample(data, users, "test", "uniform100_global")
  begin, end = data.span("test")
  for row, user in enumerate(users):
    positives = np.unique(data.items[begin[user]:end[user]])
    for protocol, mine in ((LEGACY, before[positives]), ("uniform100_global", positives)):
      own, others = scores[user, mine], scores[user, negatives[row]]
      # A neighbor that is also among the negatives ties with itself: half of the cases are a hit.
      above = [(own > s).sum() + (others > s).sum() for s in own]
      ties = [(others == s).sum() for s in own]
      hits = sum(np.clip((10 - a) / (t + 1), 0, 1) for a, t in zip(above, ties, strict=True))
      recall = found.values["train"][protocol]["recall@10"][row]
      assert recall == pytest.approx(hits / min(10, len(positives)), abs=1e-6)


def test_an_oracle_fails_and_an_oracle_of_neighbors_does_not():
  data = _data()
  evaluator = ranking.Ranking(data, protocols=(LEGACY, "uniform100_global"), batch_size=16)
  scores = evaluator_data.oracle(data)
  means = evaluator.run(evaluator_data.lookup, scores).means()["train"]
  assert means["uniform100_global"]["ndcg@10"] == pytest.approx(1)
  assert means[LEGACY]["ndcg@10"] < 0.3
  before = candidates.item_before(data)
  wrong = np.zeros_like(scores)
  wrong[:, before] = scores  # whoever scores the neighbor as the item should be scored
  means = evaluator.run(evaluator_data.lookup, wrong).means()["train"]
  assert means[LEGACY]["ndcg@10"] > 0.85  # less than 1 where a negative is a neighbor
  assert means["uniform100_global"]["ndcg@10"] < 0.3


def test_it_is_never_a_default():
  assert LEGACY not in ranking.PROTOCOLS
  assert LEGACY not in common.get_config().eval.protocols
  found = ranking.Ranking(_data(), batch_size=16).protocols
  assert LEGACY not in found


def test_it_needs_the_order_of_the_raw_file():
  data = evaluator_data.random_dataset()
  ranking.Ranking(data)
  with pytest.raises(errors.UserError, match="survey_caser_legacy.*ml1m_tgt_asreleased"):
    ranking.Ranking(data, protocols=(LEGACY,))


def test_negatives_leave_out_what_a_user_owns_outside_the_splits():
  # A split rule may train on a user's latest items alone: the older ones are no negatives.
  data = evaluator_data.random_dataset()
  splits = np.array(data.splits)
  lengths = splits[:, 0, 1]
  splits[:, 0, 0] = np.maximum(lengths - 2, 0)
  cut = dataclasses.replace(data, splits=splits)
  users = data.users_in("test")
  for protocol in ("uniform100_global", "uniform100_domain"):
    np.testing.assert_array_equal(candidates.sample(cut, users, "test", protocol),
                                  candidates.sample(data, users, "test", protocol))
  owned = sequences.take_ranges(data.items, data.offsets[:-1], data.offsets[1:])
  assert len(owned) > (splits[:, :, 1] - splits[:, :, 0]).sum()  # there was something to leave out


def test_the_study_names_the_defect(monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).resolve().parent.parent)
  config = spec.load_config("configs/studies/caser_legacy.py")
  assert "defect" in config.title.lower() and "KNOWN DEFECT" in config.notes
  assert {name.partition("/")[0] for name in config.published["Caser"]} == {LEGACY}
  assert dict(config.overrides)["eval.protocols"] == (LEGACY, "uniform100_global")
