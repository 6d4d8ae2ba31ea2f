"""The one exception for mistakes that a user can make and mend."""


class UserError(Exception):
  """What is wrong, where, and what to do about it, in one line; commands exit with 2."""


class Preempted(Exception):
  """The run saved its state on a termination signal; the same command resumes it."""


EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: "try again later", what a retry loop should do.


def choose(options, name, what):
  """Returns options[name]; an unknown name is a `UserError` that lists the known ones."""
  if name not in options:
    raise UserError(f"{what} is {name!r}; there are {', '.join(map(str, options)) or 'none'}")
  return options[name]
