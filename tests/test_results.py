"""The files of a run folder, as everything downstream reads them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

from recjax import errors, record, results, slices
from recjax.data import sequences

METRICS = {f"{name}@{k}" for name in ("ndcg", "recall") for k in (3, 5, 10)} | {"mrr"}
PROTOCOLS = {"full", "uniform100_domain"}


def test_report_has_the_agreed_form():
  report = json.loads((tiny.finished() / "report.json").read_text())
  assert set(report) == {"run", "data", "context", "test", "contexts", "references", "popularity",
                         "chance", "slices", "speed"}
  assert report["references"] == ["popularity", "chance"]
  assert {"name", "seed", "steps", "best_step", "parameters", "objective", "model",
          "transfer_mode", "finished"} <= set(report["run"])
  assert report["run"]["finished"] is True and report["run"]["transfer_mode"] == "none"
  assert report["run"]["parameters"] == report["run"]["trained_parameters"] > 1000
  assert {"name", "generated", "users", "items", "raw_sha256"} <= set(report["data"])
  assert set(report["speed"]) >= {"examples_per_s", "train_s", "compile_s", "wall_s",
                                  "peak_memory_gb", "devices"}
  assert all(report["speed"][name] > 0 for name in report["speed"] if name != "platform")
  assert report["speed"]["devices"] == jax.device_count()
  assert set(report["contexts"]) == {"train", "train+val"}
  assert report["context"] == "train" and report["test"] == report["contexts"]["train"]
  for table in (*report["contexts"].values(), report["popularity"], report["chance"]):
    assert set(table) == PROTOCOLS
    assert all(set(values) == METRICS for values in table.values())
    assert all(0 <= v <= 1 for values in table.values() for v in values.values())


def test_means_are_those_of_the_users():
  workdir = tiny.finished()
  report = json.loads((workdir / "report.json").read_text())
  with np.load(workdir / "per_user_test.npz", allow_pickle=False) as stored:
    arrays = dict(stored)
  users, external = arrays.pop("users"), arrays.pop("external_users")
  assert arrays.pop("train_length").tolist() == _data().lengths("train")[users].tolist()
  assert users.dtype == np.int32 and len(users) == 55
  ids = np.load(tiny.root() / "data" / "tgt" / "user_ids.npy")
  assert external.dtype.kind == "S" and np.array_equal(external, ids[users])
  expected = {f"{context}/{protocol}/{metric}": value
              for context, table in report["contexts"].items()
              for protocol, values in table.items() for metric, value in values.items()}
  expected |= {f"popularity/{protocol}/{metric}": value
               for protocol, values in report["popularity"].items()
               for metric, value in values.items()}
  assert arrays.keys() == expected.keys()
  for name, values in arrays.items():
    assert values.dtype == np.float32 and values.shape == users.shape
    assert float(np.mean(values, dtype=np.float64)) == pytest.approx(expected[name], abs=1e-12)


def _data():
  return sequences.load(tiny.root() / "data", "tgt")


def test_single_items_and_slices_are_those_of_the_users():
  workdir, data = tiny.finished(), _data()
  report = json.loads((workdir / "report.json").read_text())
  with np.load(workdir / "per_positive_test.npz", allow_pickle=False) as stored:
    each = dict(stored)
  with np.load(workdir / "per_user_test.npz", allow_pickle=False) as stored:
    users, lengths = stored["users"], stored["train_length"]
    mrr = stored["train/full/mrr"]
  begin, end = data.span("test")
  assert each["items"].tolist() == [
    item for user in users for item in np.unique(data.items[begin[user]:end[user]])]
  counts = data.item_counts("train")
  assert each["train_count"].tolist() == counts[each["items"]].tolist()
  assert {key for key in each if "/" in key} == {
    f"{context}/{protocol}/{metric}" for context in ("train", "train+val")
    for protocol in PROTOCOLS for metric in ("hit@10", "dcg@10", "rr")}
  # One test item a user, so that it is worth what its user is.
  assert each["rows"].tolist() == list(range(len(users)))
  np.testing.assert_array_equal(each["train/full/rr"], mrr)
  for name, low, high in (("1-3", 1, 3), ("4-10", 4, 10), ("11-50", 11, 50)):
    keep = (lengths >= low) & (lengths <= high)
    piece = report["slices"]["history"][name]
    assert piece["users"] == keep.sum()
    expected = {"mrr": pytest.approx(mrr[keep].mean())} if keep.any() else {}
    assert expected.items() <= piece["test"].get("full", {}).items()
  assert max(piece["users"] for piece in report["slices"]["history"].values()) > 10
  for place, name in enumerate(slices.POPULARITY):
    keep = each["popularity"] == place
    piece = report["slices"]["popularity"][name]
    assert piece["positives"] == keep.sum()
    assert set(piece) >= {"test", "popularity", "chance"}
    if keep.any():
      assert piece["test"]["full"]["rr"] == pytest.approx(mrr[keep].mean())
      bounds = piece["train_counts"]
      assert bounds[0] <= each["train_count"][keep].min() <= each["train_count"][keep].max() <= (
        bounds[1])


def test_metrics_rows_have_step_and_split():
  rows = record.read_metrics(tiny.finished() / "metrics.jsonl")
  assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 15, 18]
  assert [row["step"] for row in rows if row["split"] == "val"] == [6, 12, 18]
  report = json.loads((tiny.finished() / "report.json").read_text())
  best = next(row for row in rows if row["split"] == "val"
              and row["step"] == report["run"]["best_step"])
  assert best["full/ndcg@10"] == report["run"]["best_validation"]
  assert best["full/ndcg@10"] == max(r["full/ndcg@10"] for r in rows if r["split"] == "val")
  test = {name: value for row in rows if row["split"] == "test" for name, value in row.items()}
  assert test["train+val/full/mrr"] == report["contexts"]["train+val"]["full"]["mrr"]


def test_examples_are_counted_once_each():
  # 55 users in batches of 12: five steps an epoch, the last one of 7.
  rows = record.read_metrics(tiny.finished() / "metrics.jsonl")
  labels = sum(row["labels"] for row in rows if row["split"] == "train")
  assert labels > 0 and all(row["labels_dropped"] == 0 for row in rows if row["split"] == "train")
  speed = json.loads((tiny.finished() / "report.json").read_text())["speed"]
  assert speed["examples_per_s"] * speed["train_s"] == pytest.approx(3 * 55 + 3 * 12)


def test_finished(tmp_path):
  assert results.finished(tmp_path) is None
  path = tmp_path / "report.json"
  for text, done in (('{"run": {}}', False), ('{"run": {"fini', False), ("", False),
                     ('{"run": {"finished": false}}', False),
                     ('{"run": {"finished": true}}', True)):
    path.write_text(text)
    assert (results.finished(tmp_path) is not None) == done


def test_comparable_leaves_out_what_changes_no_numbers():
  base = results.comparable(results.plain(tiny.config()))
  same = {"data_dir": "elsewhere", "log.every_steps": 99, "checkpoint.keep": 9, "num_devices": 2}
  assert results.comparable(results.plain(tiny.config(**same))) == base
  for name, value in (("optim.lr", 0.5), ("seed", 3), ("transfer.checkpoint", "runs/src"),
                      ("eval.ks", (3,)), ("model.fields", ())):
    changed = results.comparable(results.plain(tiny.config(**{name: value})))
    assert {n for n in {**base, **changed} if base.get(n) != changed.get(n)} == {name}


def test_comparable_knows_that_an_option_which_is_off_is_none():
  older = results.plain(tiny.config())
  assert older.pop("micro_lengths") == []
  base = results.comparable(older)
  assert results.comparable(results.plain(tiny.config())) == base
  assert results.comparable(results.plain(tiny.config(micro_lengths=(5,)))) != base


@pytest.mark.parametrize("path, same", [
  ("/b/c/src/seed0", True), ("src/seed0", True), ("/a/runs/src/seed0/", True),
  ("/a/runs/src/seed1", False), ("/a/runs/other/seed0", False), ("", False)])
def test_a_source_may_have_moved(tmp_path, path, same):
  config = lambda path: tiny.config(**{"transfer.checkpoint": path, "transfer.mode": "model"})
  record.write_json(tmp_path / "config.json", results.plain(config("/a/runs/src/seed0")))
  if same:
    results.check_same_config(tmp_path, config(path))
  else:
    with pytest.raises(errors.UserError, match="transfer.checkpoint was 'src/seed0'"):
      results.check_same_config(tmp_path, config(path))


def test_check_same_config_names_every_field(tmp_path):
  results.check_same_config(tmp_path, tiny.config())  # Nothing there: nothing differs.
  record.write_json(tmp_path / "config.json", results.plain(tiny.config()))
  with pytest.raises(errors.UserError, match="seed was 0, now 1.*dropout was 0.2, now 0.3"):
    results.check_same_config(tmp_path, tiny.config(**{"seed": 1, "model.dropout": 0.3}))
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match="config.json: damaged"):
    results.check_same_config(tmp_path, tiny.config())


def test_start_replaces_what_an_unsaved_run_left(tmp_path):
  start = lambda crossing, **kw: results.start(tmp_path / "run", tiny.config(), crossing, **kw)
  start({"mode": "model"}, resuming=False, write=True)
  path = tmp_path / "run" / "restore_report.json"
  start(None, resuming=True, write=True)
  assert json.loads(path.read_text()) == {"mode": "model"}
  start(None, resuming=False, write=True)
  assert not path.exists()
  shutil.rmtree(tmp_path / "run")
  start({"mode": "model"}, resuming=False, write=False)
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_is_a_users_error(tmp_path):
  (tmp_path / "file").touch()
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(errors.UserError, match="cannot be written"):
      results.start(workdir, tiny.config(), None, resuming=False, write=True)


def test_summary_has_a_row_for_every_table():
  report = json.loads((tiny.finished() / "report.json").read_text())
  lines = results.summary(report).splitlines()
  assert lines[0] == "GENERATED data" and len(lines) == 1 + 4 * len(PROTOCOLS)
  cell = f"{100 * report['test']['full']['ndcg@10']:.2f}"
  assert lines[1].startswith("full") and cell in lines[2]
  firsts = [line.split()[0] for line in lines[2:5]]
  assert firsts == [report["run"]["model"], "popularity", "chance"]
  assert pathlib.Path(tiny.finished(), "config.json").is_file()
