"""ItemKNN against its dense three-line version, and a run of it from end to end."""

import numpy as np
import pytest
import tiny

from recjax import evaluate, errors, models, recommend, train
from recjax.data import sequences
from recjax.models import item_knn


def _model(data, **overrides):
  return models.make("item_knn", variant="item_knn", num_items=data.num_items,
                     num_users=data.num_users, field_rows={}, **overrides)


@pytest.fixture(scope="module")
def data():
  return sequences.load(tiny.root() / "data", "src")


def _dense(data, shrink, count):
  """Returns the similarities [N + 1, N + 1] of every item to its neighbors, 0 to the others."""
  owned = np.zeros((data.num_users + 1, data.num_items + 1))
  begin, end = data.span("train")
  for user in range(1, data.num_users + 1):
    owned[user, data.items[begin[user]:end[user]]] = 1
  both, sizes = owned.T @ owned, owned.sum(0)
  similar = both / np.maximum(np.sqrt(np.outer(sizes, sizes)) + shrink, 1e-9)
  np.fill_diagonal(similar, 0)
  similar = similar.astype(np.float32)
  out = np.zeros_like(similar)
  for item in range(1, len(similar)):
    best = np.lexsort((np.arange(len(similar)), -similar[item]))[:count]
    out[item, best] = similar[item, best]
  return out


@pytest.mark.parametrize("block", [7, 256])
@pytest.mark.parametrize("shrink,count", [(0.0, 5), (10.0, 12), (3.0, 1000)])
def test_neighbors_are_the_most_similar(data, shrink, count, block, monkeypatch):
  monkeypatch.setattr(item_knn, "BLOCK", block)
  table = _model(data, shrink=shrink, neighbors=count).fit(data)["item"]
  want = _dense(data, shrink, count)
  assert (np.diff(table["similarity"], axis=1) <= 0).all()  # best first
  assert (table["similarity"][table["neighbors"] == 0] == 0).all()
  got = np.zeros((data.num_items + 2, data.num_items + 1), np.float32)
  np.add.at(got, (np.arange(len(got))[:, None], table["neighbors"]), table["similarity"])
  np.testing.assert_allclose(got[:-1], want, rtol=1e-6)
  assert (got[-1] == 0).all() and (want > 0).sum() > 100  # MASK has no neighbors


@pytest.mark.parametrize("flops", [0, 10**9])  # votes one by one; as a product
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_scores_are_sums_over_the_history(data, decay, flops, monkeypatch):
  monkeypatch.setattr(item_knn, "FLOPS", flops)
  model = _model(data, neighbors=6, decay=decay)
  histories = np.array([[0, 0, 3, 8], [5, 5, 1, 2], [0, 0, 0, 0]], np.int32)
  scores, _ = model.apply({"params": model.fit(data)}, histories, np.zeros(3, np.int32), {})
  similar = _dense(data, 10.0, 6)
  for row, history in zip(np.asarray(scores), histories, strict=True):
    want = sum(decay**(3 - t) * similar[i] for t, i in enumerate(history) if i)
    np.testing.assert_allclose(row, want, atol=1e-6)


def test_parameters_have_the_shapes_that_restoring_expects(data):
  model = _model(data)
  start = model.init(None, **model.example_inputs(), tables={})["params"]
  for name, array in model.fit(data)["item"].items():
    assert (start["item"][name].shape, start["item"][name].dtype) == (array.shape, array.dtype)
    assert model.row_tables()[f"item/{name}"] == ("item", 0)
    assert len(array) == data.num_items + 2


def test_a_run_is_evaluated_restored_and_recommends(tmp_path):
  config = tiny.config("src")
  config.unlock()
  config.model = dict(name="item_knn", variant="item_knn", neighbors=30, shrink=0.0, decay=0.5,
                      fields=())
  config.objective.name = "untrained"
  report = train.train_and_evaluate(config, tmp_path / "run")
  assert report["run"]["steps"] == 0 and report["run"]["trained_parameters"] == 0
  # Neighbors follow each other in these data: it must beat what looks at no history.
  assert report["test"]["full"]["mrr"] > 1.2 * report["popularity"]["full"]["mrr"]
  assert train.train_and_evaluate(config, tmp_path / "run") == report  # finished, not fitted anew
  again = evaluate.evaluate(tmp_path / "run")
  assert again["contexts"] == report["contexts"]
  items, scores, unknown = recommend.Recommender(tmp_path / "run").recommend([["i03", "i04"]], k=3)
  assert len(items[0]) == 3 and unknown == 0 and scores[0] == sorted(scores[0], reverse=True)
  assert not {"i03", "i04"} & set(items[0])
  config.transfer.checkpoint = str(tmp_path / "run")
  with pytest.raises(errors.UserError, match="takes no transfer"):
    train.train_and_evaluate(config, tmp_path / "other")


@pytest.mark.parametrize("change", [dict(neighbors=0), dict(shrink=-1.0), dict(decay=0.0),
                                    dict(decay=1.1), dict(max_len=0)])
def test_numbers_without_sense_are_refused(data, change):
  with pytest.raises(errors.UserError, match="item_knn needs"):
    _model(data, **change)


def test_there_is_nothing_to_transfer(data):
  assert _model(data).transfer_rules("none") == ()
  assert _model(data).transfer_rules("model") is None
