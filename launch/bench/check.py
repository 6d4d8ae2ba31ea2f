"""Compares two comparisons: did recjax lose ground against a peer?

    python -m launch.bench.check OLD.json NEW.json [--tolerance=0.15]

Ratios of speeds within one run are compared, never speeds: those of two machines, or of two days,
have nothing to say. Exit code 1 where a ratio fell by more than the tolerance, 2 where nothing can
be compared.
"""

import argparse
import json
import pathlib
import sys

IGNORED = ("recjax", "recjax_bf16")  # no peers: bfloat16 that got quicker is nothing lost


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("old", type=pathlib.Path)
  parser.add_argument("new", type=pathlib.Path)
  parser.add_argument("--tolerance", type=float, default=0.15, help="share of the old ratio")
  args = parser.parse_args()
  try:
    old, new = (json.loads(path.read_text()) for path in (args.old, args.new))
    rows = compare(ratios(old), ratios(new), args.tolerance)
  except (OSError, ValueError, KeyError, TypeError) as error:
    print(f"error: not two files of launch.bench.compare: {error}", file=sys.stderr)
    sys.exit(2)
  if not rows:
    print("error: the two files have no contestant and task in common", file=sys.stderr)
    sys.exit(2)
  for (task, name), before, after, fell in rows:
    print(f"{task:12} {name:18} {before:6.2f} -> {after:6.2f}{'  FELL' if fell else ''}")
  sys.exit(int(any(fell for *_, fell in rows)))


def ratios(found):
  """Returns {(task, contestant): how many times faster recjax was}, of a comparison.json."""
  return {(task, name): result["ratio"]
          for task, part in found["tasks"].items() for name, result in part["results"].items()
          if name not in IGNORED and "ratio" in result}


def compare(old, new, tolerance):
  """Returns [(key, old ratio, new ratio, whether it fell by more than the tolerance)]."""
  return [(key, old[key], new[key], new[key] < (1 - tolerance) * old[key])
          for key in old if key in new]


if __name__ == "__main__":
  main()
