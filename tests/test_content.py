"""Features from prepared data to a run: what is stored, built, transferred by name, checked."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import tiny

from recjax import errors, experiment, train, transfer, trees
from recjax.data import metadata, sequences

FEATURES = (("plot", {"kind": "text", "of": ("title", "genre"), "width": 4, "min_count": 1}),
            ("genre", {"kind": "attribute", "width": 2}))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """The tiny data sets with titles; `src` knows words that `tgt` does not."""
  folder = tmp_path_factory.mktemp("data")
  for name in ("src", "tgt"):
    data = sequences.load(tiny.root() / "data", name)
    ids = [item.decode() for item in np.asarray(data.item_ids[1:])]
    titles = {item: f"{'The' if int(item[1:]) % 2 else 'A'} {name} story {int(item[1:]) % 7}"
              for item in ids}
    titles = metadata.title_array(titles, ids)
    sequences.save(folder / name, dataclasses.replace(data, texts={"title": titles}))
  rng = np.random.default_rng(0)
  np.savez(folder / "vectors.npz", ids=np.array([f"i{n:02d}" for n in range(1, 61)]),
           vectors=rng.normal(size=(60, 5)))
  return folder


def _config(data_dir, dataset="tgt", given=(), **fields):
  files = (("image", {"kind": "given", "path": str(data_dir / "vectors.npz"), **dict(given)}),)
  return tiny.config(dataset, **{
    "data_dir": str(data_dir), "model.name": "sasrec", "model.variant": "sasrec",
    "model.user_width": 0, "model.heads": 1, "objective.name": "causal_next_item",
    "model.fields": (), "model.features": FEATURES + files, "model.aggregate": "sum", **fields})


def test_what_is_built_says_what_it_knows(data_dir):
  exp = experiment.build(_config(data_dir))
  assert exp.describe_features() == [
    "feature plot (text): 30 of 30 items, 16 rows",
    f"feature genre (attribute): {exp.provided['genre'].known[exp.data.in_domain].sum()} of 30 "
    "items, 5 rows",
    f"feature image (given): 20 of 30 items, 5 columns of {data_dir / 'vectors.npz'}"]
  shapes = {leaf: x.shape for leaf, x in trees.flatten(exp.params_shapes()).items()}
  assert shapes["embed/features/plot/words/embedding"] == (16, 4)
  assert shapes["embed/features/image/project/kernel"] == (5, 8)
  rows = exp.rows()
  assert b"story" in rows["feature/plot"].names and len(rows["feature/genre"].names) == 5


def test_words_and_values_and_given_vectors_cross_by_name(data_dir):
  exps = [experiment.build(_config(data_dir, name, given=(("trained", True),)))
          for name in ("src", "tgt")]
  fill = lambda seed: lambda _, x: np.random.default_rng(seed).normal(size=x.shape).astype("f4")
  source, target = (trees.map_names(fill(i), exp.params_shapes()) for i, exp in enumerate(exps))
  rules = exps[1].model.transfer_rules("embedding")
  plan = transfer.make_plan(
    target, trees.flatten(source), rules, row_tables=exps[1].model.row_tables(),
    target_rows=exps[1].rows(), source_rows=exps[0].rows())
  merged = trees.flatten(transfer.merge(plan, target, trees.flatten(source)))
  source, target = trees.flatten(source), trees.flatten(target)
  leaf = "embed/features/plot/words/embedding"
  words = [exp.rows()["feature/plot"].names.tolist() for exp in exps]
  for word in (b"story", b"the", b"g1", b"tgt"):
    mine, theirs = words[1].index(word), words[0].index(word) if word in words[0] else None
    expected = target[leaf][mine] if theirs is None else source[leaf][theirs]
    assert np.array_equal(merged[leaf][mine], expected), word
  assert b"tgt" not in words[0]
  leaf = "embed/features/image/vectors"
  names = [exp.rows()["item"].names.tolist() for exp in exps]
  for item in (b"i03", b"i25"):  # trained in the source
    assert np.array_equal(merged[leaf][names[1].index(item)], source[leaf][names[0].index(item)])
  for leaf in ("embed/features/image/project/kernel", "embed/features/genre/missing"):
    assert np.array_equal(merged[leaf], source[leaf])
  assert np.array_equal(merged["embed/item/embedding"], target["embed/item/embedding"])


def test_the_files_digest_is_part_of_what_a_resumed_run_checks(data_dir, tmp_path):
  shutil.copy(data_dir / "vectors.npz", tmp_path / "v.npz")
  config = _config(data_dir, given=(("path", str(tmp_path / "v.npz")),))
  before = experiment.build(config).data.identity()
  assert len(before["feature_files"]["image"]) == 64
  np.savez(tmp_path / "v.npz", ids=np.array(["i01", "i50"]), vectors=np.ones((2, 5)))
  assert experiment.build(config).data.identity() != before
  config.model.features = FEATURES
  assert "feature_files" not in experiment.build(config).data.identity()


def test_cold_items_are_flagged(data_dir):
  exp = experiment.build(_config(data_dir, **{"held_out_items": (0.2, 3)}))
  barred, unowned = (np.asarray(exp.tables[f"item/{name}"]) for name in ("barred", "unowned"))
  assert np.array_equal(barred[:-1], exp.data.held_out) and barred.sum() == 6 and not barred[-1]
  counts = exp.data.item_counts("train")
  assert np.array_equal(unowned[1:-1], counts[1:] == 0) and not unowned[[0, -1]].any()
  plain = experiment.build(_config(data_dir, **{"model.features": (), "model.aggregate": None}))
  assert not plain.tables and plain.data.held_out is None


def test_a_model_that_cannot_take_features_says_so(data_dir):
  with pytest.raises(errors.UserError, match="item_knn has no field 'features'"):
    experiment.build(_config(data_dir, **{
      "model.name": "item_knn", "model.variant": "item_knn", "objective.name": "untrained",
      **{f"model.{name}": None for name in ("num_layers", "item_width", "user_width", "heads",
                                            "hidden", "max_len", "dropout", "aggregate")}}))


@pytest.mark.slow
def test_resuming_is_not_stopping_and_other_vectors_are_refused(data_dir, tmp_path):
  fields = {"model.aggregate": "gate", "model.item_dropout": 0.3, "held_out_items": (0.2, 3)}
  config = _config(data_dir, given=(("trained", True),), **fields)
  report = train.train_and_evaluate(config, tmp_path / "whole")
  assert report["slices"]["frequency"]["0"]["items"] >= 6
  class Killed(BaseException):
    pass
  def kill():
    raise Killed
  with pytest.MonkeyPatch.context() as patch:
    tiny.stop_at(patch, 12, kill)
    with pytest.raises(Killed):
      train.train_and_evaluate(config, tmp_path / "run")
  kept = (data_dir / "vectors.npz").read_bytes()
  np.savez(data_dir / "vectors.npz", ids=np.array(["i01", "i50"]), vectors=np.ones((2, 5)))
  with pytest.raises(errors.UserError, match="other data"):
    train.train_and_evaluate(config, tmp_path / "run")
  pathlib.Path(data_dir / "vectors.npz").write_bytes(kept)
  train.train_and_evaluate(config, tmp_path / "run")
  tiny.assert_same_run(tmp_path / "run", tmp_path / "whole")
