"""Recommendations against a brute-force ranking, and everything that must never be recommended."""

import json
import sys

import jax
import numpy as np
import pytest
import tiny

from recjax import catalog, errors, experiment, recommend

DOMAIN = {f"i{n:02d}" for n in range(tiny.SRC_ITEMS + 1, tiny.ITEMS + 1)}
OTHERS = {f"i{n:02d}" for n in range(1, tiny.SRC_ITEMS + 1)}


@pytest.fixture(scope="module")
def recommender():
  return recommend.Recommender(tiny.finished(), batch_size=6)


def _histories(count, *, longest, seed=0):
  rng = np.random.default_rng(seed)
  return [[str(i) for i in rng.choice(sorted(DOMAIN), rng.integers(0, longest), replace=False)]
          for _ in range(count)]


def _brute_force(histories, users, k):
  """Returns [(items, scores)] from one full scoring a history, without padding or batches."""
  exp, params, _ = experiment.restore(tiny.finished())
  predict = jax.jit(exp.predict)
  names = [name.decode() for name in exp.data.item_ids]
  ids = {name: i for i, name in enumerate(names)}
  user_ids = {name.decode(): i for i, name in enumerate(exp.data.user_ids)}
  out = []
  for history, user in zip(histories, users, strict=True):
    row = np.array([ids[name] for name in history][-(exp.model.max_len - 1):] or [0], np.int32)
    user = 0 if user is None else user_ids.get(user, 0)
    scores = np.asarray(predict(params, np.full(4, user, np.int32), np.tile(row, (4, 1))))[0]
    allowed = [i for i in range(1, len(names)) if names[i] in DOMAIN - set(history)]
    best = sorted(allowed, key=lambda i: -scores[i])[:k]
    out.append(([names[i] for i in best], [scores[i] for i in best]))
  return out


def test_equals_brute_force(recommender):
  history = sorted(DOMAIN)[3:23]
  histories = [history[:5], history, [], history[::-1], history[7:12], history, history[2:]]
  users = [None, "u12", "u60", "nobody", "u65", None, "u13"]
  items, scores, unknown = recommender.recommend(histories, users=users, k=5)
  assert unknown == 0
  for ours, values, (theirs, expected) in zip(
      items, scores, _brute_force(histories, users, 5), strict=True):
    assert ours == theirs
    np.testing.assert_allclose(values, expected, atol=1e-4)
    assert values == sorted(values, reverse=True)
  # The user matters, and an unknown one is nobody in particular.
  alone = lambda user: recommender.recommend([history], users=[user], k=5)[1]
  assert alone("u12") != alone(None) == alone("nobody")


def test_a_large_catalog_is_searched_in_blocks_and_alike(recommender, monkeypatch):
  histories, k = _histories(7, longest=20), 25  # some have fewer items left
  expected = recommender.recommend(histories, k=k)
  monkeypatch.setattr(catalog, "HELD", 0)
  monkeypatch.setattr(catalog, "WHOLE", 0)
  monkeypatch.setattr(catalog, "BLOCK", {"cpu": 1})
  items, scores, unknown = recommend.Recommender(tiny.finished(), batch_size=6).recommend(
    histories, k=k)
  assert items == expected[0] and unknown == 0
  assert min(map(len, items)) < k
  for ours, theirs in zip(scores, expected[1], strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_batches_do_not_matter(recommender):
  histories = _histories(9, longest=12, seed=1)
  items, scores, _ = recommender.recommend(histories, k=4)
  for index, history in enumerate(histories):
    (alone,), (values,), _ = recommender.recommend([history], k=4)
    assert alone == items[index]
    np.testing.assert_allclose(values, scores[index], atol=1e-4)


@pytest.mark.parametrize("k", [1, 29, 30, 31, 1000])
def test_never_what_is_owned_or_of_another_domain(recommender, k):
  histories = [[], *_histories(4, longest=28, seed=2), sorted(DOMAIN), sorted(DOMAIN)[1:]]
  items, scores, _ = recommender.recommend(histories, k=k)
  for history, found, values in zip(histories, items, scores, strict=True):
    left = DOMAIN - set(history)
    assert set(found) <= left and len(set(found)) == len(found) == len(values)
    assert len(found) == min(k, len(left))
    assert np.all(np.isfinite(values))


def test_long_histories_are_owned_in_full(recommender):
  # 25 items where the model reads 9: the first ones are no longer read, but still owned.
  history = sorted(DOMAIN)[:25]
  (items,), (scores,), _ = recommender.recommend([history * 2], k=30)
  assert set(items) == DOMAIN - set(history)
  (read,), (values,), _ = recommender.recommend([history[-9:]], k=30)
  assert set(read) == DOMAIN - set(history[-9:])
  expected = dict(zip(read, values, strict=True))
  np.testing.assert_allclose(scores, [expected[item] for item in items], atol=1e-4)


def test_unknown_items_count_and_change_nothing(recommender):
  history = _histories(1, longest=8, seed=5)[0] + ["i50"]
  plain = recommender.recommend([history], k=7)
  noisy = ["nothing", *history[:1], sorted(OTHERS)[0], "", 7, *history[1:]]
  items, scores, unknown = recommender.recommend([noisy], k=7)
  assert unknown == 4
  assert (items, scores) == plain[:2]


def test_no_histories(recommender):
  assert recommender.recommend([], k=3) == ([], [], 0)


def test_reads_histories(tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_text('{"items": ["a", 7], "user": "u"}\n\n{"items": []}\n{"items": [], "user": 3}\n')
  assert recommend.read_histories(path) == ([["a", 7], [], []], ["u", None, 3])


@pytest.mark.parametrize("line", [
  "{", "[]", "3", '{"user": "u"}', '{"items": "abc"}', '{"items": {"a": 1}}',
  '{"items": [["a"]]}', '{"items": [null]}', '{"items": [1.5]}', '{"items": [true]}',
  '{"items": [], "user": {}}', '{"items": null}'])
def test_a_malformed_line_is_named(tmp_path, line):
  path = tmp_path / "in.jsonl"
  path.write_text(f'{{"items": []}}\n{line}\n')
  with pytest.raises(errors.UserError, match=r"in\.jsonl:2: not "):
    recommend.read_histories(path)


def test_the_command(tmp_path):
  source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  source.write_text('{"items": ["i50", "zzz"], "user": "u20"}\n{"items": ["i51"]}\n')
  command = [sys.executable, "-m", "recjax.recommend", f"--workdir={tiny.finished()}",
             f"--histories={source}", f"--output={output}", "--k=3"]
  code, stderr = tiny.run(command)
  assert code == 0, stderr
  assert "1 history items are unknown" in stderr
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["user"] for row in rows] == ["u20", None]
  items, scores, _ = recommend.Recommender(tiny.finished()).recommend(
    [["i50"], ["i51"]], users=["u20", None], k=3)
  assert [row["items"] for row in rows] == items
  np.testing.assert_allclose([row["scores"] for row in rows], scores, atol=1e-5)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("change, message", [
  ({"histories": "nowhere.jsonl"}, "--histories nowhere.jsonl"),
  ({"output": "/nowhere/out.jsonl"}, "--output /nowhere/out.jsonl"),
  ({"k": "0"}, "--k must be at least 1"), ({"workdir": "/nowhere"}, "no checkpoints there")])
def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, change, message):
  source = tmp_path / "in.jsonl"
  source.write_text('{"items": []}\n')
  values = {"workdir": str(tiny.finished()), "histories": str(source), "k": "3",
            "output": str(tmp_path / "out.jsonl"), "step": None, "data_dir": None,
            "backbone": None, **change}
  values["k"] = int(values["k"])
  monkeypatch.setattr(recommend, "FLAGS", type("Flags", (), values))
  with pytest.raises(errors.UserError, match=message):
    recommend.main(["recommend"])
  assert not (tmp_path / "out.jsonl").exists()
