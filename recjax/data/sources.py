"""What can be prepared: each format of raw data as rows, facts about items and split rules."""

import dataclasses
import os
import pathlib
import re

from recjax import errors
from recjax.data import (
  basket_json,
  demo,
  download,
  metadata,
  movie_metadata,
  readers,
  sequence_text,
  untimed,
  user_tables,
)

MAX_DOMAINS = 64  # more are a sign that some other column was named


@dataclasses.dataclass(frozen=True)
class Source:
  """Raw data, ready to be streamed."""
  reader: object  # see readers.py
  rules: object  # rules(domains) -> {data set name: fields of a splits.Rule}
  items: metadata.Items | None = None
  users: dict | None = None  # {attribute: {user: value}}
  repeats: bool = True  # whether one user may choose an item again
  notes: tuple = ()  # lines for who prepares the data


def open_source(config, raw_dir):
  """Returns the `Source` of `config.format`: ml1m, table, sequences, baskets, untimed or demo."""
  if config["format"] not in FORMATS:
    raise errors.UserError(f"config.format {config['format']!r} is none of {', '.join(FORMATS)}")
  if config["format"] != "demo" and not raw_dir:
    raise errors.UserError("--raw_dir is required: the folder with the raw data")
  return FORMATS[config["format"]](config, raw_dir and pathlib.Path(raw_dir))


def _movielens(config, raw_dir):
  ratings, movies, users = _movielens_files(config, raw_dir)
  names = ["user", "item", "rating", "time"]
  reader = readers.TextTable(ratings, header=names, columns={n: n for n in names}, separator="::",
                             rating_range=config["rating_range"])
  items = metadata.read_movies(movies, config["domains"])
  fields, notes = movie_metadata.load(config["metadata"], raw_dir, items.titles)
  items = dataclasses.replace(items, fields={**items.fields, **fields},
                              texts=movie_metadata.texts(config["metadata"], raw_dir))
  if users is None:
    notes = (*notes, "no users.dat beside the ratings: users have no attributes")
  return Source(reader, lambda domains: config["datasets"], items,
                users and user_tables.read_movielens(users), repeats=False, notes=tuple(notes))


def _movielens_files(config, raw_dir):
  """Returns the (ratings, movies, users or None) `Raw`s of the first place that has ratings."""
  wanted = ("ratings.dat", "movies.dat", "users.dat")
  for folder in (raw_dir / "ml-1m", raw_dir):
    found = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
             for name in wanted]
    if found[0]:
      return (readers.file(found[0]), readers.file(found[1] or folder / wanted[1]),
              found[2] and readers.file(found[2]))
  archive = raw_dir / "ml-1m.zip"
  if not archive.is_file():
    if not config["download"]:
      raise errors.UserError(
        f"no MovieLens-1M in {os.fspath(raw_dir)!r} (ml-1m/ratings.dat, ratings.dat, either also "
        ".gz, or ml-1m.zip); --config.download=true fetches it")
    download.fetch(config["url"], archive, md5=config["md5"], max_bytes=config["max_bytes"])
  members = readers.zip_members(archive)
  for name in wanted[:2]:
    if name not in members:
      raise errors.UserError(f"{archive}: has no member {name}")
  return tuple(members.get(name) for name in wanted)


def _table(config, raw_dir):
  reader = readers.interactions(
    raw_dir / config["interactions"], columns=config["columns"], separator=config["separator"],
    time_unit=config["time_unit"], rating_range=config["rating_range"] or None)
  items = None
  if config["items"]:
    items = metadata.read_table(raw_dir / config["items"], features=config["features"],
                                texts=config.get("texts", ()), separator=config["separator"],
                                **config["item_columns"])
  return Source(reader, lambda domains: table_rules(config, domains), items,
                user_attributes(config, raw_dir))


def user_attributes(config, raw_dir):
  """Returns {attribute: {user: value}} of a table's `config.users`, None without one."""
  if not config["users"]:
    return None
  return user_tables.read_table(raw_dir / config["users"], user=config["user_column"],
                                separator=config["separator"])


def table_rules(config, domains):
  """Returns {data set name: fields of a splits.Rule} of a table: the whole and each domain."""
  unknown = sorted(set(config["domain_splits"]) - set(domains))
  if unknown:
    raise errors.UserError(f"config.domain_splits names {unknown[0]!r}, no domain of the data "
                           f"({', '.join(domains) or 'there are none'})")
  named = {config["name"]: config["split"]}
  for domain in domains:
    fields = config["domain_splits"].get(domain, config["split"])
    named[f"{config['name']}_{domain}"] = {**fields, "domain": domain}
  return named


def required(raw_dir, name, field):
  """Returns the path that `readers.find` finds, or says which field of the config names it."""
  path = readers.find(raw_dir, name)
  if path is None:
    raise errors.UserError(f"no {name} in {os.fspath(raw_dir)!r} (nor .gz, nor right in it); check "
                           f"--raw_dir and --config.{field}")
  return path


def _untimed(config, raw_dir):
  paths = {domain: required(raw_dir, name, f"files.{domain}")
           for domain, name in config["files"].items()}
  reader = untimed.open_tables(paths, seed=config["seed"], skip=config.get("skip", 0),
                               rating_range=config["rating_range"] or None)
  return Source(reader, lambda domains: config["datasets"], repeats=False)


def _sequences(config, raw_dir):
  find = lambda field: required(raw_dir, config[field], field)
  raw = readers.file(find("sequences"))
  users, _ = sequence_text.read_map(find("user_map")) if config["user_map"] else (None, None)
  numbers, codes = sequence_text.read_map(find("item_map")) if config["item_map"] else (None, None)
  items = None
  if codes:
    names = config["item_domains"]
    if max(codes.values()) >= len(names):
      raise errors.UserError(f"config.item_domains names {len(names)} domains, but the map of "
                             f"items has the code {max(codes.values())}")
    items = metadata.Items({}, domains={i: names[code] for i, code in codes.items()})
  reader = sequence_text.SequenceText(raw, users=users, items=numbers,
                                      time_unit=config["time_unit"])
  return Source(reader, lambda domains: config["datasets"], items)


def _baskets(config, raw_dir):
  raws = [readers.file(required(raw_dir, name, "baskets")) for name in config["baskets"]]
  return Source(basket_json.BasketJson(raws), lambda domains: config["datasets"])


def _demo(config, raw_dir):
  reader, items, users = demo.generate(**config["generate"])
  return Source(reader, lambda domains: config["datasets"], items, users, repeats=False)


def check_names(names):
  """Raises `UserError` for the name of a data set that cannot be a folder's."""
  for name in names:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
      raise errors.UserError(f"data set name {name!r}: only letters, digits, _ - and . are allowed "
                             "(a domain's value is part of the name)")


FORMATS = {"ml1m": _movielens, "table": _table, "sequences": _sequences, "baskets": _baskets,
           "untimed": _untimed, "demo": _demo}
