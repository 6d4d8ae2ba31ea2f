"""Preparation of graphs, their index of queries, and what the objectives draw from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_prepare
import tiny_graph

from recjax import errors, objectives, spec
from recjax.data import graph_prepare, graphs, kinds, sequences
from recjax.objectives import links


def prepare(raw_dir, data_dir, name="wn18rr", **fields):
  config = spec.load_config(str(test_prepare.ROOT / f"configs/data/{name}.py"))
  spec.override(config, {key.replace("__", "."): value for key, value in fields.items()})
  lines = []
  manifests = graph_prepare.prepare_graph(config, raw_dir=raw_dir, data_dir=data_dir,
                                          log=lines.append)
  return next(iter(manifests.values())), lines


def write(folder, **files):
  folder.mkdir(exist_ok=True)
  for name, rows in files.items():
    (folder / f"{name}.txt").write_text("".join("\t".join(row) + "\n" for row in rows))


def external(graph, split):
  """Returns the triples of a split as tuples of texts."""
  ids = (graph.entity_ids, graph.relation_ids, graph.entity_ids)
  return [tuple(names[i].decode() for names, i in zip(ids, row, strict=True))
          for row in graph.split(split)]


def test_triples_keep_their_files_and_lose_repeats(tmp_path):
  files = dict(train=[("b", "r", "a"), ("a", "s", "c"), ("b", "r", "a")],
               valid=[("c", "r", "b")], test=[("d", "s", "a"), ("a", "s", "c")])
  write(tmp_path / "raw", **files)
  manifest, lines = prepare(tmp_path / "raw", tmp_path / "data", check=False)
  graph = kinds.load(tmp_path / "data", "wn18rr")
  assert external(graph, "train") == [("b", "r", "a"), ("a", "s", "c")]
  assert external(graph, "val") == files["valid"]
  assert external(graph, "test") == files["test"][:1]
  assert graph.entity_ids.tolist() == [b"a", b"b", b"c", b"d"]
  assert (manifest["entities"], manifest["relations"], manifest["repeated"]) == (4, 2, 2)
  assert any("train 2" in line for line in lines)
  names, trained = graph.row_names()["entity"]
  assert dict(zip(names.tolist(), trained.tolist(), strict=True)) == {
    b"a": True, b"b": True, b"c": True, b"d": False}
  assert graph.identity()["raw_sha256"] == manifest["raw_sha256"]
  with pytest.raises(errors.UserError, match="entities is 4, expected 40943"):
    prepare(tmp_path / "raw", tmp_path / "other")
  assert not (tmp_path / "other" / "wn18rr").exists()


@pytest.mark.parametrize("symmetric", [False, True])
def test_held_out_triples_leave_everything_trained(tmp_path, symmetric):
  rng = np.random.default_rng(0)
  pairs = {(f"n{a}", f"n{b}") for a, b in rng.integers(0, 30, (300, 2)) if a != b}
  rows = sorted(pairs) + [(b, a) for a, b in sorted(pairs)[:50]]
  write(tmp_path / "raw", edges=rows)
  manifest, _ = prepare(
    tmp_path / "raw", tmp_path / "data", "lastfm_friends", check=False, skip=0,
    files=dict(train="edges.txt"), symmetric=symmetric)
  graph = kinds.load(tmp_path / "data", "lastfm_friends")
  names, trained = graph.row_names()["entity"]
  assert trained.all() and len(names) == len({n for row in rows for n in row})
  parts = {split: {(a, b) for a, _, b in external(graph, split)} for split in sequences.SPLITS}
  total = len({frozenset(row) for row in rows}) if symmetric else len(set(rows))
  assert len(parts["val"]) == len(parts["test"]) == round(0.1 * total)
  assert not parts["val"] & parts["test"]
  if symmetric:
    flip = lambda edges: {(b, a) for a, b in edges}
    assert parts["train"] == flip(parts["train"])
    assert not (parts["val"] | parts["test"]) & parts["train"]
    everything = parts["train"] | flip(parts["val"] | parts["test"]) | parts["val"] | parts["test"]
    assert everything == set(rows) | flip(rows)
    # What is known holds in both directions.
    assert len(graph.known().answers) == 2 * len(everything)
  else:
    assert parts["train"] | parts["val"] | parts["test"] == set(rows)
  assert manifest["train"] == len(parts["train"])


def test_items_that_are_entities(tmp_path):
  write(tmp_path / "raw", kg=[("0", "r", "7"), ("1", "r", "7"), ("0", "r", "1")],
        items=[("260", "1"), ("1", "0"), ("9", "12")])
  prepare(tmp_path / "raw", tmp_path / "data", check=False, files=dict(train="kg.txt"),
          items__file="items.txt")
  graph = kinds.load(tmp_path / "data", "wn18rr")
  assert {i: graph.entity_ids[e] for i, e in zip(graph.item_ids, graph.item_entities,
                                                strict=True)} == {b"260": b"1", b"1": b"0"}


@pytest.mark.parametrize("text, message", [
  ("a\tr\tb\na\tb\n", r"train.txt line 2: malformed row, 3 columns expected, not 'a\\tb'"),
  ("a\t\tb\n", "train.txt line 1: malformed row"),
  ("", "is empty"),
  (f"{'a' * 300}\tr\tb\n", "an id has 300 bytes"),
])
def test_mistakes_name_the_line(tmp_path, text, message):
  write(tmp_path, valid=[("a", "r", "b")], test=[("a", "r", "b")])
  (tmp_path / "train.txt").write_text(text)
  with pytest.raises(errors.UserError, match=message):
    prepare(tmp_path, tmp_path / "data", check=False)


def test_damage_is_noticed(tmp_path):
  graphs.save(tmp_path / "line", tiny_graph.make())
  np.save(tmp_path / "line/triples.npy", np.full((4, 3), 99, np.int32))
  with pytest.raises(errors.UserError, match="the arrays do not fit together"):
    kinds.load(tmp_path, "line")
  manifest = tmp_path / "line/manifest.json"
  manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "kind": "text"}))
  with pytest.raises(errors.UserError, match="'text'; there are sequences, graph"):
    kinds.load(tmp_path, "line")


def test_queries_against_dicts():
  graph = tiny_graph.make()
  found, plain = graph.known("train"), {}
  for head, relation, tail in graph.split("train").tolist():
    plain.setdefault((head, relation, False), set()).add(tail)
    plain.setdefault((tail, relation, True), set()).add(head)
  answers = {(g, r, bool(a)): found.answers[low:high].tolist() for g, r, a, low, high in zip(
    found.given.tolist(), found.relations.tolist(), found.asks_head, found.begin, found.end,
    strict=True)}
  assert answers == {key: sorted(values) for key, values in plain.items()}
  for (head, relation, tail), (ask_tail, ask_head) in zip(graph.split("train"), found.of_triples,
                                                        strict=True):
    assert (found.given[ask_tail], found.relations[ask_tail], found.asks_head[ask_tail]) == (
      head, relation, False)
    assert (found.given[ask_head], found.asks_head[ask_head]) == (tail, True)


def test_bern_corrupts_the_side_with_more_answers():
  # Relation 0: a head has 4 tails, a tail 1 head; relation 1 one of each; relation 2 unused.
  triples = np.array([(0, 0, t) for t in range(1, 5)] + [(1, 1, 2)])
  share = graphs.head_share(graphs.queries(triples, 6, 3), 3)
  np.testing.assert_allclose(share, [4 / 5, 1 / 2, 1 / 2])


@pytest.fixture(scope="module")
def dense():
  """Relation 0 of head 0 has all tails but 3 and 8: a corruption is easily a true triple."""
  rows = [(0, 0, t) for t in range(10) if t not in (3, 8)] + [(1, 1, t) for t in range(10)]
  made = tiny_graph.make()
  return graphs.Graph({**made.manifest, "name": "dense"}, made.entity_ids[:10],
                      made.relation_ids[:2], np.array(rows, np.int32),
                      np.array([0, 18, 18, 18]), made.item_ids[:0], made.item_entities[:0])


def test_corruptions_are_unknown_and_uniform(dense):
  objective = objectives.make("margin_ranking", num_entities=10, known=("margin_ranking",),
                              margin_ranking=dict(corruption="bern"))
  tables = jax.tree.map(jnp.asarray, graphs.resident(dense))
  rows = jnp.arange(18)
  batch = {"rows": rows, "mask": rows >= 0}
  prepare = jax.jit(jax.vmap(lambda key: objective.prepare(key, batch, tables)))
  inputs = jax.device_get(prepare(jax.random.split(jax.random.key(0), 400)))
  asks_head, mask = inputs["asks_head"], inputs["mask"]
  # Tails of (1, 1, ?) are all known: nothing corrupts them, and they do not count.
  triples = dense.split("train")
  relation = triples[:, 1]
  assert not mask[:, relation == 1][~asks_head[:, relation == 1]].any()
  assert mask[asks_head].all() and mask[:, relation == 0].all()
  drawn = inputs["candidates"][:, relation == 0, 1][~asks_head[:, relation == 0]]
  values, counts = np.unique(drawn, return_counts=True)
  assert values.tolist() == [3, 8]
  assert abs(counts[0] - counts.sum() / 2) < 4 * np.sqrt(counts.sum()) / 2
  # bern asks for the head 8 times of 9 where one head has 8 tails.
  share = asks_head[:, relation == 0].mean()
  assert abs(share - 8 / 9) < 4 * np.sqrt(8 / 81 / asks_head[:, relation == 0].size)
  true = inputs["candidates"][..., 0]
  assert np.where(asks_head, true == triples[:, 0], true == triples[:, 2]).all()


def fake_scores(table):
  """Returns an apply_fn that scores as table[asks_head][given, relation]."""
  def apply_fn(params, inputs, rng, *, candidates=None, penalize=False):
    rows = params[inputs["asks_head"].astype(jnp.int32), inputs["given"], inputs["relations"]]
    scores = rows if candidates is None else jnp.take_along_axis(rows, candidates, axis=1)
    return (scores, jnp.full(len(rows), 2.0)) if penalize else scores
  return apply_fn


@pytest.fixture(scope="module")
def table(dense):
  return np.random.default_rng(3).normal(size=(2, 10, 2, 10)).astype(np.float32)


def loss_of(name, dense, table, num=18, **fields):
  """Returns (mean loss of an epoch, inputs, mask)."""
  objective = objectives.make(name, num_entities=10, known=(name,), **{name: fields})
  tables = jax.tree.map(jnp.asarray, graphs.resident(dense))
  size = len(tables[objective.examples])
  rows = jnp.arange(size + 2)  # two rows that fill up the batch
  def run(key):
    inputs = objective.prepare(key, {"rows": jnp.minimum(rows, size - 1), "mask": rows < size},
                               tables)
    total, weight, _ = objective.loss(fake_scores(None), jnp.asarray(table), inputs, shards=1,
                                      capacity=1, rng=None)
    return total / weight, inputs
  loss, inputs = jax.device_get(jax.jit(run)(jax.random.key(1)))
  return loss, inputs


def softplus(x):
  return np.log1p(np.exp(x))


@pytest.mark.parametrize("kind, floor", [
  ("released", 1 / 10), pytest.param("standard", 0.1 / 10, marks=pytest.mark.slow)])
def test_one_to_all_is_binary_cross_entropy_of_dense_labels(dense, table, kind, floor):
  loss, inputs = loss_of("one_to_all", dense, table, smoothing=0.1, smoothing_kind=kind,
                         penalty=0.5)
  found = graphs.queries(dense.split("train"), 10, 2)
  labels = np.zeros((len(found.given), 10))
  for row, (low, high) in enumerate(zip(found.begin, found.end, strict=True)):
    labels[row, found.answers[low:high]] = 1
  smooth = 0.9 * labels + floor
  scores = table[found.asks_head.astype(int), found.given, found.relations]
  want = (smooth * softplus(-scores) + (1 - smooth) * softplus(scores)).mean() + 0.5 * 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_margin_and_logistic_losses_are_their_formulas(dense, table):
  loss, inputs = loss_of("margin_ranking", dense, table, margin=0.7)
  def picked(inputs):
    rows = table[inputs["asks_head"].astype(int), inputs["given"], inputs["relations"]]
    return np.take_along_axis(rows, inputs["candidates"], axis=1)[inputs["mask"]]
  s = picked(inputs)
  np.testing.assert_allclose(loss, np.maximum(0, 0.7 - s[:, 0] + s[:, 1]).mean(), rtol=1e-5)
  loss, inputs = loss_of("logistic", dense, table, num_negatives=3)
  s = picked(inputs)
  want = np.concatenate([softplus(-s[:, :1]), softplus(s[:, 1:])], axis=1).mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  loss, inputs = loss_of("logistic", dense, table, num_negatives=3, margin=0.4, adversarial=2.0)
  s = picked(inputs) + 0.4
  weights = np.exp(2 * s[:, 1:]) / np.exp(2 * s[:, 1:]).sum(1, keepdims=True)
  want = (softplus(-s[:, 0]) + (weights * softplus(s[:, 1:])).sum(1)).mean() / 2
  np.testing.assert_allclose(loss, want, rtol=1e-5)


@pytest.mark.parametrize("criterion", [
  "pointwise", "listwise", pytest.param("wlistwise", marks=pytest.mark.slow)])
def test_candidate_criteria_where_everything_is_a_candidate(dense, table, criterion):
  loss, inputs = loss_of("candidate_softmax", dense, table, rate=1.0, criterion=criterion)
  total = 0
  for given, relation, side in zip(*(inputs[n][:18] for n in ("given", "relations", "asks_head")),
                                   strict=True):
    triples = dense.split("train").tolist()
    answers = [h if side else t for h, r, t in triples
               if r == relation and (t if side else h) == given]
    s = table[int(side), given, relation]
    if criterion == "pointwise":
      others = np.setdiff1d(np.arange(10), answers)
      total += softplus(-s[answers]).sum() + softplus(s[others]).sum()
    else:
      each = np.log(np.exp(s).sum()) - s[answers]
      total += each.mean() if criterion == "listwise" else each.sum()
  np.testing.assert_allclose(loss, total / 18, rtol=1e-5)


def test_objectives_that_cannot_be():
  for name, fields in (("margin_ranking", dict(corruption="both")), ("logistic", dict(
      num_negatives=0)), ("candidate_softmax", dict(rate=0)), ("one_to_all", dict(smoothing=1.0)),
      ("skip_gram", dict(window=0)), ("edge_sampling", dict(num_negatives=0))):
    with pytest.raises(errors.UserError, match="config.objective"):
      objectives.make(name, num_entities=10, known=(name,), **{name: fields})
  assert issubclass(objectives.OBJECTIVES["one_to_all"], links.Links)


def test_real_graphs(raw_dir, tmp_path):
  """Their counts are checked by the configs themselves."""
  for name, folder in (("wn18rr", "wn18rr"), ("ml1m_kg", "ml1m-kg"),
                       ("lastfm_friends", "lastfm-hetrec2011"), ("ciao_trust", "ciao")):
    if (raw_dir / folder).is_dir():
      manifest, _ = prepare(raw_dir, tmp_path, name)
      assert name != "ml1m_kg" or manifest["items"] == 2347
