"""A tiny SASRec trained and evaluated on any mesh: what tests of meshes compare.

As a program (`python tests/mesh_runs.py OUT DATA_DIR data x model ...`) it writes one .npz a mesh.
"""

import pathlib
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SOFTMAX = {"model.name": "sasrec", "model.variant": "sasrec", "objective.name": "causal_next_item",
           "model.heads": 1, "model.user_width": None, "model.fields": (), "optim.eps": 1e-3}
SAMPLED = {"objective.causal_next_item.criterion": "sampled_softmax",
           "objective.causal_next_item.num_negatives": 6}
UNTIED = {"model.output": "untied"}


def config(data, model, **fields):
  """Returns the config of a run on a mesh of data x model devices."""
  import tiny
  made = tiny.config(num_devices=data * model, model_devices=model, batch_size=16, micro_batch=2,
                     **{k: v for k, v in SOFTMAX.items() if k != "model.output"})
  with made.unlocked():
    made.model.output = "tied"
    made.eval.update(protocols=("full",), contexts=("train",))
  for name, value in fields.items():
    *parents, last = name.split(".")
    node = made
    for parent in parents:
      node = node[parent]
    node[last] = value
  return made


def start(config, seed=0):
  """Returns (Setting, state, compiled steps, tables) of a fresh run."""
  from recjax import experiment
  from recjax import setting as setting_lib
  exp = experiment.build(config)
  setting = setting_lib.set_up(exp)
  params = setting.init_params(seed)
  tx, _, trainable = setting.make_optimizer(config, params)
  state = exp.create_state(params, tx, seed)
  tables, _ = setting.feed.at(0)
  steps = setting.make_steps(tx, trainable).lower(state, tables, np.int32(1)).compile()
  return setting, state, steps, tables


def outcome(config, *, count=3):
  """Returns {name: array} after `count` steps: parameters, slots, sums, validation metrics."""
  from recjax import partition, trees
  setting, state, steps, tables = start(config)
  state, sums = steps(state, tables, np.int32(count))
  found = {}
  for name, tree in (("params", state.params), ("opt_state", state.opt_state)):
    whole = partition.fetch(tree, setting.exp.split)
    found |= {f"{name}/{leaf}": x for leaf, x in trees.flatten(whole).items()}
  found |= {f"sums/{name}": np.asarray(x) for name, x in sums.items()}
  results = setting.validation.run(setting.exp.predict, state.params)
  for protocol, values in results.means()["train"].items():
    found |= {f"val/{protocol}/{name}": np.asarray(x) for name, x in values.items()}
  return found


def assert_close(ours, theirs):
  """Asserts that two outcomes agree within rounding of float32."""
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    scale = np.abs(theirs[name]).max() if x.size else 0
    np.testing.assert_allclose(x, theirs[name], rtol=2e-4, atol=2e-5 * scale + 1e-9, err_msg=name)


if __name__ == "__main__":
  folder, data_dir, *meshes = sys.argv[1:]
  assert jax.device_count() == 8
  for mesh in meshes:
    data, model = map(int, mesh.split("x"))
    made = config(data, model, data_dir=data_dir)
    np.savez(pathlib.Path(folder) / f"{mesh}.npz", **outcome(made))
