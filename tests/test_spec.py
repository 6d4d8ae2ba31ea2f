"""Durations, config arguments and overrides."""

import itertools
import math

import ml_collections
import pytest
from ml_collections import config_dict

from recjax import errors
from recjax import spec

DURATION = dict(batch_size=4, examples=10, total=200)  # 3 batches an epoch, the last one half full


@pytest.mark.parametrize("unit,value,want", [
  ("steps", 7, 7), ("steps", 0, 0), ("steps", 6.2, 7),
  ("epochs", 1, 3), ("epochs", 2.0, 6), ("epochs", 0.5, 2), ("epochs", 0.001, 1),
  ("examples", 8, 2), ("examples", 9, 3), ("examples", 1, 1),
  ("percent", 10, 20), ("percent", 0.1, 1), ("percent", 100, 200), ("percent", 0, 0),
])
def test_durations_round_up(unit, value, want):
  assert spec.steps({f"total_{unit}": value}, "total", **DURATION) == want


@pytest.mark.parametrize("percent", range(1, 101))
def test_whole_shares_are_exact(percent):
  # 0.07 * 100 is more than 7 in floating point: it must not cost a step.
  assert spec.steps({"x_percent": percent}, "x", total=100) == percent


def test_any_positive_duration_is_a_step():
  for unit in spec.UNITS:
    assert spec.steps({f"x_{unit}": 1e-12}, "x", **DURATION) == 1


def test_exactly_one_unit():
  for pair in itertools.combinations(spec.UNITS, 2):
    with pytest.raises(errors.UserError, match="exactly one"):
      spec.steps({f"total_{unit}": 1 for unit in pair}, "total", default=3, **DURATION)
  with pytest.raises(errors.UserError, match="total_epochs"):
    spec.steps({}, "total", **DURATION)
  assert spec.steps({"total_steps": None}, "total", default=3) == 3
  assert spec.steps({"total_steps": 0}, "total", default=3) == 0  # zero is not unset


def test_placeholders_are_unset():
  config = ml_collections.ConfigDict({"every_steps": config_dict.placeholder(int),
                                      "every_epochs": 2.0})
  assert spec.steps(config, "every", **DURATION) == 6


def test_minus_one_unsets_a_duration():
  assert spec.steps({"x_epochs": -1.0, "x_steps": 7}, "x", **DURATION) == 7
  assert spec.steps({"x_epochs": -1}, "x", **DURATION, default=3) == 3


@pytest.mark.parametrize("value", [-2, math.nan, math.inf, "3", True])
def test_durations_are_finite_numbers(value):
  with pytest.raises(errors.UserError, match="total_steps"):
    spec.steps({"total_steps": value}, "total")


def test_the_whole_has_no_share_of_itself():
  with pytest.raises(errors.UserError, match="total_percent"):
    spec.steps({"total_percent": 50}, "total", batch_size=4, examples=10)


def test_parse_arg_keeps_types():
  arg = spec.parse_arg("lr=2,epochs=7,big,data=tgt", lr=0.5, epochs=1, big=False, data="src",
                       small=True)
  assert vars(arg) == {"lr": 2.0, "epochs": 7, "big": True, "data": "tgt", "small": True}
  assert isinstance(arg.lr, float)
  for empty in (None, ""):
    assert vars(spec.parse_arg(empty, a=1)) == {"a": 1}


def test_arguments_may_be_called_as_a_dicts_methods():
  arg = spec.parse_arg("", items=False, keys=1)
  assert arg.items is False and arg["keys"] == 1


@pytest.mark.parametrize("text,value", [("big=false", False), ("big=0", False), ("big=True", True)])
def test_parse_arg_reads_booleans(text, value):
  assert spec.parse_arg(text, big=not value).big is value


@pytest.mark.parametrize("text", ["unknown=1", "big=maybe", "epochs=many", "epochs=1.5"])
def test_parse_arg_rejects(text):
  name = text.partition("=")[0]
  with pytest.raises(errors.UserError, match=name):
    spec.parse_arg(text, big=False, epochs=1)


def test_override_sets_and_rejects():
  config = ml_collections.ConfigDict({"a": {"b": 1, "c": None}, "d": "x"}).lock()
  assert spec.override(config, {"a.b": 2.5, "a.c": (1, 2), "d": "y"}) is config
  assert config.to_dict() == {"a": {"b": 2.5, "c": (1, 2)}, "d": "y"}
  for name in ("a.x", "x", "x.y", "d.e", "a.b.c", "a.keys", ""):
    with pytest.raises(errors.UserError) as error:
      spec.override(config, {name: 0})
    assert repr(name) in str(error.value) and "a.b, a.c, d" in str(error.value)
  assert config.to_dict() == {"a": {"b": 2.5, "c": (1, 2)}, "d": "y"}


def test_load_config_passes_the_argument(tmp_path):
  path = tmp_path / "some.py"
  path.write_text("import ml_collections\n"
                  "def get_config(arg='none'):\n"
                  "  return ml_collections.ConfigDict({'arg': arg})\n")
  assert spec.load_config(f"{path}").arg == "none"
  assert spec.load_config(f"{path}:a=b,c").arg == "a=b,c"


@pytest.mark.parametrize("name", ["missing.py", "missing.py:a=1", "missing", ""])
def test_load_config_says_what_is_missing(name):
  with pytest.raises(errors.UserError, match="no config file"):
    spec.load_config(name)
