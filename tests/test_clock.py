"""Seconds under names."""

import types

import pytest

from recjax import clock


@pytest.fixture
def now(monkeypatch):
  """A time that moves only when told to."""
  time = types.SimpleNamespace(t=100.0)
  monkeypatch.setattr(clock.time, "perf_counter", lambda: time.t)
  return time


def test_an_inner_name_pauses_the_outer(now):
  it = clock.Clock()
  with it.measure("train"):
    now.t += 1
    with it.measure("compile"):
      now.t += 10
      with it.measure("save"):
        now.t += 100
      now.t += 10
    now.t += 1
  now.t += 1000  # counted to nothing
  assert it.seconds == {"train": 2, "compile": 20, "save": 100}
  assert it.wall() == 1122


def test_sums_over_visits_even_those_that_fail(now):
  it = clock.Clock()
  for _ in range(3):
    with pytest.raises(RuntimeError), it.measure("train"):
      now.t += 2
      raise RuntimeError
  with it.measure("train"):
    now.t += 1
  assert it.total("train") == 7 and it.total("never") == 0


def test_laps_add_up(now):
  it = clock.Clock()
  laps = []
  for seconds in (3, 0, 5):
    with it.measure("train"):
      now.t += seconds
    now.t += 50
    laps.append(it.lap("train"))
  assert laps == [3, 0, 5]
  assert it.lap("train") == 0 and it.total("train") == 8


@pytest.mark.parametrize("seconds,text", [
  (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (250, "4m10s"), (3599.6, "1h00m"), (7500, "2h05m"),
  (360000, "100h00m")])
def test_span(seconds, text):
  assert clock.span(seconds) == text
