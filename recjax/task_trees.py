"""Runs of one frozen backbone: what each of them saves, and which backbone it names.

A checkpoint that holds a task's own parameters alone takes kilobytes, and means nothing without the
others: it carries their checksum, and is never put on parameters that have another one.
"""

import dataclasses

from recjax import errors, trees


@dataclasses.dataclass(frozen=True)
class Task:
  """What is saved of a run whose other parameters are those of a backbone, which it only names."""
  leaves: frozenset  # names of the parameters that are saved
  backbone: dict  # of `checkpoint.Reader.backbone`

  def part(self, params):
    """Returns the tree of what is saved of a parameter tree."""
    return trees.unflatten({n: x for n, x in trees.flatten(params).items() if n in self.leaves})


def of(crossing):
  """Returns the Task of a run that saves what it trains and names what it took.

  Args:
    crossing: of `train.transfer_from`; without a source, or with several, a UserError.
  """
  if crossing is None or crossing["backbone"] is None:
    raise errors.UserError("transfer.task_tree=True leaves frozen parameters to a backbone; set "
                           "transfer.checkpoint to the --workdir of the run that trained it")
  own = {leaf["target"] for leaf in crossing["leaves"]
         if leaf["trainable"] or leaf["source"] == "fresh"}
  return Task(frozenset(own), crossing["backbone"])


def check_backbone(where, stored, mine):
  """Raises UserError where a task's checkpoint names another backbone than `mine`.

  Args:
    where: the task's folder, for the message.
    stored: what the checkpoint says, of `checkpoint.Reader.backbone`.
    mine: likewise, of the backbone at hand.
  """
  if stored["digest"] != mine["digest"]:
    raise errors.UserError(
      f"{where} was trained on another backbone: {stored['checkpoint']} step {stored['step']} with "
      f"checksum {stored['digest']}, while {mine['checkpoint']} step {mine['step']} has "
      f"{mine['digest']}; name the one that it was trained on")
