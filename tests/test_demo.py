"""The generated data set has the structure that its description promises."""

import pathlib

import numpy as np
import pytest

from recjax import spec
from recjax.data import demo, prepare, sequences

CONFIG = str(pathlib.Path(__file__).resolve().parent.parent / "configs/data/demo.py")


def build(folder, **generate):
  config = spec.load_config(CONFIG)
  spec.override(config, {f"generate.{k}": v for k, v in generate.items()})
  prepare.prepare(config, raw_dir=None, data_dir=folder, log=str)
  return tuple(sequences.load(folder, name) for name in ("demo", "demo_src", "demo_tgt"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return build(tmp_path_factory.mktemp("demo"))


def matrix(data, split):
  """Returns [U + 1, N + 1], 1 where the user has the item in `split`."""
  out = np.zeros((data.num_users + 1, data.num_items + 1))
  begin, end = data.span(split)
  out[np.repeat(np.arange(len(begin)), end - begin),
      sequences.take_ranges(data.items, begin, end)] = 1
  return out


def ndcg(scores, data, users, k=10):
  """Returns NDCG@k of the test items among the domain's items that the user has not trained on."""
  seen = (matrix(data, "train") + matrix(data, "val"))[users] > 0
  scores = np.where(seen | ~data.in_domain, -np.inf, scores)
  top = np.argsort(-scores, 1)[:, :k]
  hits = np.take_along_axis(matrix(data, "test")[users], top, 1)
  discount = 1 / np.log2(np.arange(k) + 2)
  return (hits @ discount).mean() / discount[:3].sum()


def user_factors(data, rank=8):
  """Returns unit rows [U + 1, rank]: the leading left singular vectors of the centered choices."""
  chosen = matrix(data, "train")[:, data.in_domain]
  centered = np.where(chosen.any(1, keepdims=True), chosen - chosen[1:].mean(0), 0)
  left, size, _ = np.linalg.svd(centered, full_matrices=False)
  factors = left[:, :rank] * size[:rank]
  return factors / (np.linalg.norm(factors, axis=1, keepdims=True) + 1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_source_taste_predicts_target_choices(tmp_path, seed):
  """By linear algebra alone: what the source knows beats popularity and the target's own rows."""
  _, src, tgt = build(tmp_path, seed=seed)
  users = tgt.users_in("test")
  users = users[src.lengths("train")[users] > 0]
  train = matrix(tgt, "train")
  popularity = train.sum(0)
  def by(factors):  # an item is where the users who chose it in training are
    place = train.T @ factors / (popularity[:, None] + 5)
    return ndcg(3 * factors[users] @ place.T + np.log(popularity + 1), tgt, users)
  source = user_factors(src)
  popular = ndcg(np.tile(popularity, (len(users), 1)), tgt, users)
  shuffled = source.copy()
  shuffled[users] = np.random.default_rng(0).permutation(source[users])
  assert by(source) > 1.7 * popular
  assert by(source) > 1.15 * by(user_factors(tgt))
  assert by(shuffled) < 1.2 * popular  # it is the user's own taste that helps


def test_domains_share_users_and_values_but_no_item(made):
  whole, src, tgt = made
  assert not (src.in_domain & tgt.in_domain).any()
  assert (src.in_domain.sum(), tgt.in_domain.sum(), whole.num_users) == (300, 200, 1500)
  both = np.intersect1d(src.users_in("train"), tgt.users_in("train"))
  assert 1000 < len(both) < min(len(src.users_in("train")), len(tgt.users_in("train")))
  for name in ("genre", "creator"):
    feature = src.features[name]
    assert np.array_equal(feature.ids, tgt.features[name].ids)
    values = [set(feature.values[d.in_domain].ravel()) - {0} for d in (src, tgt)]
    assert len(values[0] & values[1]) > 0.9 * len(values[0] | values[1])
    assert (feature.values[1:, 0] > 0).all()
  assert src.lengths("train").max() > 50 and 2 < tgt.manifest["mean_train_length"] < 5
  assert whole.manifest["generated"] and "generated" in whole.manifest["title"]


def test_rows_are_sound(made):
  whole = made[0]
  user = np.repeat(np.arange(whole.num_users + 1), np.diff(whole.offsets))
  assert len(set(zip(user.tolist(), whole.items.tolist(), strict=True))) == len(user)
  assert (np.diff(whole.times)[np.diff(user) == 0] >= 0).all()
  share = np.bincount(whole.ratings.astype(int), minlength=6) / len(user)
  assert share[0] == 0 and (share[1:] > 0.005).all() and set(np.unique(whole.ratings % 1)) == {0}


def test_choices_follow_the_item_before(made):
  """Neighbors in a history share a genre more often than items further apart do."""
  src = made[1]
  genre = src.features["genre"].values[:, 0]
  user = np.repeat(np.arange(src.num_users + 1), np.diff(src.offsets))
  def same(gap):
    pair = user[gap:] == user[:-gap]
    return (genre[src.items[gap:]] == genre[src.items[:-gap]])[pair].mean()
  assert same(1) > same(10) + 0.02


def test_seed_decides_everything():
  arguments = dict(users=60, source_items=95, target_items=20, creators=5, dim=4, both=0.5)
  digests = [demo.generate(seed=seed, **arguments)[0].sha256 for seed in (3, 3, 4)]
  assert digests[0] == digests[1] != digests[2]
