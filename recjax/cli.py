"""How every command starts: absl flags in, exit codes out, and never a traceback for a typo."""

import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from recjax import errors


def run(main, *, preload=None):
  """Runs `main(argv)` under absl and turns `UserError` into one line on stderr and exit code 2.

  Args:
    main: called as `main(argv)` once flags are parsed.
    preload: optional callable run before the flags are parsed (to set the environment).
  """
  if preload is not None:
    preload()

  def guarded(argv):
    if len(argv) > 1:
      raise errors.UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    if not flags.FLAGS["verbosity"].present:  # Libraries narrate every file they write at INFO.
      logging.set_verbosity(logging.WARNING)
    main(argv)

  try:
    app.run(guarded, flags_parser=_parse_flags)
  except errors.UserError as error:
    fail(error)
  except errors.Preempted as stop:
    print(f"preempted: {stop}", file=sys.stderr)
    sys.exit(errors.EXIT_PREEMPTED)


def fail(message):
  """Prints one line on stderr and exits with the code for a user's mistake."""
  line = " ".join(str(message).split("\n"))
  print(f"error: {line}", file=sys.stderr)
  sys.exit(errors.EXIT_USER_ERROR)


def require(flag_values, *names):
  """Raises `UserError` for the first of the named flags that was not given."""
  for name in names:
    if getattr(flag_values, name) in (None, ""):
      raise errors.UserError(f"--{name} is required; see --help")


def define_config(name="config"):
  """Defines `--config=FILE.py[:arg]`, whose fields `--config.a.b=value` overrides."""
  return config_flags.DEFINE_config_file(
    name, None, "Config file, FILE.py or FILE.py:arg; --config.a.b=value overrides one field.",
    lock_config=True)


def _parse_flags(argv):
  # config_flags executes the config file while it parses, so a missing file, an unknown field or a
  # value of the wrong type surfaces here, as whatever exception the machinery happens to raise.
  try:
    rest = flags.FLAGS(argv)
    for name in flags.FLAGS:  # A config file that is missing fails only when a field is read.
      getattr(flags.FLAGS[name].value, "is_locked", None)
    return rest
  except flags.Error as error:
    raise errors.UserError(f"{error} (see --help)") from error
  except errors.UserError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, IndexError,
          SyntaxError) as error:
    field = str(error).strip("'\"")  # ml_collections says no more of one that is not there.
    if isinstance(error, (AttributeError, KeyError)) and field.isidentifier():
      raise errors.UserError(f"the config has no field {field!r}; its file and configs/common.py "
                             "list the fields there are") from error
    raise errors.UserError(f"in the command line's config: {error}") from error
