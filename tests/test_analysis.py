"""Runs as tables, read without the code that trained them."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny

from recjax import analysis, checkpoint, errors


def test_params_by_name_and_step():
  workdir = tiny.finished()
  best = json.loads((workdir / "report.json").read_text())["run"]["best_step"]
  everything = analysis.params(workdir)
  assert {n: x.shape for n, x in everything.items()} == analysis.shapes(workdir)
  assert all(isinstance(x, np.ndarray) for x in everything.values())
  some = analysis.params(workdir, names=["head/scores/bias", "embed/item/embedding"])
  assert set(some) == {"head/scores/bias", "embed/item/embedding"}
  last = analysis.params(workdir, step=18)
  for name in some:
    assert np.array_equal(some[name], everything[name])
    assert np.array_equal(some[name], analysis.params(workdir, step=best)[name])
    assert not np.array_equal(some[name], last[name])


def test_params_reads_only_what_is_named(tmp_path):
  workdir = pathlib.Path(shutil.copytree(tiny.finished(), tmp_path / "run"))
  step = workdir / "checkpoints" / str(checkpoint.Reader(workdir).step)
  shutil.rmtree(step / "opt_state")
  for path in (step / "params").iterdir():
    if path.is_dir() and path.name.startswith(("head", "encoder")):
      shutil.rmtree(path)
  assert set(analysis.params(workdir, names=["embed/user/embedding"])) == {"embed/user/embedding"}
  with pytest.raises(errors.UserError):
    analysis.params(workdir)


def test_table_is_indexed_by_external_id():
  workdir = tiny.finished()
  values = analysis.params(workdir)["embed/user/embedding"]
  users = analysis.table(workdir, "embed/user/embedding")
  ids = [name.decode() for name in np.load(tiny.root() / "data" / "tgt" / "user_ids.npy")[1:]]
  assert list(users.index) == ids and users.index.name == "user"
  assert np.array_equal(users.loc["u33"].to_numpy(), values[ids.index("u33")])
  items = analysis.table(workdir, "embed/item/embedding")
  everything = analysis.table(workdir, "embed/item/embedding", trained_only=False)
  # 30 items of the domain, padding and MASK; the other 40 were never trained.
  assert (len(items), len(everything)) == (32, 72)
  assert "i70" in items.index and "i01" not in items.index and "i01" in everything.index
  with pytest.raises(errors.UserError, match="vocabulary is 'scores'"):
    analysis.table(workdir, "head/scores/kernel")
  with pytest.raises(errors.UserError, match="rows, vocabulary item"):
    analysis.table(workdir, "embed/user/embedding", vocabulary="item")


def test_metrics_and_per_user():
  workdir = tiny.finished()
  assert set(analysis.metrics(workdir)["split"]) == {"train", "val", "test"}
  val = analysis.metrics(workdir, "val")
  assert list(val["step"]) == [6, 12, 18]
  assert "loss" not in val and "full/ndcg@10" in val
  report = json.loads((workdir / "report.json").read_text())
  assert val["full/ndcg@10"].max() == report["run"]["best_validation"]
  users = analysis.per_user(workdir)
  assert len(users) == 55 and "u33" in users.index
  assert users["train/full/mrr"].mean() == pytest.approx(report["test"]["full"]["mrr"], abs=1e-6)


def test_runs_and_config(tmp_path):
  for name, source in (("a/seed0", tiny.finished()), ("b", tiny.source())):
    shutil.copytree(source, tmp_path / name)
  shutil.copytree(tiny.finished(), tmp_path / "unfinished")
  (tmp_path / "unfinished" / "report.json").write_text('{"run": {}}')
  runs = analysis.runs(tmp_path)
  assert [pathlib.Path(w).relative_to(tmp_path).as_posix() for w in runs["workdir"]] == [
    "a/seed0", "b"]
  assert list(runs["dataset"]) == ["tgt", "src"] and list(runs["steps"]) == [18, 8]
  report = json.loads((tmp_path / "b" / "report.json").read_text())
  assert runs.loc[1, "train+val/full/mrr"] == report["contexts"]["train+val"]["full"]["mrr"]
  assert analysis.config(tmp_path / "b")["seed"] == 5
  assert len(analysis.runs(tmp_path / "nothing")) == 0


def test_difference():
  same = analysis.difference(tiny.finished(), tiny.finished())
  assert (same["max_difference"] == 0).all() and (same["norm"] == same["other_norm"]).all()
  other = analysis.difference(tiny.finished(), tiny.source())
  assert other.loc["embed/item/embedding", "max_difference"] > 0
  assert np.isnan(other.loc["embed/user/embedding", "max_difference"])  # 55 users and 60.


def test_mistakes_are_clear(tmp_path):
  for function in (analysis.params, analysis.config, analysis.per_user):
    with pytest.raises(errors.UserError):
      function(tmp_path / "nowhere")
  assert analysis.metrics(tmp_path / "nowhere").empty


def test_needs_no_model():
  code = ("import sys; from recjax import analysis; "
          "sys.exit(any(m.startswith(('recjax.models', 'recjax.objectives', 'flax')) "
          "and not m.startswith('flax.') for m in sys.modules if m.startswith('recjax')))")
  assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT).returncode == 0
