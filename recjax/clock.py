"""Time spent training, and nothing else: compilation, evaluation and saving are counted apart."""

import contextlib
import time


class Clock:
  """Sums wall seconds under names; a name entered inside another pauses the outer one."""

  def __init__(self):
    self.seconds, self._laps = {}, {}
    self._running = []  # (name, started) of the open names, outermost first
    self._born = time.perf_counter()

  @contextlib.contextmanager
  def measure(self, name):
    """Counts the time inside the `with` block to `name`."""
    now = time.perf_counter()
    if self._running:
      self._add(now)
    self._running.append([name, now])
    try:
      yield
    finally:
      now = time.perf_counter()
      self._add(now)
      self._running.pop()
      if self._running:
        self._running[-1][1] = now

  def total(self, name):
    """Returns the seconds counted to `name` so far."""
    return self.seconds.get(name, 0.0)

  def lap(self, name):
    """Returns the seconds counted to `name` since the last lap."""
    before = self._laps.get(name, 0.0)
    self._laps[name] = self.total(name)
    return self._laps[name] - before

  def wall(self):
    """Returns the seconds since the clock was made."""
    return time.perf_counter() - self._born

  def _add(self, now):
    name, started = self._running[-1]
    self.seconds[name] = self.seconds.get(name, 0.0) + now - started


def span(seconds):
  """Returns seconds as people write them: 45s, 4m10s, 2h05m."""
  seconds = int(round(seconds))
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02d}s"
  return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
