"""Scores a checkpoint of a run again: another step, another split.

    python -m recjax.evaluate --workdir=W [--step=N] [--split=test] [--data_dir=DIR]

Writes W/evaluation_SPLIT_STEP.json and the per-user values beside it, and prints the headline.
"""

import pathlib

from absl import flags

from recjax import cli, experiment, partition, record, results, trees

FLAGS = flags.FLAGS


def evaluate(workdir, *, step=None, split="test", data_dir=None, backbone=None):
  """Returns the report of the run's best checkpoint, or of `step`, on `split`."""
  partition.initialize()
  partition.enable_compilation_cache()
  exp, params, reader = experiment.restore(workdir, step=step, data_dir=data_dir,
                                           backbone=backbone)
  name = f"{split}_{reader.step}"
  evaluator = results.make_evaluator(exp, split)
  report = results.evaluate(exp, evaluator, params, workdir, write=partition.is_first(),
                            split=split, name=name)
  report["run"].update(step=reader.step, parameters=trees.count(reader.shapes()))
  if partition.is_first():
    record.write_json(pathlib.Path(workdir) / f"evaluation_{name}.json", report)
  return report


def main(argv):
  del argv
  cli.require(FLAGS, "workdir")
  report = evaluate(FLAGS.workdir, step=FLAGS.step, split=FLAGS.split, data_dir=FLAGS.data_dir,
                    backbone=FLAGS.backbone)
  print(f"step {report['run']['step']}, {FLAGS.split} split of {report['data']['name']}")
  print(results.summary(report, FLAGS.split))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of a training run.")
  flags.DEFINE_integer("step", None, "Checkpoint to evaluate; by default the best on validation.")
  flags.DEFINE_enum("split", "test", ["val", "test"], "Held-out interactions to rank.")
  flags.DEFINE_string("data_dir", None, "Where the prepared data are now, if not where they were.")
  flags.DEFINE_string("backbone", None, "Where the backbone of a task is now, likewise.")
  cli.run(main)
