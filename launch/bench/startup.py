"""Times the command line up to its first finished training step, with an empty and a filled cache.

    python -m launch.bench.startup --data_dir=DATA [--repeats=3] [--configs=FILE,...]

`cold` is a start in a cache folder of its own that is empty, `warm` the median of further starts,
which find their compiled programs there; `imports` is Python until `recjax.train` is loaded.
Seconds from starting the process. `a step`, the median of what the second one takes, is in the two
of them as well. `cache MB` is what the folder holds in the end.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from launch.bench import processes
from recjax import cli
from recjax import errors

IMPORTS = "import sys, recjax.train; print('step 1/2\\nstep 2/2', file=sys.stderr)"
FLAGS = flags.FLAGS


def main(_):
  cli.require(FLAGS, "data_dir")
  print("| config | imports | cold | warm | a step | cache MB |\n|---|---:|---:|---:|---:|---:|")
  for config in FLAGS.configs:
    found = measure(config, FLAGS.data_dir, FLAGS.repeats)
    print(f"| `{config}` | {found['imports']:.1f} | {found['cold']:.1f} | "
          f"{found['warm']:.1f} | {found['step']:.1f} | {found['cache_mb']:.1f} |", flush=True)


def measure(config, data_dir, repeats):
  """Returns {"imports", "cold", "warm", "step": seconds, "cache_mb": MB}.

  Raises:
    UserError: a process ended before its second step.
  """
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("JAX_COMPILATION_CACHE")}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    imports, _ = first_steps([sys.executable, "-c", IMPORTS], environment)
    (cold, _), *warm = (first_steps(
      [sys.executable, "-m", "recjax.train", f"--config={config}", "--config.log.every_steps=1",
       f"--config.data_dir={data_dir}", f"--workdir={folder / str(number)}"], environment)
      for number in range(1 + repeats))
    cache = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    start, step = (statistics.median(seconds) for seconds in zip(*warm, strict=True))
    return {"imports": imports, "cold": cold, "warm": start, "step": step, "cache_mb": cache / 1e6}


def first_steps(command, environment):
  """Returns (seconds until a command says on stderr that step 1 is done, from there to the second).

  Then ends it.
  """
  moments, said = [time.monotonic()], ""
  with subprocess.Popen(command, cwd=processes.ROOT, env=environment, text=True,
                        start_new_session=True, stderr=subprocess.PIPE,
                        stdout=subprocess.DEVNULL) as process:
    try:
      for line in process.stderr:
        if line.startswith(("step 1/", "step 2/")):
          moments.append(time.monotonic())
        if len(moments) == 3:
          return moments[1] - moments[0], moments[2] - moments[1]
        said = line.strip() or said
    finally:
      processes.end(process)
  took = ("no", "one")[len(moments) - 1]
  raise errors.UserError(f"{' '.join(command[1:4])} took {took} step: {said}")


if __name__ == "__main__":
  flags.DEFINE_string("data_dir", None, "Of the prepared data set ml1m and its domains.")
  flags.DEFINE_list("configs", ["configs/sasrec_ml1m.py", "configs/bert4rec_ml1m.py",
                                "configs/caser_ml1m.py", "configs/pair_ml1m.py"], "Config files.")
  flags.DEFINE_integer("repeats", 3, "Starts with a filled cache.", lower_bound=1)
  cli.run(main)
