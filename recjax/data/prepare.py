"""Raw interactions in, prepared data sets out: number the ids, group by user, cut, write, check.

All data sets of one run share the numbering of users and items. Nothing that stood in `data_dir`
is replaced before every new data set is complete and has the expected counts.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile

import numpy as np

from recjax import errors
from recjax.data import baskets, columns, metadata, sequences, sources, splits, user_tables
from recjax.data import shards as shards_lib

TABLE = (("data set", "name"), ("users", "users"), ("items", "items"),
         ("interactions", "interactions"), ("mean train", "mean_train_length"),
         ("evaluated", "evaluated_users"), ("too short", "too_short_users"),
         ("described", "items_with_metadata"))


@dataclasses.dataclass(frozen=True)
class Table:
  """All interactions in (user, time, file row) order on disk, and their vocabularies."""
  rows: columns.Columns
  offsets: np.ndarray  # int64 [U + 2]
  users: list  # external ids of users 1..U
  items: list  # of items 1..N
  domains: tuple  # names; a domain's code is its place
  item_domain: np.ndarray | None  # int16 [N + 1], where items decide on the domain, not rows
  first_seen: np.ndarray  # int32 [N + 1], see sequences


def prepare(config, *, raw_dir, data_dir, log=print):
  """Writes the data sets of a `configs/data` config to `data_dir`; returns {name: manifest}.

  Raises `UserError` for raw data with a mistake, or counts that the config does not expect.
  """
  config = config.to_dict()
  data_dir = pathlib.Path(data_dir)
  source = sources.open_source(config, raw_dir)
  with scratch_folder(data_dir) as scratch:
    table, rules = _gather(source, scratch)
    shared = shared_arrays(table, source.items, source.users)
    check_folders(data_dir, rules)
    manifests = {}
    for name, rule in rules.items():
      about = {"name": name, "title": config["title"], "generated": config["generated"],
               "raw_sha256": source.reader.sha256}
      if manifest := _write(scratch / name, table, rule, shared, about, config.get("shards", 0)):
        manifests[name] = manifest
    publish(config, rules, manifests, scratch, data_dir, log=log)
  if coverage := _format_coverage(shared[0]["features"]):
    log(coverage)
  for note in (*source.notes, *config["notes"]):
    log(f"note: {note}")
  return manifests


def publish(config, rules, manifests, scratch, data_dir, *, log):
  """Moves the data sets of `manifests` from `scratch` to `data_dir`, once all are as expected."""
  empty = [name for name in rules if name not in manifests]
  if not manifests:
    raise errors.UserError(f"no interaction is left by the split rules of {', '.join(empty)}")
  if config["check"]:
    check_counts(manifests, _expected(config, rules), empty)
  for name in manifests:
    sequences.replace_folder(scratch / name, data_dir / name)
  log(format_table(manifests.values()))
  for name in empty:
    log(f"note: {name} is not written, as its split rule keeps no interaction at all")


@contextlib.contextmanager
def scratch_folder(data_dir):
  """Yields a folder in `data_dir`, removed afterwards; a failure to write is a UserError."""
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".prepare.", suffix=".tmp", dir=data_dir))
    try:
      yield folder
    finally:
      shutil.rmtree(folder, ignore_errors=True)
  except OSError as error:
    raise errors.UserError(f"cannot write to {data_dir}: {error}") from error


def _gather(source, scratch):
  """Returns (Table, {data set: Rule})."""
  facts = source.items
  known = facts.titles.keys() if facts and facts.complete else None
  raw, vocabularies = columns.ingest(source.reader, scratch / ".raw", known_items=known,
                                     known_name=facts.name if facts else "")
  users, user_rank = vocabularies["user"].ranked()
  items, item_rank = vocabularies["item"].ranked()
  ranks = {"user": user_rank, "item": item_rank}
  domains, item_domain = (), None
  if "basket" in vocabularies:
    ranks["basket"] = vocabularies["basket"].ranked()[1]
  if "domain" in vocabularies:
    domains, rank = vocabularies["domain"].ranked()
    ranks["domain"] = rank - 1
    if len(domains) > sources.MAX_DOMAINS:
      raise errors.UserError(f"{source.reader.name}: {len(domains)} domains (limit "
                             f"{sources.MAX_DOMAINS}); is --config.columns.domain right?")
  elif facts and facts.domains:
    domains = sorted(set(facts.domains.values()))
    codes = [domains.index(facts.domains[i]) for i in items]
    item_domain = np.array([-1, *codes], np.int16)
  rules = {name: splits.parse(fields, name) for name, fields in source.rules(domains).items()}
  offsets = columns.user_offsets(raw, user_rank)
  rows, repeat = columns.group(raw, scratch / ".rows", ranks, offsets, repeats=source.repeats,
                               ticks=source.reader.ticks,
                               places=any(rule.order == "file" for rule in rules.values()))
  if repeat:
    raise errors.UserError(_repeat_message(source, raw, vocabularies, repeat))
  shutil.rmtree(raw.folder)
  first_seen = np.zeros(len(items) + 1, np.int32)
  first_seen[item_rank] = np.arange(1, len(items) + 1)  # Codes follow the first appearance.
  return Table(rows, offsets, users, items, tuple(domains), item_domain, first_seen), rules


def _repeat_message(source, raw, vocabularies, repeat):
  user, item, time = repeat
  found = columns.find_rows(raw, user, item, time if source.repeats else None)
  name = lambda role, code: vocabularies[role].text(code)
  what = "the same user, item and time" if source.repeats else "the same user and item"
  return (f"{source.reader.place(found[1])}: duplicate of {source.reader.place(found[0])}, {what} "
          f"(user {name('user', user)!r}, item {name('item', item)!r})")


def shared_arrays(table, facts, users=None):
  """Returns (Dataset fields that all data sets share, extra arrays, bool [N + 1] has metadata).

  `users` is {attribute: {user: value}}.

  An item has metadata if any feature beside those of the list of items (MovieLens' genre) has a
  value for it; where there are no others, those count.
  """
  fields = facts.fields if facts else {}
  features = {name: sequences.Feature(*metadata.encode_values(values, table.items, name))
              for name, values in fields.items()}
  listed = facts.listed if facts else ()
  described = np.zeros(len(table.items) + 1, bool)
  for name in set(features) - set(listed) or features:
    described |= _covered(features[name])
  extras = {}
  if facts and facts.titles:
    extras["item_titles"] = metadata.title_array(facts.titles, table.items)
  ids = {"user_ids": metadata.id_array(table.users), "item_ids": metadata.id_array(table.items)}
  texts = {name: metadata.text_array(values, table.items)
           for name, values in (facts.texts if facts else {}).items()}
  fields = {"features": features, "texts": texts, "first_seen": table.first_seen,
            "profiles": user_tables.encode(users or {}, table.users)}
  return {**ids, **fields}, extras, described


def _covered(feature):
  """Returns bool [N + 1]: which items have a value."""
  return (feature.values > 0).any(1)


def _write(draft, table, rule, shared, about, shards):
  """Writes one data set into the new folder `draft`; returns its manifest, None if it is empty."""
  item_counts, counts = _counts(table, rule)
  in_domain = item_counts >= max(1, rule.min_item_interactions)
  if rule.min_item_interactions > 1:
    _, counts = _counts(table, rule, in_domain)
  kept = splits.kept_lengths(counts, rule)
  if not kept.any():
    return None
  draft.mkdir()
  offsets = np.concatenate([[0], np.cumsum(kept)])
  if shards:
    refuse_baskets("basket" in table.rows.names)
  if not shards:
    seen = _write_rows(_Arrays(draft, offsets[-1]), table, rule, in_domain, counts, kept)
    rows = {stem: np.load(path, mmap_mode="r") for stem in (*shards_lib.VALUES, "baskets")
            if (path := draft / f"{stem}.npy").is_file()}
  else:
    out = shards_lib.Writer(draft, table.users, offsets, splits.ranges(kept, rule),
                            num_items=len(table.items), shards=shards)
    seen = _write_rows(out, table, rule, in_domain, counts, kept)
    about = about | {"shards": {"columns": out.columns, "files": out.entries}}
    rows = sequences.sharded(draft, about["shards"], offsets) | {"counts": out.counts}
  return finish(draft, table, rule, shared, about, rows, in_domain=in_domain, kept=kept, seen=seen)


def finish(draft, table, rule, shared, about, rows, *, in_domain, kept, seen):
  """Writes all of a data set but its rows, which are in `draft`; returns its manifest.

  Args:
    draft: the folder.
    table: `Table`; of it only ids.
    rule: `splits.Rule`.
    shared: of `shared_arrays`.
    about: what the manifest says beside counts.
    rows: {field of `sequences.Dataset`: the rows}.
    in_domain: bool [N + 1].
    kept: int64 [U + 1], rows of each user.
    seen: bool [N + 1], items among the rows.
  """
  arrays, extras, described = shared
  offsets, more = np.concatenate([[0], np.cumsum(kept)]), {}
  if rule.unit == "baskets":
    refuse_baskets("shards" in about)
    found = baskets.Baskets(rows.get("baskets", rows["times"]), offsets)
    ranges, more = found.rows(splits.ranges(found.counts, rule)), {"baskets": found.total}
  else:
    ranges = splits.ranges(kept, rule)
  lengths = ranges[..., 1] - ranges[..., 0]
  split = lengths[:, 2] > 0
  users = int(split.sum()) if rule.drop_short else len(table.users)
  manifest = {
    **about,
    "users": users,
    "items": int(in_domain.sum()),
    "items_seen": int(seen.sum()),
    "interactions": int(kept.sum()),
    **more,
    "items_with_metadata": int((in_domain & described).sum()),
    "feature_coverage": {name: int((in_domain & _covered(feature)).sum())
                         for name, feature in sorted(arrays["features"].items())},
    "mean_train_length": round(int(lengths[:, 0].sum()) / max(users, 1), 6),
    "evaluated_users": int(split.sum()),
    "too_short_users": len(table.users) - int(split.sum()),
    "absent_users": int((kept[1:] == 0).sum()),
    "vocabulary_users": len(table.users),
    "vocabulary_items": len(table.items),
    "split": splits.describe(rule),
  }
  data = sequences.Dataset(
    manifest=manifest, in_domain=in_domain, offsets=offsets, splits=ranges, **arrays, **rows)
  return sequences.write(draft, data, extras=extras)


def refuse_baskets(there):
  """Raises UserError where shards are to keep baskets, or to be cut by them."""
  if there:
    raise errors.UserError("shards do not keep baskets; prepare with --config.shards=0, or leave "
                           "the column out (--config.columns.basket=) and unit=interactions")


def _blocks(table, rule, names):
  """Yields (rows' users, {name: rows}, mask of the rule's domain) for ranges of whole users.

  Each user's rows are in the order of the rule.
  """
  if rule.domain is not None and rule.domain not in table.domains:
    raise errors.UserError(f"no domain {rule.domain!r}; there are: "
                           f"{', '.join(table.domains) or 'none'}")
  by_row = rule.domain is not None and table.item_domain is None
  in_file_order = rule.order == "file" and bool(names)  # Counting needs no order.
  names = {*names, "item", *(["domain"] if by_row else []), *(["place"] if in_file_order else [])}
  for low, high in columns.user_ranges(table.offsets, columns.BUCKET_ROWS):
    begin, end = int(table.offsets[low]), int(table.offsets[high])
    rows = {name: table.rows.read(name, begin, end) for name in names}
    user = np.repeat(np.arange(low, high), np.diff(table.offsets[low:high + 1]))
    mask = np.ones(end - begin, bool)
    if in_file_order:
      order = np.lexsort((rows["place"], user))
      rows = {name: values[order] for name, values in rows.items()}
    if rule.domain is not None:
      domain = rows["domain"] if by_row else table.item_domain[rows["item"]]
      mask = domain == table.domains.index(rule.domain)
    yield user, rows, mask


def _counts(table, rule, only=None):
  """Returns (int64 [N + 1], int64 [U + 1]): rows of the domain by item and by user.

  `only` (bool [N + 1]) counts the rows of some items.
  """
  items, users = np.zeros(len(table.items) + 1, np.int64), np.zeros(len(table.users) + 1, np.int64)
  for user, rows, mask in _blocks(table, rule, ()):
    if only is not None:
      mask &= only[rows["item"]]
    items += np.bincount(rows["item"][mask], minlength=len(items))
    users += np.bincount(user[mask], minlength=len(users))
  return items, users


class _Arrays:
  """Writes rows to items.npy and the like, block by block."""

  def __init__(self, folder, rows):
    self._folder, self._rows, self._streams = folder, int(rows), {}

  def append(self, values):
    """Writes {stem: array}: the next rows."""
    for stem, array in values.items():
      if stem not in self._streams:
        self._streams[stem] = open(self._folder / f"{stem}.npy", "wb")
        np.lib.format.write_array_header_1_0(self._streams[stem], {
          "descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False,
          "shape": (self._rows,)})
      self._streams[stem].write(array.data)

  def close(self):
    for stream in self._streams.values():
      stream.close()


def _write_rows(out, table, rule, in_domain, counts, kept):
  """Streams the kept rows to `out`, an `_Arrays` or a `shards.Writer`, and closes it.

  Returns bool [N + 1], the items among them.
  """
  names = [name for name in ("item", "time", "rating", "basket") if name in table.rows.names]
  seen = np.zeros(len(in_domain), bool)
  with contextlib.closing(out):
    for user, rows, mask in _blocks(table, rule, names):
      mask &= in_domain[rows["item"]]
      user = user[mask]
      # Rows of a user are consecutive and all in this block: the place of each in its user's.
      starts = np.flatnonzero(np.diff(user, prepend=-1))
      lengths = np.diff(np.append(starts, len(user)))
      place = np.arange(len(user)) - np.repeat(starts, lengths)
      latest = place >= counts[user] - kept[user]
      out.append({f"{name}s": rows[name][mask][latest] for name in names})
      seen[rows["item"][mask][latest]] = True
  return seen


def check_folders(data_dir, names):
  """Raises UserError where data sets of these names cannot go to `data_dir`."""
  sources.check_names(names)
  for name in names:
    folder = data_dir / name
    if folder.exists() and not (folder / "manifest.json").is_file():
      raise errors.UserError(f"{folder} exists and is no prepared data set; move it away or choose "
                             "another --data_dir")


def _expected(config, rules):
  """Returns {data set: {key: expected}}, with the legacy counts where that switch is on."""
  expected = {name: dict(values) for name, values in config["expect"].items()}
  for name, values in config["legacy_expect"].items():
    if name in rules and rules[name].legacy_drop_last_user:
      expected[name] = {**expected.get(name, {}), **values}
  return expected


def check_counts(manifests, expected, empty):
  """Raises UserError where {data set: manifest} lack what is expected of them.

  Args:
    manifests: of the new data sets.
    expected: {data set: {key: value or (value, tolerance)}}.
    empty: names of data sets that keep nothing.
  """
  misses = [f"the split rule of {name} keeps no interaction at all" for name in empty]
  for name, values in expected.items():
    for key, value in values.items() if name not in empty else ():
      value, tolerance = value if isinstance(value, (tuple, list)) else (value, 0)
      found = manifests.get(name, {}).get(key)
      if found is None or abs(found - value) > tolerance:
        within = f" within {tolerance}" if tolerance else ""
        misses.append(f"{name}.{key} is {found}, expected {value}{within}")
  if misses:
    raise errors.UserError(
      f"not the data that the config expects: {'; '.join(misses)}. Nothing was written; "
      "--config.check=false prepares it all the same")


def format_table(manifests):
  """Returns a text table, one line a data set."""
  return _align([[title for title, _ in TABLE], *([m[key] for _, key in TABLE] for m in manifests)])


def _format_coverage(features):
  """Returns a text table, one line a feature: how many items have a value, how many values."""
  rows = [[name, int(_covered(feature).sum()), len(feature.ids) - 1]
          for name, feature in features.items()]
  return rows and _align([["feature", "items with it", "distinct values"], *rows])


def _align(rows):
  show = lambda v: f"{v:,.3f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
  lines = [list(map(show, row)) for row in rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:],
                                                                    strict=True))])
    for line in lines)

