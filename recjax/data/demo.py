"""A generated two-domain data set in which knowing a user from one domain helps in the other.

The process, all of it seeded:

  genres     center c_g ~ N(0, I), scaled to length 1, in `dim` latent dimensions; shared by domains
  creators   direction d_c ~ N(0, I), scaled to length 1; shared by domains
  users      taste p_u = unit(c_g1 + 0.6 c_g2 + 0.5 d_c + 0.5 noise) of two genres and a creator of
             their own: ONE taste for both domains, which is all that there is to transfer
  items      one or two genres, one creator; q_i = unit(c_g1 + 0.5 c_g2 + 0.5 d_c + 0.3 noise);
             popularity b_i ~ N(0, 0.6). Every item is of one domain
  choice     step by step, without repetition, from softmax over the items not yet chosen of
             4.5 p_u.q_i + 1.5 q_prev.q_i + b_i: taste, then the item before, then popularity
  labels     of a user, `taste`: the first of their two genres
  ratings    1..5: round(2.4 + 2 p_u.q_i + 0.8 noise), clipped
  times      a user's source history starts on some day of a year, gaps are exponential (mean 6 h);
             the target history starts after the first half of the source history

Most users are in both domains. Source histories are long (25..90), target histories short (2..14,
most of them 5..10), so that the target alone says little about a user's taste.
"""

import hashlib

import numpy as np
import pyarrow as pa

from recjax.data import metadata, readers

GENRES = ("action", "comedy", "documentary", "drama", "fantasy", "horror", "romance", "western")
START = 1_577_836_800  # 2020-01-01, the first possible time
DAY = 86_400


class Generated:
  """Reader (see `recjax.data.readers`) of rows that are in memory."""

  roles = ("user", "item", "time", "rating", "domain")
  name = "the generated rows"
  ticks = 1

  def __init__(self, block):
    self._block = block
    digest = hashlib.sha256()
    for array in (block.times, block.ratings):
      digest.update(array.tobytes())
    for texts in (block.users, block.items, block.domains):
      digest.update("\n".join(texts.to_pylist()).encode())
    self.sha256 = digest.hexdigest()

  def blocks(self):
    yield self._block

  def place(self, row):
    return f"{self.name} row {row + 1}"


def generate(*, seed, users, source_items, target_items, creators, dim, both):
  """Returns (reader, `metadata.Items`, {attribute: {user: value}}) of the docstring's process.

  Args:
    seed: of everything.
    users: how many there are in all.
    source_items: in the domain "src".
    target_items: in the domain "tgt".
    creators: how many creators make the items of both domains.
    dim: latent dimensions.
    both: share of users in both domains; the others are split evenly between the two.
  """
  rng = np.random.default_rng(seed)
  centers, makers = _unit(rng, len(GENRES), dim), _unit(rng, creators, dim)
  first, second = _two_of(rng, users, len(GENRES))
  favorite = rng.integers(creators, size=users)
  taste = _normalize(centers[first] + 0.6 * centers[second] + 0.5 * makers[favorite]
                     + 0.5 * _unit(rng, users, dim))
  member = rng.random(users)
  in_domain = {"src": member < (1 + both) / 2, "tgt": (member < both) | (member >= (1 + both) / 2)}
  lengths = {"src": np.clip(rng.lognormal(3.7, 0.4, users), 25, 90).astype(int),
             "tgt": np.clip(2 + rng.poisson(6, users), 2, 14)}
  begin = START + rng.integers(365 * DAY, size=users)
  columns, titles, genres, authors = [], {}, {}, {}
  for domain, count in (("src", source_items), ("tgt", target_items)):
    kind, other = _two_of(rng, count, len(GENRES))
    second_genre = rng.random(count) < 0.5
    maker = rng.integers(creators, size=count)
    vectors = _normalize(centers[kind] + 0.5 * second_genre[:, None] * centers[other]
                         + 0.5 * makers[maker] + 0.3 * _unit(rng, count, dim))
    popularity = rng.normal(0, 0.6, count)
    names = np.array([f"{domain}_{i:03d}" for i in range(1, count + 1)])
    for i, name in enumerate(names.tolist()):
      kinds = [GENRES[kind[i]]] + [GENRES[other[i]]] * bool(second_genre[i])
      genres[name], authors[name] = tuple(kinds), (f"creator_{maker[i] + 1:02d}",)
      titles[name] = f"{'Film' if domain == 'src' else 'Book'} {i + 1} ({' and '.join(kinds)})"
    who = np.flatnonzero(in_domain[domain])
    n = lengths[domain][who]
    chosen = _choose(rng, taste[who], vectors, popularity, n)
    gaps = 60 + rng.exponential(6 * 3600, chosen.shape)
    times = (begin[who, None] + np.cumsum(gaps, 1)).astype(np.int64)
    begin[who] = times[np.arange(len(who)), n // 2]  # What comes next starts half way through.
    affinity = np.einsum("ud,utd->ut", taste[who], vectors[chosen])
    ratings = np.clip(np.round(2.4 + 2 * affinity + rng.normal(0, 0.8, chosen.shape)), 1, 5)
    real = np.arange(chosen.shape[1]) < n[:, None]
    columns.append((np.broadcast_to(who[:, None], chosen.shape)[real], names[chosen[real]],
                    times[real], ratings[real].astype(np.float32), [domain] * int(real.sum())))
  who, item, time, rating, domain = map(np.concatenate, zip(*columns, strict=True))
  order = np.lexsort((item, time))  # As a log would have it.
  text = lambda values: pa.array(values[order].tolist(), pa.string())
  names = [f"u{u + 1:04d}" for u in range(users)]
  user = np.array(names)[who]
  block = readers.Block(text(user), text(item), time[order], rating[order], text(domain))
  fields = {"genre": genres, "creator": authors}
  labels = {"taste": {name: GENRES[kind] for name, kind in zip(names, first, strict=True)}}
  return Generated(block), metadata.Items(fields, titles, complete=True), labels


def _choose(rng, taste, vectors, popularity, lengths):
  """Returns int [n, max(lengths)]: the items each user chooses in turn, none of them twice."""
  rows = np.arange(len(taste))
  base = 4.5 * taste @ vectors.T + popularity
  near = 1.5 * vectors @ vectors.T
  previous = np.zeros_like(base)
  steps = []
  for _ in range(lengths.max()):
    # The largest of logits + Gumbel noise is a draw from their softmax.
    pick = (base + previous + rng.gumbel(size=base.shape)).argmax(1)
    steps.append(pick)
    base[rows, pick] = -np.inf
    previous = near[pick]
  return np.stack(steps, 1)


def _two_of(rng, count, kinds):
  """Returns two different integers below `kinds`, `count` times each."""
  first = rng.integers(kinds, size=count)
  return first, (first + rng.integers(1, kinds, size=count)) % kinds


def _unit(rng, count, dim):
  return _normalize(rng.normal(size=(count, dim)))


def _normalize(vectors):
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
