"""What a user chooses first in a new domain, learned and ranked from their history in another."""

import numpy as np
import pytest
import tiny

from recjax import evaluate, recommend, train

pytestmark = pytest.mark.slow


def test_a_run_ranks_the_new_domain_from_the_old_one(tmp_path):
  config = tiny.config("tgt", **{
    "history": "src", "num_devices": 1, "micro_batch": None, "total_steps": 2,
    "objective.name": "first_item", "model.name": "nextitnet", "model.variant": "grec",
    "model.num_layers": 1, "model.fields": (), "model.user_width": None, "model.heads": None,
    "model.hidden": None, "model.dropout": None, "eval.contexts": ("train",),
    "eval.protocols": ("full",), "eval.every_steps": 2})
  config.objective.first_item = dict(ends="both")
  report = train.train_and_evaluate(config, tmp_path / "run")
  assert 0 < report["test"]["full"]["mrr"] < 1
  assert evaluate.evaluate(tmp_path / "run")["test"] == report["test"]
  recommender = recommend.Recommender(tmp_path / "run", batch_size=4)
  items, scores, unknown = recommender.recommend([["i03", "i07", "i65"], ["i09"]], k=5)
  assert unknown == 1  # i65 is of the new domain, and no one's history
  assert all(int(name[1:]) > tiny.SRC_ITEMS for row in items for name in row)
  assert np.shape(scores) == (2, 5) and scores[0] != scores[1]
