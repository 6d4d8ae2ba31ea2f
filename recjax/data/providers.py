"""One schema for what is known of items beside who chose them: attributes, vectors, texts.

`config.model.features` names providers, ((NAME, {"kind": KIND, option: value, ...}), ...):

    attribute   a categorical attribute of the data set; the mean of its values' vectors
    given       vectors that somebody has computed, of images, audio, sentences, entities of a
                knowledge graph or people they are followed by: any table of (external id, vector)
    text        titles, plots and the like, read by an encoder over words

All are keyed by external ids (of items, of values, of words), which is why they transfer: a row
means the same in every data set. `config.model.user_features` names providers of users likewise:
attributes of the table of users, and vectors keyed by users' external ids, as those of a social
network that `recjax.export` writes. `OPTIONS` lists what each kind takes. Here they are read; what
the model makes of them is in `recjax.models.features`.
"""

import dataclasses
import os
import re

import numpy as np

from recjax import errors
from recjax.data import vectors

OPTIONS = {
  "attribute": dict(attribute="",  # name in the data set, the provider's own by default
                    slots=0,  # values of an item that are read; 0: all
                    width=16),
  "given": dict(path="", ids="", column="",  # see `vectors.read`
                standardize=False,  # every column of the file to mean 0 and variance 1
                trained=False,  # a copy that training changes; else a constant
                width=0),  # after a learned projection; 0: as given
  "text": dict(of=("title",),  # texts or attributes of the data set, one after the other
               encoder="word_avg", width=32,
               length=64, min_count=2, max_words=20_000,  # words of an item, of the vocabulary
               tfidf=False, remove_principal=False),  # word_avg only
}
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclasses.dataclass(frozen=True)
class Provider:
  """What was read of one feature: `arrays` [N + 1, ...], by item, of which row 0 knows nothing.

    size     columns of given vectors, or rows of the table of values or words
    known    bool [N + 1], items that it says something of
    rows     (names bytes [size], bool [size] whether the domain trains it), None for given vectors
    digest   of the file, where there is one
  """
  options: dict
  arrays: dict
  size: int
  known: np.ndarray
  rows: tuple | None = None
  digest: str | None = None


def parse(features, *, field="model.features"):
  """Returns {NAME: options, all spelled out} of the config's `field`."""
  found = {}
  for entry in features:
    if len(entry) != 2 or not hasattr(entry[1], "items") or not str(entry[0]).isidentifier():
      raise errors.UserError(f"{field}: each is (name, {{\"kind\": ..., option: value}}), not "
                             f"{entry!r}")
    name, given = entry[0], dict(entry[1])
    where = f"{field}, {name}"
    kind = given.pop("kind", None)
    defaults = errors.choose(OPTIONS, kind, f"{where}: kind")
    if name in found:
      raise errors.UserError(f"{where}: is listed twice")
    for option, value in given.items():
      default = errors.choose(defaults, option, f"{where}: option")
      if not _alike(default, value):
        raise errors.UserError(f"{where}: {option}={value!r} is not of the kind of {default!r}")
    found[name] = {"kind": kind, **defaults, **given}
  return found


def _alike(default, value):
  if isinstance(default, tuple):
    return isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value) and value
  if isinstance(default, bool) or isinstance(default, str):
    return type(value) is type(default)
  return type(value) is int and value >= 0


def read(data, features):
  """Returns {NAME: Provider} for the items of a `sequences.Dataset`.

  Raises:
    UserError: an unknown option, attribute or text, a file that cannot be read or fits no item.
  """
  readers = {"attribute": _attribute, "given": _given, "text": _text}
  return {name: readers[options["kind"]](data, f"model.features, {name}", name, options)
          for name, options in parse(features).items()}


@dataclasses.dataclass(frozen=True)
class People:
  """The users of a `sequences.Dataset` as the readers of features see items."""
  name: str
  item_ids: np.ndarray
  in_domain: np.ndarray
  features: dict
  texts: dict = dataclasses.field(default_factory=dict)


def read_users(data, features):
  """Returns {NAME: Provider} for the users of a `sequences.Dataset`, as `read` does."""
  everybody = np.arange(data.num_users + 1) > 0
  profiles = {name: dataclasses.replace(profile, values=np.asarray(profile.values)[:, None])
              for name, profile in data.profiles.items()}
  people = People(data.name, data.user_ids, everybody, profiles)
  readers = {"attribute": _attribute, "given": _given}
  found = {}
  for name, options in parse(features, field="model.user_features").items():
    where = f"model.user_features, {name}"
    read_one = errors.choose(readers, options["kind"], f"{where}: kind")
    found[name] = read_one(people, where, name, options)
  return found


def tables(found, *, extra_tokens=0, of=""):
  """Returns {"feature/NAME": [N + 2 + extra_tokens, ...]}, with "feature/NAME/..." beside it.

  Of padding, MASK and the extra tokens nothing is known. `of` is what names begin with.
  """
  out = {}
  for name, provider in found.items():
    for suffix, array in provider.arrays.items():
      rows = np.zeros((1 + extra_tokens, *array.shape[1:]), array.dtype)
      out[f"{of}feature/{name}{suffix}"] = np.concatenate([array, rows])
  return out


def row_names(found, of=""):
  """Returns {"feature/NAME": (names, trained)}, the vocabularies of values and of words."""
  return {f"{of}feature/{name}": provider.rows for name, provider in found.items() if provider.rows}


def digests(found, of=""):
  """Returns {NAME: SHA-256 of its file} of the providers that read one."""
  return {f"{of}{name}": provider.digest for name, provider in found.items() if provider.digest}


def _attribute(data, where, name, options):
  attribute = options["attribute"] or name
  feature = errors.choose(data.features, attribute, f"{where}: attribute")
  values = np.asarray(feature.values)[:, :options["slots"] or None].astype(np.int32)
  ids = np.asarray(feature.ids[1:])
  used = np.zeros(len(ids) + 1, bool)
  used[values[np.asarray(data.in_domain)].ravel()] = True
  return Provider(options, {"": values}, len(ids), (values > 0).any(1), (ids, used[1:]))


def _given(data, where, name, options):
  del name
  file = vectors.read(options["path"], ids=options["ids"], column=options["column"], where=where)
  place = _places(np.asarray(data.item_ids[1:]), file.ids)
  if not (place >= 0).any():
    example = np.asarray(data.item_ids[1:2])[0].decode()
    raise errors.UserError(
      f"{where}: no id of {options['path']} is one of data set {data.name!r} (there "
      f"{file.ids[0].decode()!r}, here {example!r})")
  table = file.vectors
  if options["standardize"]:  # by the file, so that it means the same in every data set
    present = table[file.known]
    table = (table - present.mean(0)) / np.maximum(present.std(0), 1e-6)
  known = np.append(False, (place >= 0) & file.known[np.maximum(place, 0)])
  out = np.zeros((len(known), table.shape[1]), np.float32)
  out[known] = table[place[known[1:]]]
  return Provider(options, {"": out, "/known": known}, table.shape[1], known, digest=file.digest)


def _places(wanted, ids):
  """Returns int64 [n]: where each of `wanted` is in `ids`, -1 where it is not."""
  order = np.argsort(ids, kind="stable")
  width = max(wanted.dtype.itemsize, ids.dtype.itemsize)
  ordered, wanted = ids[order].astype(f"S{width}"), wanted.astype(f"S{width}")
  place = np.minimum(np.searchsorted(ordered, wanted), len(ids) - 1)
  return np.where(ordered[place] == wanted, order[place], -1)


def _text(data, where, name, options):
  del name
  texts = [_column(data, where, part) for part in options["of"]]
  items = [words(" ".join(parts))[:options["length"]] for parts in zip(*texts, strict=True)]
  vocabulary, holders = _vocabulary(items, options)
  if not vocabulary:
    raise errors.UserError(f"{where}: no word of {', '.join(options['of'])} occurs in "
                           f"{options['min_count']} items; lower min_count")
  number = {word: place for place, word in enumerate(vocabulary, 1)}
  kept = [[number[word] for word in item if word in number] for item in items]
  table = np.zeros((len(kept), max(1, *map(len, kept))), np.int32)
  for row, item in enumerate(kept):
    table[row, :len(item)] = item
  arrays = {"": table}
  if options["tfidf"]:
    rarity = np.log((1 + len(items)) / (1 + np.array([0, *holders]))) + 1
    arrays["/weight"] = np.where(table > 0, rarity[table], 0).astype(np.float32)
  used = np.zeros(len(vocabulary) + 1, bool)
  used[table[np.asarray(data.in_domain)].ravel()] = True
  names = np.array([word.encode() for word in vocabulary])
  return Provider(options, arrays, len(vocabulary), (table > 0).any(1), (names, used[1:]))


def _column(data, where, part):
  """Returns one text an item, of rows 0..N: a stored text, or the values of an attribute."""
  if part in data.texts:
    return [text.decode() for text in np.asarray(data.texts[part]).tolist()]
  choices = {**data.texts, **data.features}
  feature = errors.choose(choices, part, f"{where}: of")
  ids = [value.decode() for value in np.asarray(feature.ids).tolist()]
  return [" ".join(ids[value] for value in row if value)
          for row in np.asarray(feature.values).tolist()]


def words(text):
  """Returns the words of a text in order: runs of letters and digits, without regard to case."""
  return WORD.findall(text.casefold())


def _vocabulary(items, options):
  """Returns (words in order, in how many items each occurs); of too many the most frequent stay."""
  counts = {}
  for item in items:
    for word in set(item):
      counts[word] = counts.get(word, 0) + 1
  often = [word for word, count in counts.items() if count >= options["min_count"]]
  often = sorted(often, key=lambda word: (-counts[word], word))[:options["max_words"]]
  kept = sorted(often)
  return kept, [counts[word] for word in kept]


def describe(found, in_domain, what="items"):
  """Returns a line for every provider: how many items of the domain it says something of."""
  total = int(np.sum(in_domain[1:]))
  known = {name: int(np.sum(provider.known & in_domain)) for name, provider in found.items()}
  return [f"feature {name} ({provider.options['kind']}): {known[name]:,} of {total:,} {what}, "
          f"{provider.size:,} "
          + ("columns" if provider.rows is None else "rows")
          + (f" of {os.fspath(provider.options['path'])}" if provider.digest else "")
          for name, provider in found.items()]
