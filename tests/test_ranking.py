"""The ranking evaluator against its plain definition, and what must not change its results."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import evaluator_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import catalog, errors
from recjax.data import sequences
from recjax.evaluators import candidates, metrics, popularity, ranking
from recjax.evaluators import values as values_lib

LENGTH = 6


def _mixed_scores(params, users, histories):
  """Whole numbers with many ties that depend on the user and on every place of the history."""
  table, mix = params
  place = jnp.arange(1, histories.shape[1] + 1)
  return ((table[users] + (mix[histories] * place[:, None]).sum(axis=1)) % 23).astype(jnp.float32)


def _mixed_params(data, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.integers(0, 99, (data.num_users + 1, data.num_items + 1)),
          rng.integers(0, 99, (data.num_items + 1, data.num_items + 1)))


def _by_definition(data, params, split, context, protocol, ks):
  """Returns {metric: [n]}, one user and one list of candidates at a time."""
  rows = []
  for user in data.users_in(split):
    part = {}
    for name in ("train", "val", "test"):
      begin, end = data.span(name)
      part[name] = data.items[begin[user]:end[user]].tolist()
    history = part["train"] + (part["val"] if context == "train+val" else [])
    history = ([0] * LENGTH + history)[-LENGTH:]
    scores = np.asarray(_mixed_scores(params, np.array([user]), np.array([history])))[0]
    positives = sorted(set(part[split]))
    if protocol == "full":
      others = set(np.flatnonzero(data.in_domain)) - set(part["train"]) - set(part["val"])
    else:
      sampled = candidates.sample(data, np.array([user]), split, protocol, num_negatives=30)
      others = set(sampled[0].tolist()) - {0}
    pool = scores[sorted(others | set(positives))]
    greater = np.array([[(pool > scores[p]).sum() for p in positives]])
    equal = np.array([[(pool == scores[p]).sum() - 1 for p in positives]])
    rows.append(metrics.compute(greater, equal, np.ones_like(greater, bool), ks))
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("split", ["val", "test"])
def test_equals_the_definition(split):
  data = evaluator_data.random_dataset(num_items=120, domain=90)
  # A user who owned a positive before, one with a repeated positive, one with nothing to train on,
  # and one who leaves fewer than 30 negatives in the domain.
  data = _with(data, [([3, 9, 4], [7, 9], [9, 3, 60]), ([1, 2], [3, 3], [4, 4]), ([], [5], [6]),
                      (list(range(1, 71)), [71], [72])])
  params = _mixed_params(data)
  evaluator = ranking.Ranking(data, split=split, ks=(2, 10), num_negatives=30, batch_size=16,
                              history_length=LENGTH)
  results = evaluator.run(_mixed_scores, params)
  assert set(results.values) == ({"train", "train+val"} if split == "test" else {"train"})
  for context, protocols in results.values.items():
    assert tuple(protocols) == ranking.PROTOCOLS
    for protocol, table in protocols.items():
      expected = _by_definition(data, params, split, context, protocol, (2, 10))
      assert set(table) == set(expected) == {"ndcg@2", "ndcg@10", "recall@2", "recall@10", "mrr"}
      for metric, values in table.items():
        np.testing.assert_allclose(
          values, expected[metric], rtol=1e-6, err_msg=f"{context} {protocol} {metric}")


def _with(data, extra):
  """Returns `data` with more users."""
  spans = [data.span(split) for split in sequences.SPLITS]
  users = [tuple(data.items[begin[user]:end[user]].tolist() for begin, end in spans)
           for user in range(1, data.num_users + 1)]
  domain = np.flatnonzero(data.in_domain)
  return evaluator_data.dataset(users + extra, data.num_items, in_domain=domain)


def test_batch_size_and_padding_change_nothing():
  data = evaluator_data.random_dataset()
  params = _mixed_params(data)
  runs = [ranking.Ranking(data, batch_size=size, history_length=LENGTH).run(_mixed_scores, params)
          for size in (7, 40, 64)]  # 40 users: the last batch is short, full, and the only one.
  for other in runs[1:]:
    np.testing.assert_array_equal(runs[0].users, other.users)
    for name, values in runs[0].flat().items():
      np.testing.assert_array_equal(values, other.flat()[name], err_msg=name)


def test_devices_change_nothing():
  data = evaluator_data.random_dataset()
  params = _mixed_params(data)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  one = ranking.Ranking(data, batch_size=16)
  four = ranking.Ranking(data, batch_size=16, put=lambda array: jax.device_put(array, rows))
  for run in (lambda evaluator: evaluator.run(_mixed_scores, params),
              lambda evaluator: popularity.popularity(evaluator, data)):
    expected, values = run(one).flat(), run(four).flat()
    for name in expected:
      np.testing.assert_array_equal(expected[name], values[name], err_msg=name)


@pytest.mark.parametrize("split", ["val", "test"])
def test_oracle_is_perfect_and_an_off_by_one_is_not(split):
  data = evaluator_data.random_dataset(num_users=60)
  scores = evaluator_data.oracle(data, split)
  evaluator = ranking.Ranking(data, split=split, batch_size=32)
  for value in evaluator.run(evaluator_data.lookup, scores).flat().values():
    np.testing.assert_allclose(value, 1)
  for shift in (-1, 1):  # The model's ids are shifted against the candidates' ids.
    shifted = evaluator.run(evaluator_data.lookup, np.roll(scores, shift, axis=1)).means()
    for protocol in ranking.PROTOCOLS:
      assert shifted["train"][protocol]["ndcg@10"] < .3


def test_constant_scorer_is_exactly_chance():
  users = [([1, 2], [3, 4], [5, 6, 7])] * 5 + [([1, 2], [3], [4])] * 2
  data = evaluator_data.dataset(users, 500, in_domain=range(1, 401))
  results = ranking.Ranking(data, batch_size=4).run(
    evaluator_data.lookup, np.ones((data.num_users + 1, 501), np.float32))
  values = results.values["train+val"]
  three, one = [10 / 103] * 5, [10 / 101] * 2
  for protocol in ("uniform100_global", "uniform100_domain"):
    np.testing.assert_allclose(values[protocol]["recall@10"], three + one, rtol=1e-6)
    np.testing.assert_allclose(values[protocol]["ndcg@10"][:5], .0621, atol=5e-5)
  # 400 items of the domain, less 4 (or 3) items in train and val.
  full = [10 / 396] * 5 + [10 / 397] * 2
  np.testing.assert_allclose(values["full"]["recall@10"], full, rtol=1e-6)
  assert results.values["train"]["full"]["mrr"][0] == values["full"]["mrr"][0]


def test_column_zero_and_other_domains_do_not_matter():
  data = evaluator_data.random_dataset()
  data.in_domain[0] = True  # Row 0 is nobody's item, whatever its flag says.
  scores = evaluator_data.oracle(data)
  scores[:, data.num_items - 50:] = 9
  # 200 items in the domain, of which a user has 10 or more: lists of 190 are padded.
  evaluator = ranking.Ranking(data, protocols=("full", "uniform100_domain"), num_negatives=190)
  for value in (9, np.nan):
    scores[:, 0] = value
    for values in evaluator.run(evaluator_data.lookup, scores).flat().values():
      np.testing.assert_allclose(values, 1)
  everywhere = ranking.Ranking(data, protocols=("uniform100_global",))
  means = everywhere.run(evaluator_data.lookup, scores).means()
  assert means["train"]["uniform100_global"]["ndcg@3"] < .01


def _products(params, users, histories, readout=None):
  """Scores as inner products; whole numbers, so that they are exact and many are level."""
  of_users, of_items, bias = params
  x = of_users[users] + (histories[:, -1:] % 2)
  scores = catalog.Scores(x[:, None], of_items, bias)
  return scores.all()[:, 0] if readout is None else readout(scores)


def _product_params(data, seed=0):
  rng = np.random.default_rng(seed)
  whole = lambda *shape: jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)
  return whole(data.num_users + 1, 3), whole(data.num_items + 1, 3), whole(data.num_items + 1)


def _in_blocks(monkeypatch):
  monkeypatch.setattr(catalog, "HELD", 0)
  monkeypatch.setattr(catalog, "WHOLE", 0)
  monkeypatch.setattr(catalog, "BLOCK", {"cpu": 1})


@pytest.mark.parametrize("protocols", [ranking.PROTOCOLS, ("full",), ("pop100", ranking.LEGACY)])
def test_a_large_catalog_is_ranked_in_blocks_and_alike(protocols, monkeypatch):
  data = dataclasses.replace(evaluator_data.random_dataset(), first_seen=np.arange(301))
  params = _product_params(data)
  make = lambda **kw: ranking.Ranking(data, protocols=protocols, batch_size=16, **kw)
  whole = make()
  expected = whole.run(_products, params).flat()
  references = {name: found.flat() for name, found in whole.references().items()}
  _in_blocks(monkeypatch)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  for found in (make(), make(put=lambda array: jax.device_put(array, rows))):
    for name, values in found.run(_products, params).flat().items():
      np.testing.assert_array_equal(values, expected[name], err_msg=name)
  for name, found in make().references().items():
    for metric, values in found.flat().items():
      np.testing.assert_array_equal(values, references[name][metric], err_msg=metric)


@pytest.mark.parametrize("width", [2, 24])
def test_a_positive_is_level_with_itself_in_blocks(width, monkeypatch):
  # No whole numbers: were a score computed in two ways, "equal" would be -1 here and there.
  _in_blocks(monkeypatch)
  data = evaluator_data.random_dataset()
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = normal(data.num_users + 1, width), normal(301, width), normal(301)
  seen = []
  monkeypatch.setattr(ranking.metrics, "compute", lambda greater, equal, mask, ks: (
    seen.append((greater, equal, mask)), {})[1])
  monkeypatch.setattr(ranking.metrics, "per_positive", lambda *counts: {})
  for size in (1, 16):
    ranking.Ranking(data, protocols=("full",), batch_size=size).run(_products, params)
  for greater, equal, mask in seen:
    assert (equal[mask] == 0).all() and (greater[mask] >= 0).all()


def test_nan_scores_stop_an_evaluation_in_blocks(monkeypatch):
  _in_blocks(monkeypatch)
  data = evaluator_data.random_dataset()
  users, items, bias = _product_params(data)
  evaluator = ranking.Ranking(data, batch_size=16, protocols=("full",))
  evaluator.run(_products, (users, items, bias.at[0].set(np.nan)))
  with pytest.raises(FloatingPointError, match="user 23 "):
    evaluator.run(_products, (users.at[23].set(np.nan), items, bias))


MILLION = """
import sys
sys.path[:0] = sys.argv[1:]
import evaluator_data, jax.numpy as jnp, numpy as np
from recjax import catalog, memory
from recjax.evaluators import ranking
rng, items = np.random.default_rng(0), 10**6
data = evaluator_data.dataset([(rng.integers(1, items, 20), [n], [n + 500]) for n in range(1, 257)],
                              items)
table = jnp.asarray(rng.normal(size=(items + 1, 8)), jnp.float32)
def score(table, users, histories, readout):
  return readout(catalog.Scores(table[histories[:, -1:]], table))
evaluator = ranking.Ranking(data, batch_size=256, protocols=("full",), contexts=("train",))
before = memory.peak_gib()
found = evaluator.run(score, table).means()["train"]["full"]
assert 0 < found["mrr"] < 0.1, found
grown = memory.peak_gib() - before
assert grown < 0.3, grown  # GiB; all scores at once are 1.02
"""


@pytest.mark.slow
def test_a_million_items_are_ranked_in_little_memory():
  folder = pathlib.Path(__file__).parent
  done = subprocess.run([sys.executable, "-c", MILLION, str(folder), str(folder.parent)], text=True,
                        capture_output=True, check=False, env={**os.environ, "XLA_FLAGS": ""})
  assert done.returncode == 0, done.stderr


def test_infinite_scores_are_ranked():
  data = evaluator_data.random_dataset()
  scores = evaluator_data.oracle(data)
  scores = np.where(scores < .5, -np.inf, np.where(scores == 1, np.inf, scores))
  for value in ranking.Ranking(data).run(evaluator_data.lookup, scores).flat().values():
    np.testing.assert_allclose(value, 1)


def test_nan_scores_stop_the_evaluation():
  data = evaluator_data.random_dataset()
  evaluator = ranking.Ranking(data, batch_size=16)
  scores = evaluator_data.oracle(data)
  scores[0] = np.nan  # User 0 is padding.
  evaluator.run(evaluator_data.lookup, scores)
  scores[23, 11] = np.nan
  with pytest.raises(FloatingPointError, match="user 23 "):
    evaluator.run(evaluator_data.lookup, scores)


def test_compiles_once():
  data = evaluator_data.random_dataset()
  traces = []

  def score(params, users, histories):
    traces.append(users.shape)
    return evaluator_data.lookup(params, users, histories)

  evaluator = ranking.Ranking(data, split="val", protocols=("full",), batch_size=16)
  scores = evaluator_data.oracle(data, "val")
  evaluator.run(score, scores)
  compiled = ranking._count._cache_size()
  for _ in range(3):
    evaluator.run(score, scores)
  popularity.popularity(evaluator, data)
  evaluator.run(score, scores)

  class Model:
    def score(self, *arguments):
      return score(*arguments)

  model = Model()
  for _ in range(3):
    evaluator.run(model.score, scores)
  assert len(traces) == 2 and ranking._count._cache_size() == compiled


def test_histories_never_reach_into_the_held_out_items():
  # The survey's legacy rule validates short users on items that are also tested: [3, 5) and [3, 6).
  data = evaluator_data.dataset([([11, 12, 13], [], [14, 15, 16])], 20)
  splits = data.splits.copy()
  splits[1, 1] = 3, 5
  data = dataclasses.replace(data, splits=splits)
  copied = lambda params, users, histories: jax.nn.one_hot(histories, 21).sum(axis=1)
  results = ranking.Ranking(data, protocols=("full",), batch_size=2).run(copied, None)
  for context in ranking.CONTEXTS:  # All tested items score alike, so none was in the history.
    assert results.values[context]["full"]["recall@3"][0] == pytest.approx(3 / 17)


def test_max_users_is_a_fixed_subset_with_the_same_values(tmp_path):
  data = evaluator_data.random_dataset()
  params = _mixed_params(data)
  whole = ranking.Ranking(data, cache_dir=tmp_path).run(_mixed_scores, params)
  for cache_dir in (tmp_path, None):
    some = ranking.Ranking(data, max_users=11, cache_dir=cache_dir).run(_mixed_scores, params)
    assert len(some.users) == 11 and len(set(some.users.tolist())) == 11
    rows = np.searchsorted(whole.users, some.users)
    for name, values in some.flat().items():
      np.testing.assert_array_equal(values, whole.flat()[name][rows], err_msg=name)


def test_results_nest_and_average():
  found = {"train": {"full": {"mrr": np.float32([.25, .75]), "ndcg@3": np.float32([0, 1])}}}
  results = values_lib.Results(np.int32([1, 2]), found)
  assert results.means() == {"train": {"full": {"mrr": .5, "ndcg@3": .5}}}
  assert list(results.flat()) == ["train/full/mrr", "train/full/ndcg@3"]


def test_only_users_with_held_out_items_are_evaluated():
  data = evaluator_data.dataset([([1], [2], [3]), ([1, 2], [], [4]), ([1, 2, 3], [], [])], 30)
  assert ranking.Ranking(data, split="val").users.tolist() == [1]
  assert ranking.Ranking(data, split="test").users.tolist() == [1, 2]
  with pytest.raises(errors.UserError, match="no user"):
    ranking.Ranking(evaluator_data.dataset([([1], [], [2])], 9), split="val")


@pytest.mark.parametrize("options, message", [
  (dict(protocols=("uniform100",)), "unknown protocol 'uniform100'"),
  (dict(contexts=("val",)), "unknown context"),
  (dict(split="val", contexts=("train+val",)), "unknown context 'train\\+val'"),
  (dict(split="train"), "unknown split"),
  (dict(ks=(0, 5)), "at least 1"),
])
def test_mistakes_are_user_errors(options, message):
  with pytest.raises(errors.UserError, match=message):
    ranking.Ranking(evaluator_data.random_dataset(), **options)


def test_held_out_items_must_be_candidates():
  data = evaluator_data.random_dataset()
  domain = data.in_domain.copy()
  domain[data.items[data.span("test")[0][4]]] = False
  with pytest.raises(errors.UserError, match="not in its domain"):
    ranking.Ranking(dataclasses.replace(data, in_domain=domain))


def test_wrong_shape_of_scores_is_named():
  data = evaluator_data.random_dataset()
  with pytest.raises(ValueError, match="N \\+ 1"):
    ranking.Ranking(data).run(evaluator_data.lookup, evaluator_data.oracle(data)[:, 1:])
