"""Which runs can be trained at once: those whose configs differ in numbers alone. Knows no jax."""

import json

NUMBERS = ("b1", "b2", "eps", "lr")  # of config.optim; arguments of the compiled step
VARY = ("seed", *(f"optim.{name}" for name in NUMBERS), "transfer.checkpoint", "transfer.step",
        "transfer.mode", "transfer.rules",  # these four decide only what a run starts from
        "objective.profile.attribute")  # which label of users; see recjax/cohort_tasks.py


def key(config):
  """Returns a string that two configs share exactly if they can be trained at once.

  Args:
    config: ConfigDict of a run; every field counts but those of `VARY`.
  """
  flat = {}
  def visit(tree, prefix):
    for name, value in tree.items():
      if isinstance(value, dict) and value:
        visit(value, f"{prefix}{name}.")
      elif prefix + name not in VARY:
        flat[prefix + name] = value
      elif prefix + name == "transfer.mode":  # Which of them freezes decides on the program.
        flat[prefix + name] = value == "patch"
  visit(json.loads(config.to_json_best_effort()), "")
  return json.dumps(flat, sort_keys=True)


def groups(configs, size):
  """Returns [[name, ...], ...]: the cohorts of {name: config}, `size` members at most, in order."""
  found, room = [], {}
  for name, config in configs.items():
    group = room.setdefault(key(config), [])
    if not group:
      found.append(group)
    group.append(name)
    if len(group) == size:
      del room[key(config)]
  return found
