"""Attributes of users: what is read, how it is numbered and stored, and mistakes in the files."""

import json

import numpy as np
import pytest

from recjax import errors, spec
from recjax.data import prepare, readers, sequences, user_tables

LINES = ["1::F::1::10::48067", "2::M::56::16::70072", "10::M::25::15::55117"]


def _users(folder, lines):
  (folder / "users.dat").write_text("\n".join(lines) + "\n")
  return readers.file(folder / "users.dat")


def test_movielens_users_are_numbered_by_value(tmp_path):
  found = user_tables.read_movielens(_users(tmp_path, LINES))
  assert found["gender"] == {"1": "F", "2": "M", "10": "M"}
  profiles = user_tables.encode(found, ["1", "2", "3", "10"])
  assert profiles["gender"].ids.tolist() == [b"", b"F", b"M"]
  assert profiles["gender"].values.tolist() == [0, 1, 2, 0, 2]  # user 3 is not listed
  assert profiles["age"].ids.tolist() == [b"", b"1", b"25", b"56"]  # by number, not by text
  assert profiles["occupation"].values.tolist() == [0, 1, 3, 0, 2]


@pytest.mark.parametrize("line,message", [
  ("3::M::25::15", "line 4: malformed"), ("x::M::25::15::1", "line 4: malformed"),
  ("3::::25::15::1", "line 4: malformed"), ("2::M::25::15::1", "line 4: user 2 is listed twice")])
def test_a_malformed_row_is_named(tmp_path, line, message):
  with pytest.raises(errors.UserError, match=message):
    user_tables.read_movielens(_users(tmp_path, [*LINES, line]))


def test_a_table_of_users_is_prepared_and_data_without_one_still_load(tmp_path):
  rows = [f"u{user},i{item},{item}" for user in range(4) for item in range(5)]
  (tmp_path / "interactions.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
  (tmp_path / "users.csv").write_text("user,team,town\nu0,red,\nu2,blue,\nu9,green,\n")
  config = spec.load_config("configs/data/table.py")
  make = lambda: prepare.prepare(config, raw_dir=tmp_path, data_dir=tmp_path / "out",
                                 log=lambda line: None)
  assert "profiles" not in make()["table"]
  assert sequences.load(tmp_path / "out", "table").profiles == {}
  config.users = "users.csv"
  assert make()["table"]["profiles"] == ["team"]  # nobody has a town
  team = sequences.load(tmp_path / "out", "table").profiles["team"]
  assert team.ids.tolist() == [b"", b"blue", b"red"]
  assert np.array(team.values).tolist() == [0, 2, 0, 1, 0]
  path = tmp_path / "out" / "table" / "manifest.json"
  older = {key: value for key, value in json.loads(path.read_text()).items() if key != "profiles"}
  path.write_text(json.dumps(older))
  assert sequences.load(tmp_path / "out", "table").profiles == {}


@pytest.mark.parametrize("text,message", [
  ("id,team\nu0,red\n", "no column 'user' for the user"),
  ("user,team\nu0,red\nu0,blue\n", "line 3: user 'u0' is listed twice"),
  ("user,a team\nu0,red\n", "'a team' cannot name an attribute")])
def test_mistakes_in_a_table_are_named(tmp_path, text, message):
  (tmp_path / "users.csv").write_text(text)
  with pytest.raises(errors.UserError, match=message):
    user_tables.read_table(tmp_path / "users.csv", user="user")
