"""Link prediction: ranks against plain loops, ties, filtering, oracle and constant scorers."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_graph

from recjax import errors
from recjax.data import graphs
from recjax.evaluators import links


def plain_ranks(graph, table, split="test"):
  """Returns {kind: [n, 2]} of scores table[asks_head][given, relation, candidate], by loops."""
  known = {tuple(t) for t in np.asarray(graph.triples).tolist()}
  ranks = {"raw": [], "filtered": []}
  for head, relation, tail in graph.split(split).tolist():
    for kind, filtered in (("raw", False), ("filtered", True)):
      pair = []
      for side, (given, target) in enumerate(((head, tail), (tail, head))):
        row = table[side][given, relation]
        def counts(e, given=given, relation=relation, side=side, target=target, filtered=filtered):
          triple = (e, relation, given) if side else (given, relation, e)
          return e != target and not (filtered and triple in known)
        others = [row[e] for e in range(graph.num_entities) if counts(e)]
        greater = sum(s > row[target] for s in others)
        equal = sum(s == row[target] for s in others)
        pair.append(1 + greater + equal / 2)
      ranks[kind].append(pair)
  return {kind: np.array(pairs) for kind, pairs in ranks.items()}


def predictor(table):
  table = jnp.asarray(table)
  return lambda params, given, relations, asks_head: table[
    asks_head.astype(jnp.int32), given, relations] + params


@pytest.fixture(scope="module")
def graph():
  dense = tiny_graph.make()
  # Many answers of one query, so that filtering matters.
  rows = np.array([(0, 0, t) for t in range(1, 30)], np.int32)
  rows = np.concatenate([rows, np.asarray(dense.triples)])
  rows = np.random.default_rng(0).permutation(np.unique(rows, axis=0))
  return graphs.Graph(dense.manifest, dense.entity_ids, dense.relation_ids, rows,
                      np.array([0, len(rows) - 40, len(rows) - 20, len(rows)]), dense.item_ids,
                      dense.item_entities)


def test_ranks_against_loops(graph):
  rng = np.random.default_rng(0)
  shape = (2, graph.num_entities, graph.num_relations, graph.num_entities)
  table = rng.integers(0, 8, shape).astype(np.float32)  # many ties
  results = links.Links(graph, batch_size=12).run(predictor(table), 0.0)
  want = plain_ranks(graph, table)
  values = results.values["train"]
  for kind in ("raw", "filtered"):
    np.testing.assert_allclose(values[kind]["mr"], want[kind].mean(1), rtol=1e-6)
    np.testing.assert_allclose(values[kind]["mrr"], (1 / want[kind]).mean(1), rtol=1e-6)
    for k in (1, 3, 10):
      np.testing.assert_allclose(values[kind][f"hits@{k}"], (want[kind] <= k).mean(1))
    for side, name in enumerate(links.SIDES):
      np.testing.assert_allclose(values[f"{kind}_{name}"]["mr"], want[kind][:, side])
  assert (want["filtered"] < want["raw"]).any()
  # Both sides together are the mean of the sides.
  means = results.means()["train"]
  assert means["raw"]["mrr"] == pytest.approx(
    (means["raw_tail"]["mrr"] + means["raw_head"]["mrr"]) / 2)


def test_a_constant_scorer_has_the_mean_rank_of_chance_and_an_oracle_is_first(graph):
  evaluator = links.Links(graph, batch_size=16)
  table = np.zeros((2, graph.num_entities, graph.num_relations, graph.num_entities), np.float32)
  chance = evaluator.references()["chance"].means()["train"]
  found = evaluator.run(predictor(table), 0.0).means()["train"]
  for protocol in links.PROTOCOLS:
    assert found[protocol]["mr"] == pytest.approx(chance[protocol]["mr"])
  assert chance["raw"]["mr"] == (graph.num_entities + 1) / 2
  for head, relation, tail in np.asarray(graph.triples):
    table[0, head, relation, tail] = table[1, tail, relation, head] = 1
  found = evaluator.run(predictor(table), 0.0).means()["train"]
  # All that is known scores 1: alone, once the others are left out.
  assert {found["filtered"][m] for m in ("mr", "mrr", "hits@1")} == {1.0}
  assert found["raw"]["mrr"] < 1


def test_subsets_blocks_names_and_mistakes(graph):
  shape = (2, graph.num_entities, graph.num_relations, graph.num_entities)
  table = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  whole = links.Links(graph, batch_size=12).run(predictor(table), 0.0)
  part = links.Links(graph, batch_size=4, max_users=5).run(predictor(table), 0.0)
  assert len(part.users) == 5
  for metric, value in part.values["train"]["filtered"].items():
    assert np.array_equal(value, whole.values["train"]["filtered"][metric][part.users])
  head, relation, tail = graph.split("test")[part.users[0]]
  assert links.names_of(graph, graph.split("test")[part.users])[0] == b"\t".join(
    [graph.entity_ids[head], graph.relation_ids[relation], graph.entity_ids[tail]])
  with pytest.raises(FloatingPointError, match="NaN among the scores of triple"):
    links.Links(graph, batch_size=12).run(predictor(table), np.nan)
  with pytest.raises(errors.UserError, match="unknown context"):
    links.Links(graph, contexts=("train+val",))
  with pytest.raises(errors.UserError, match="unknown protocol"):
    links.Links(graph, protocols=("full",))
