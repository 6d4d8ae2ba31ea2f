"""Who made the movies of MovieLens: three published tables, each optional, as item features.

    imdb    movie_metadata.csv ("IMDB-5000")   imdb_director, imdb_actor      matched by title, year
    omdb    movies_extrainfos.dat              director, writer, actor        keyed by movie id
    survey  seq_meta.json (Zeng et al. 2021)   survey_director, survey_actor  anonymous numbers

Values are names, so that tables of different data sets can be matched; those of `survey` are the
numbers that its authors gave to names they did not publish. Values keep their published order.
"""

import os
import re
import unicodedata

from recjax import errors
from recjax.data import metadata, readers

ARTICLES = "The|A|An|La|Le|Les|L'|El|Los|Las|Il|Lo|I|Gli|O|Os|Der|Die|Das|Det|Den|De|Een|Un|Une|Una"
# Longer than a letter, as those may be words.
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
MAX_YEARS_APART = 1
IMDB_ACTORS = ("actor_1_name", "actor_2_name", "actor_3_name")
OMDB_FIELDS = 11  # id title year rated released genre director writer actors plot poster
OMDB_PEOPLE = {"director": 4, "writer": 5, "actor": 6}  # places from the year on
OMDB_PLOT = 7


def load(wanted, raw_dir, titles):
  """Returns ({feature: {movie: (value, ...)}}, [one line about every table that is not there]).

  Args:
    wanted: {"imdb", "omdb", "survey": path relative to `raw_dir`, "" for none}.
    raw_dir: the folder of raw data; a table may also lie right in it, and be compressed as .gz.
    titles: {movie: title with year}, as `movies.dat` has them.
  """
  parsers = {"imdb": lambda path: read_imdb(path, titles), "omdb": read_omdb, "survey": read_survey}
  fields, notes = {}, []
  for source, name in wanted.items():
    read = errors.choose(parsers, source, "a table in config.metadata")
    if not name:
      continue
    if name.endswith((".pkl", ".pickle")):
      raise errors.UserError(f"config.metadata.{source}: {name} is a pickle, which may run code "
                             "and is never read; save its content as JSON")
    path = readers.find(raw_dir, name)
    if path:
      fields.update(read(path))
    else:
      hint = ""
      if source == "survey" and readers.find(raw_dir, re.sub(r"\.json$", ".pkl", name)):
        hint = "; the pickle there is never read, as it may run code: save its content as JSON"
      notes.append(f"no metadata of {source}: {name} is not in {os.fspath(raw_dir)!r}{hint}")
  return fields, notes


def read_imdb(path, titles):
  """Returns the features of IMDB-5000's CSV for the movies of `titles` that can be identified.

  A movie is identified by a title in common (see `title_keys`) and a year that differs by at most
  one. The nearest year wins, the same film may be listed twice, and where two movies remain on
  either side nobody is matched: no director is guessed.
  """
  names, columns, place = metadata.read_strings(path)
  missing = sorted({"movie_title", "title_year", "director_name", *IMDB_ACTORS} - set(names))
  if missing:
    raise errors.UserError(f"{path}: no column {missing[0]!r}; IMDB-5000's movie_metadata.csv "
                           "is expected")
  cell = lambda name, row: " ".join(columns[name][row][0].split())
  years, films = [], {}
  for row in range(len(columns["title_year"])):
    year = cell("title_year", row)
    if year and not re.fullmatch(r"\d{4}(\.0)?", year, re.ASCII):
      raise errors.UserError(f"{place(row)}: title_year {year!r} is not a year")
    years.append(int(year[:4]) if year else None)
    if year:
      for key in title_keys(cell("movie_title", row), foreign=False):
        films.setdefault(key, []).append(row)
  who = lambda row: (cell("movie_title", row), years[row], cell("director_name", row))
  claims = {}  # {film: [(years apart, movie)]}
  rows = {}
  for movie, title in titles.items():
    found = re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", title, re.ASCII)
    if not found:
      continue
    near = {}
    for key in title_keys(found[1]):
      for row in films.get(key, ()):
        apart = abs(years[row] - int(found[2]))
        if apart <= MAX_YEARS_APART:
          near.setdefault(apart, {}).setdefault(who(row), row)
    nearest = near.get(min(near, default=0), {})
    if len(nearest) == 1:
      (film, row), = nearest.items()
      claims.setdefault(film, []).append((min(near), movie))
      rows[film] = row
  directors, actors = {}, {}
  for film, movies in claims.items():
    apart, movie = min(movies)
    if [distance for distance, _ in movies].count(apart) == 1:
      director = cell("director_name", rows[film])
      directors[movie] = (director,) if director else ()
      actors[movie] = tuple(a for a in (cell(c, rows[film]) for c in IMDB_ACTORS) if a)
  return {"imdb_director": directors, "imdb_actor": actors}


def title_keys(title, *, foreign=True):
  """Returns the set of normal forms of a title without its year, one for each of its names.

  "Blue Angel, The (Blaue Engel, Der)" has "blueangel" and "derblaueengel": articles return to the
  front, where English ones go, as do accents, case, spaces and punctuation; & is "and", III is 3.

  Args:
    title: the text.
    foreign: whether parentheses hold further names, as in MovieLens, "a.k.a." between several.
  """
  names = [title]
  if foreign:
    names = [re.sub(r"\([^()]*\)", " ", title)]
    for text in re.findall(r"\(([^()]*)\)", title):
      names += re.split(r"\ba\.k\.a\.|/", text)
  return {key for name in names if (key := _key(name))}


def _key(name):
  name = name.strip(" ,")
  if moved := re.fullmatch(rf"(.*), ({ARTICLES})", name, re.IGNORECASE):
    name = f"{moved[2]} {moved[1]}"
  plain = name.replace("&", " and ").casefold()
  if not plain.isascii():
    plain = unicodedata.normalize("NFKD", plain).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
  words = re.sub(r"[\W_]+", " ", re.sub(r"['\u2019`.]", "", plain)).split()
  if len(words) > 1 and words[0] in ("the", "a", "an"):
    words = words[1:]
  return "".join(ROMAN.get(word, word) for word in words)


def read_omdb(path):
  """Returns the features of OMDb-style lines: who made the movie.

  Names are separated by commas; remarks in parentheses go, "N/A" and nothing are no name.
  """
  features = {name: {} for name in OMDB_PEOPLE}
  for movie, fields in _omdb_rows(path):
    for name, after in OMDB_PEOPLE.items():
      features[name][movie] = _people(fields[after])
  return features


def texts(wanted, raw_dir):
  """Returns {"plot": {movie: text}}, or nothing without an OMDb-style table; see `load`."""
  path = wanted.get("omdb") and readers.find(raw_dir, wanted["omdb"])
  if not path:
    return {}
  plots = {movie: "::".join(fields[OMDB_PLOT:-1]).strip() for movie, fields in _omdb_rows(path)}
  return {"plot": {movie: plot for movie, plot in plots.items() if plot not in ("", "N/A")}}


def _omdb_rows(path):
  """Yields (movie, fields from the year on) of lines "id::title::year::rated::released::genre::
  director::writer::actors::plot::poster", UTF-8 or Latin-1.

  A title or plot may itself hold "::"; the first field of four digits after the title is the year.
  """
  raw, seen = readers.file(path), set()
  for number, line in enumerate(metadata.read_text(raw).rstrip("\r\n").split("\n"), 1):
    parts = line.rstrip("\r").split("::")
    extra = len(parts) - OMDB_FIELDS
    year = next((i for i in range(2, 3 + extra) if re.match(r"\d{4}", parts[i], re.ASCII)), 2)
    if extra < 0 or not parts[0].isdecimal() or not (
        re.match(r"\d{4}", parts[year], re.ASCII) or parts[year] in ("", "N/A")):
      raise errors.UserError(f"{raw.name} line {number}: malformed row, {OMDB_FIELDS} fields "
                             f"id::title::year::...::poster expected, not {line[:80]!r}")
    if parts[0] in seen:
      raise errors.UserError(f"{raw.name} line {number}: movie {parts[0]} is listed twice")
    seen.add(parts[0])
    yield parts[0], parts[year:]


def _people(text):
  while (shorter := re.sub(r"\([^()]*\)", " ", text)) != text:
    text = shorter
  names = (" ".join(name.split()) for name in text.split(","))
  return tuple(dict.fromkeys(name for name in names if name not in ("", "N/A")))


def read_survey(path):
  """Returns the features of the survey's table {movie: [[director, ...], [actor, ...]]}.

  The release has it as a pickle, seq_meta.pkl. A pickle may run code and is never read here; what
  is read is its content as JSON.
  """
  raw, directors, actors = readers.file(path), {}, {}
  numbers = lambda x: isinstance(x, list) and all(type(v) is int and v >= 0 for v in x)
  for movie, entry in readers.read_json(raw).items():
    if not (movie.isdecimal() and isinstance(entry, list) and len(entry) == 2
            and all(map(numbers, entry))):
      raise errors.UserError(f"{raw.name}: malformed entry {movie!r}, [[director, ...], [actor, "
                             f"...]] in whole numbers expected, not {str(entry)[:60]}")
    directors[movie], actors[movie] = (tuple(map(str, people)) for people in entry)
  return {"survey_director": directors, "survey_actor": actors}
