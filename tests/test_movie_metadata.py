"""Movie metadata: who made a movie is never guessed, and what is missing is said."""

import gzip
import json

import numpy as np
import pytest
import test_prepare

from recjax import errors
from recjax.data import metadata, movie_metadata, readers, sequences

HEADER = ("color,director_name,actor_2_name,actor_1_name,movie_title,actor_3_name,title_year,"
          "imdb_score\n")


def imdb(folder, *films):
  """Writes films, (title, year, director[, actor 1, 2, 3]); returns the path."""
  lines = [f'Color,{d},{"".join(a[1:2])},{"".join(a[:1])},"{t}\xa0",{"".join(a[2:3])},{y},7'
           for t, y, d, *a in films]
  path = folder / "movie_metadata.csv"
  path.write_text(HEADER + "\n".join(lines) + "\n")
  return path


@pytest.mark.parametrize("movielens, published", [
  ("Matrix, The", "The Matrix"), ("MATRIX", "The Matrix"), ("Misérables, Les", "Les Miserables"),
  ("Associate, The (L'Associe)", "L'associé"), ("Seven (Se7en)", "Se7en"),
  ("Blue Angel, The (Blaue Engel, Der)", "The Blue Angel"),
  ("Blue Angel, The (Blaue Engel, Der)", "Der blaue Engel"),
  ("Postino, Il (The Postman)", "Il Postino"), ("Single Girl, A (La Fille Seule)", "A Single Girl"),
  ("Professional, The (a.k.a. Leon: The Professional)", "Léon: The Professional"),
  ("Hard 8 (a.k.a. Sydney, a.k.a. Hard Eight)", "Sydney"), ("Oscar & Lucinda", "Oscar and Lucinda"),
  ("Communion (a.k.a. Alice, Sweet Alice/Holy Terror)", "Alice Sweet Alice"),
  ("Alien³", "Alien 3"), ("Naked Gun 2 1/2, The", "The Naked Gun 2½"), ("Rocky IV", "Rocky 4"),
  ("Schindler's List", "Schindlers List"), ("Dr. Strangelove", "Dr Strangelove"),
])
def test_spellings_of_one_title(movielens, published):
  ours = movie_metadata.title_keys(movielens)
  assert ours & movie_metadata.title_keys(published, foreign=False)


@pytest.mark.parametrize("one, other", [
  ("Alien", "Aliens"), ("Alien", "Alien 3"), ("Rocky", "Rocky II"), ("Se7en", "Seven"),
  ("Malcolm X", "Malcolm 10"), ("Heat", "Heat (2)"), ("Star Wars", "Star Trek")])
def test_different_titles_stay_apart(one, other):
  keys = [movie_metadata.title_keys(t, foreign=False) for t in (one, other)]
  assert all(keys) and not keys[0] & keys[1]


def match(folder, titles, *films):
  return movie_metadata.read_imdb(imdb(folder, *films), titles)["imdb_director"]


def test_years_decide(tmp_path):
  titles = {"1": "Heat, The (1995)"}
  assert match(tmp_path, titles, ("The Heat", 1995, "A")) == {"1": ("A",)}
  assert match(tmp_path, titles, ("Heat", 1994, "A")) == {"1": ("A",)}
  assert match(tmp_path, titles, ("Heat", 1993, "A")) == {}
  assert match(tmp_path, titles, ("Heat", "", "A")) == {}
  assert match(tmp_path, titles, ("Heat", 1996, "A"), ("Heat", 1995, "B")) == {"1": ("B",)}
  assert match(tmp_path, titles, ("Heat", 1996, "A"), ("Heat", 1994, "B")) == {}
  assert match(tmp_path, titles, ("Heat", 1995, "A"), ("Heat", 1995, "B")) == {}
  # One film listed twice is no ambiguity; one without a director has none.
  assert match(tmp_path, titles, ("Heat", 1995, "A"), ("Heat", 1995, "A")) == {"1": ("A",)}
  assert match(tmp_path, titles, ("Heat", 1995, "")) == {"1": ()}


def test_two_movies_do_not_share_a_film(tmp_path):
  titles = {"1": "Heat (1995)", "2": "Fever (Heat) (1995)", "3": "Cold (1990)", "4": "Cold (1991)"}
  films = ("Heat", 1995, "A"), ("Cold", 1991, "B")
  assert match(tmp_path, titles, *films) == {"4": ("B",)}
  assert match(tmp_path, {"9": "No year"}, *films) == {}


def test_imdb_actors_keep_their_order(tmp_path):
  path = imdb(tmp_path, ("Heat", 1995, "Michael  Mann", "Al Pacino", "", "Val Kilmer"),
              ("Cold", 1990, "B", "x", "y", "z"))
  found = movie_metadata.read_imdb(path, {"1": "Heat (1995)", "2": "Cold (1990)"})
  assert found == {"imdb_director": {"1": ("Michael Mann",), "2": ("B",)},
                   "imdb_actor": {"1": ("Al Pacino", "Val Kilmer"), "2": ("x", "y", "z")}}


def test_imdb_mistakes(tmp_path):
  with pytest.raises(errors.UserError, match="movie_metadata.csv line 3: title_year 'soon'"):
    match(tmp_path, {}, ("Heat", 1995, "A"), ("Heat", "soon", "B"))
  path = imdb(tmp_path, ("Heat", 1995, "A"))
  path.write_text(path.read_text() + "Color,too,few\n")
  with pytest.raises(errors.UserError, match="line 3: malformed row, 8 columns expected and 3"):
    movie_metadata.read_imdb(path, {})
  path.write_text(path.read_text().replace("title_year", "year"))
  path.write_text("\n".join(path.read_text().split("\n")[:2]))
  with pytest.raises(errors.UserError, match="no column 'title_year'"):
    movie_metadata.read_imdb(path, {})


OMDB = ("1::Toy Story::1995::G::22 Nov 1995::Animation::John Lasseter, Ash Brannon(co-director)::"
        "Pete Docter (story), Joss Whedon (screenplay \"A, (B)\"), Pete Docter (book)::Tom Hanks, "
        "Tim Allen::A boy: toys.::http://x\r\n"
        "2::Café::1996::N/A::N/A::Drama::N/A::::A  B,, N/A::N/A::N/A\r\n")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("change", [
  lambda t: t, lambda t: t.replace("A boy: toys", "A boy:: toys:: 1999 ::"),
  lambda t: t.replace("Toy Story", "Toy::Story::2"), lambda t: t.rstrip("\r\n"),
  lambda t: t.replace("::1996::", "::N/A::"), lambda t: t.replace("1996", "1996–1998")])
def test_omdb(tmp_path, encoding, change):
  path = tmp_path / "m.dat"
  path.write_bytes(change(OMDB).encode(encoding, errors="replace"))
  assert movie_metadata.read_omdb(path) == {
    "director": {"1": ("John Lasseter", "Ash Brannon"), "2": ()},
    "writer": {"1": ("Pete Docter", "Joss Whedon"), "2": ()},
    "actor": {"1": ("Tom Hanks", "Tim Allen"), "2": ("A B",)}}


def test_plots(tmp_path):
  (tmp_path / "m.dat").write_bytes(OMDB.replace("A boy: toys", "A boy:: toys").encode())
  assert movie_metadata.texts({"omdb": "m.dat"}, tmp_path) == {"plot": {"1": "A boy:: toys."}}
  assert movie_metadata.texts({"omdb": "gone.dat"}, tmp_path) == {}
  assert movie_metadata.texts({"omdb": ""}, tmp_path) == {}


@pytest.mark.parametrize("text, message", [
  (OMDB + "3::only::1990\r\n", "line 3: malformed row, 11 fields"),
  (OMDB + OMDB, "line 3: movie 1 is listed twice"), ("", "line 1: malformed"),
  (OMDB.replace("2::Café", "two::Café"), "line 2: malformed"),
  (OMDB.replace("1996", "soon"), "line 2: malformed"), (OMDB + "\n\n" + OMDB, "line 3: malformed"),
])
def test_omdb_mistakes(tmp_path, text, message):
  path = tmp_path / "m.dat"
  path.write_bytes(text.encode())
  with pytest.raises(errors.UserError, match=f"m.dat {message}"):
    movie_metadata.read_omdb(path)


def test_survey(tmp_path):
  path = tmp_path / "s.json"
  path.write_text('{"1": [[7], [0, 5]], "12": [[], [9]]}')
  assert movie_metadata.read_survey(path) == {
    "survey_director": {"1": ("7",), "12": ()}, "survey_actor": {"1": ("0", "5"), "12": ("9",)}}
  for text, message in (('{"1": [[7]]}', "malformed entry '1'"), ("[1]", "a JSON object"),
                        ('{"1": [[7], ["x"]]}', "malformed entry '1'"), ("[" * 99999, "not JSON"),
                        ('{"x": [[7], [1]]}', "malformed entry 'x'"), ("\xff", "not JSON"),
                        ('{"1": [[-1], [true]]}', "malformed entry '1'"),
                        ('{"1":\n [[7]', "s.json line 2: not JSON"), ('{"a": 1', "line 1: not")):
    path.write_text(text, encoding="latin-1")
    with pytest.raises(errors.UserError, match=message):
      movie_metadata.read_survey(path)


def test_a_pickle_is_never_read(tmp_path):
  (tmp_path / "seq_meta.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
  with pytest.raises(errors.UserError, match="seq_meta.pkl is a pickle"):
    movie_metadata.load({"survey": "seq_meta.pkl"}, tmp_path, {})
  fields, notes = movie_metadata.load({"survey": "a/seq_meta.json"}, tmp_path, {})
  assert not fields and len(notes) == 1 and "the pickle there is never read" in notes[0]


def test_tables_are_optional(tmp_path):
  survey = '{"1": [[7], [3]], "3": [[7], []], "999": [[1], [1]]}'
  lines = test_prepare.LINES
  test_prepare.write_movielens(tmp_path, lines)
  plain, printed = test_prepare.make(test_prepare.ML1M, tmp_path, tmp_path / "out", check=False)
  assert printed.count("note: no metadata of") == 3 and "note: no metadata of omdb" in printed
  assert plain["ml1m"]["items_with_metadata"] == 4  # Of nothing but the list of movies: genres.
  assert plain["ml1m"]["feature_coverage"] == {"genre": 4}
  (tmp_path / "seq_meta.json.gz").write_bytes(gzip.compress(survey.encode()))  # right in raw_dir
  imdb(tmp_path, ("A", 1990, "Ann", "x"), ("B", 1991, "Ben"))
  wanted = dict(check=False, metadata__omdb="")
  made, printed = test_prepare.make(test_prepare.ML1M, tmp_path, tmp_path / "out", **wanted)
  assert "no metadata of" not in printed
  assert made["ml1m"]["items_with_metadata"] == 3 and made["ml1m_tgt"]["items_with_metadata"] == 1
  assert made["ml1m"]["feature_coverage"] == {
    "genre": 4, "imdb_actor": 1, "imdb_director": 2, "survey_actor": 1, "survey_director": 2}
  lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
  assert lines["imdb_director"] == ["2", "2"] and lines["survey_director"] == ["2", "1"]
  src, tgt = (sequences.load(tmp_path / "out", name) for name in ("ml1m_src", "ml1m_tgt"))
  for name, feature in src.features.items():
    assert np.array_equal(feature.ids, tgt.features[name].ids), name
    assert np.array_equal(feature.values, tgt.features[name].values), name
  same = {k: v for k, v in made["ml1m"].items()
          if k not in ("items_with_metadata", "feature_coverage", "features")}
  assert same == {k: plain["ml1m"][k] for k in same}


def test_unknown_table(tmp_path):
  with pytest.raises(errors.UserError, match="metadata is 'imbd'; there are imdb, omdb, survey"):
    movie_metadata.load({"imbd": "x.csv"}, tmp_path, {})


# The real tables.

@pytest.fixture(scope="module")
def movies(raw_dir):
  """Returns ({movie: title}, the rated movies)."""
  rows = metadata.read_text(readers.file(raw_dir / "ml-1m" / "movies.dat")).splitlines()
  with gzip.open(raw_dir / "ml-1m" / "ratings.dat.gz", "rt") as lines:
    rated = {line.split("::", 2)[1] for line in lines}
  return {row.split("::")[0]: row.split("::")[1] for row in rows}, rated


def test_real_imdb(raw_dir, movies):
  """1,099 of the 1,119 rated movies that were matched by IMDB number, none of them wrongly."""
  titles, rated = movies
  folder = raw_dir / "imdb-5000"
  if not folder.is_dir():
    pytest.skip("no imdb-5000")
  found = movie_metadata.read_imdb(folder / "movie_metadata.csv", titles)["imdb_director"]
  names, columns, _ = metadata.read_strings(folder / "ml1m_to_imdb5000.csv")
  known = {movie: director for (movie,), (director,) in
           zip(columns["movie_id"], columns["director_name"], strict=True)}
  ours = {movie: "".join(value) for movie, value in found.items() if movie in rated}
  assert "director_name" in names and len(ours) >= 1099
  assert {movie: known.get(movie) for movie in ours} == ours


def test_real_omdb_and_survey(raw_dir, movies):
  _, rated = movies
  paths = [readers.find(raw_dir, name) for name in ("ml1m-text/movies_extrainfos.dat",
                                                    "authors-release/seq_meta.json")]
  if None in paths:
    pytest.skip("no ml1m-text or authors-release")
  omdb, survey = movie_metadata.read_omdb(paths[0]), movie_metadata.read_survey(paths[1])
  covered = lambda values: sum(bool(values.get(movie)) for movie in rated)
  assert [covered(omdb[f]) for f in ("director", "actor", "writer")] == [3695, 3698, 3630]
  assert covered(survey["survey_director"]) == covered(survey["survey_actor"]) == 1987
  assert len(json.loads(paths[1].read_text())) == 2025
