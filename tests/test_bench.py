"""What launch/bench measures with: the work, the FLOPs, the turns, the ratios."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from launch.bench import (check, flops, gpu, peak, processes, roofline, serving, settings, startup,
                          workload)
from launch.bench.contestants import recjax_step, table
from recjax import errors, experiment

SIZE = workload.Size(layers=2, width=8, heads=2, hidden=12, max_len=6, batch=8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  tiny.make(folder)
  (folder / workload.DATASET).symlink_to(folder / "src")
  return str(folder)


def forward(size, length, labels, outputs, causal):
  """The products of one user's forward pass, with nothing that is not needed, as jax runs them."""
  wide = size.width
  def block(x, queries):
    weights = lambda into, out: jnp.ones((into, out))
    key, value = x @ weights(wide, wide), x @ weights(wide, wide)
    mixed = []
    for place in queries:  # one at a time: of a causal model, each sees as many as it may
      past = slice(0, place + 1) if causal else slice(None)
      scores = key[past] @ (x[place] @ weights(wide, wide))
      mixed.append(scores @ value[past])
    y = jnp.stack(mixed) @ weights(wide, wide)
    return (y @ weights(wide, size.hidden)) @ weights(size.hidden, wide)
  def run(x):
    for _ in range(size.layers - 1):
      x = block(x, range(length))
    return block(x, labels) @ jnp.ones((wide, outputs))
  return jax.make_jaxpr(run)(jnp.ones((length, wide)))


def dots(jaxpr):
  """Returns the FLOPs of every dot_general of a jaxpr."""
  total = 0
  for equation in jaxpr.eqns:
    for part in equation.params.values():
      total += dots(part.jaxpr) if hasattr(part, "jaxpr") else 0
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
      total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
  return total


@pytest.mark.parametrize("causal, labels", [(False, (1, 4)), (False, (0, 1, 2, 3, 4)),
                                            (True, (0, 1, 2, 3, 4))])
def test_necessary_flops_are_those_of_a_pass_that_does_nothing_else(causal, labels):
  counted = dots(forward(SIZE, 5, labels, 11, causal).jaxpr)
  found = flops.transformer(5, len(labels), size=SIZE, outputs=11, causal=causal)
  assert found == 3 * counted


def test_backward_costs_two_forwards():
  run = lambda x, w, v: jnp.sum((x @ w) @ v)
  shapes = [jnp.ones(shape) for shape in ((5, 8), (8, 12), (12, 8))]
  both = jax.make_jaxpr(jax.value_and_grad(run, argnums=(0, 1, 2)))(*shapes)
  assert dots(both.jaxpr) == 3 * dots(jax.make_jaxpr(run)(*shapes).jaxpr)


def test_flops_of_a_task_are_the_mean_over_users_and_less_than_with_padding():
  lengths = np.array([2, 6])
  one = lambda n: flops.transformer(n, 0.15 * n, size=SIZE, outputs=31)
  found = flops.of_task("bert4rec", lengths, size=SIZE, num_items=30)
  assert found == pytest.approx((one(2) + one(6)) / 2)
  assert found < flops.padded("bert4rec", SIZE, num_items=30)
  cheap = flops.of_task("sasrec_bce", lengths, size=SIZE, num_items=30)
  assert cheap < flops.of_task("sasrec", lengths, size=SIZE, num_items=30)


def test_masks_hide_items_and_never_padding():
  items = np.tile(np.array([0, 0, 3, 4, 5, 6], np.int32), (4000, 1))
  inputs, labels = workload.mask(items, rate=0.5, num_items=9, rng=np.random.default_rng(0))
  assert not inputs[:, :2].any() and not labels[:, :2].any()
  assert (inputs[labels == 0] == items[labels == 0]).all()
  assert (labels[labels > 0] == items[labels > 0]).all()
  assert (labels[:, 2:] > 0).mean() == pytest.approx(0.5, abs=0.02)
  assert (inputs[labels > 0] == 10).mean() == pytest.approx(0.8, abs=0.02)


def test_windows_end_with_the_last_training_item(data_dir):
  data = workload.load(data_dir)
  begin, end = data.span("train")
  rows = workload.windows(data, 4)
  kept = np.flatnonzero(end - begin >= 2)
  assert len(rows) == len(kept)
  for user, row in zip(kept, rows, strict=True):
    known = data.items[begin[user]:end[user]][-4:]
    assert row[-len(known):].tolist() == known.tolist() and not row[:-len(known)].any()
  users, windows = workload.sliding(data, 3)
  assert len(users) == np.maximum(end - begin - 2, 0).sum()
  last = {user: row for user, row in zip(users, windows, strict=True)}
  for user, row in last.items():
    assert row.tolist() == data.items[end[user] - 3:end[user]].tolist()


def test_an_epoch_visits_every_row_once():
  order = workload.batches(12, 4, seed=0)
  epochs = [np.concatenate([next(order) for _ in range(3)]) for _ in range(2)]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("task", workload.TASKS)
def test_every_task_builds_at_the_size_that_is_compared(task, data_dir):
  for path in settings.PATHS:
    exp = experiment.build(settings.get_config(task, path=path, data_dir=data_dir, size=SIZE))
    if task != "caser":
      assert exp.model.user_width == 0 and exp.model.max_len == SIZE.max_len
      assert exp.model.hidden == SIZE.hidden
    assert exp.config.batch_size == (512 if task == "caser" else SIZE.batch)


def test_recjax_trains_and_counts_users_and_real_items(data_dir):
  config = settings.get_config("sasrec", path="plain", data_dir=data_dir, size=SIZE)
  take, extra = recjax_step.make(config)
  data = workload.load(data_dir)
  users = len(workload.windows(data, 2))
  sums = [take(-(-users // SIZE.batch)) for _ in range(6)]
  tokens = (workload.windows(data, SIZE.max_len + 1) > 0).sum() - users
  assert all(s["examples"] == users for s in sums)
  assert all(s["tokens"] - extra * s["examples"] == tokens for s in sums)
  assert sums[-1]["loss"] / sums[-1]["weight"] < sums[0]["loss"] / sums[0]["weight"]
  assert workload.lengths(data, "sasrec", SIZE).sum() == tokens


SCRIPT = """
import sys, time
from launch.bench import serving
args = serving.parse("", fail=0)
session = serving.Session(args, precision="float32")
print("a library talks")
while session.wanted():
  if args.fail:
    raise SystemExit("no such thing here")
  with open(args.data_dir, "a") as file:
    file.write(args.task + " ")
  time.sleep(0.01)
  session.took(loss=1.0, users=4, tokens=10)
"""


def command(path, *options):
  return [sys.executable, "-c", SCRIPT, f"--data_dir={path}", *options]


def test_contestants_take_turns_and_one_that_fails_is_named(tmp_path):
  path = tmp_path / "turns"
  commands = {"a": command(path, "--task=bert4rec"), "b": command(path, "--task=caser"),
              "c": command(path, "--fail=1")}
  results, failed = processes.take_turns(commands, rounds=2, seconds=0, warmup=1)
  assert path.read_text().split() == ["bert4rec", "caser", "bert4rec", "caser", "caser", "bert4rec"]
  assert failed == {"c": "no such thing here"} and sorted(results) == ["a", "b"]
  for result in results.values():
    assert len(result["rows"]) == 2 and result["steps_taken"] == 3
    assert 0 < result["users_per_s"] <= 400
    assert result["tokens_per_s"] == pytest.approx(2.5 * result["users_per_s"])
    assert result["peak_memory_gb"] > 0 and result["precision"] == "float32"
  wall, _ = processes.ratios(results, base="a")["b"]
  assert wall == results["a"]["users_per_s"] / results["b"]["users_per_s"]


def test_a_turn_of_short_steps_has_several(tmp_path):
  commands = {"a": command(tmp_path / "turns")}
  results, _ = processes.take_turns(commands, rounds=1, seconds=0.5)
  rows = results["a"]["rows"]
  assert 2 <= len(rows) <= 50 and results["a"]["steps_taken"] == len(rows) + 1


def test_by_itself_a_contestant_prints_one_line_without_its_warmup(tmp_path):
  done = subprocess.run(command(tmp_path / "turns", "--warmup=2", "--steps=3"), check=True,
                        capture_output=True, text=True, cwd=processes.ROOT)
  line, = done.stdout.splitlines()
  assert len(json.loads(line)["rows"]) == 3 and json.loads(line)["steps_taken"] == 5


def test_summary_is_the_median_and_the_step_is_what_counts():
  row = lambda wall, step: dict(wall_s=wall, cores_s=2 * wall, step_s=step, users=8, tokens=80)
  found = serving.summary([row(4, 2), row(2, 1), row(90, 80)], [3.0, 2.0])
  assert (found["users_per_s"], found["users_per_s_with_data"]) == (4, 2)
  assert (found["tokens_per_s"], found["users_per_core_s"]) == (40, 1)
  assert (found["first_loss"], found["last_loss"]) == (3.0, 2.0)


def test_paused_processes_go_on_afterwards():
  code = "import time\nwhile True: time.sleep(0.01)"
  with subprocess.Popen([sys.executable, "-c", code]) as other:
    state = lambda: subprocess.run(["ps", "-o", "stat=", "-p", str(other.pid)], text=True,
                                   capture_output=True, check=True).stdout[0]
    try:
      with processes.paused([other.pid]):
        deadline = time.monotonic() + 20
        while state() != "T" and time.monotonic() < deadline:
          time.sleep(0.02)
        assert state() == "T"
      assert state() != "T"
    finally:
      os.kill(other.pid, 9)


def comparison(**ratios):
  results = {name: {"ratio": value} for name, value in {"recjax": 1.0, **ratios}.items()}
  return {"tasks": {"bert4rec": {"results": results}}}


@pytest.mark.parametrize("new, code", [(2.0, 0), (1.75, 0), (9.0, 0), (1.65, 1)])
def test_check_fails_where_a_ratio_fell(new, code, tmp_path):
  paths = [tmp_path / "old.json", tmp_path / "new.json"]
  for path, found in zip(paths, (comparison(plain_torch=2.0, gone=1.0, recjax_bf16=0.9),
                                 comparison(plain_torch=new, recjax_bf16=0.6)), strict=True):
    path.write_text(json.dumps(found))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", ["check", *map(str, paths)])
    with pytest.raises(SystemExit) as stop:
      check.main()
  assert stop.value.code == code


def test_check_refuses_what_has_nothing_in_common(tmp_path):
  for name, text in (("old", "{}"), ("new", json.dumps(comparison(a=1.0)))):
    (tmp_path / name).write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", ["check", str(tmp_path / "old"), str(tmp_path / "new")])
    with pytest.raises(SystemExit) as stop:
      check.main()
  assert stop.value.code == 2


def test_parts_of_a_batch_are_sorted_and_take_the_fewest_columns_that_hold_them():
  lengths = np.repeat([3, 5, 9], 4)  # 12 users, a batch is all of them
  assert roofline.parts_of(lengths, 12, 4, [4, 5, 10]) == {4: 1, 5: 1, 10: 1}
  assert roofline.parts_of(lengths, 12, 6, [4, 5, 10]) == {4: 0, 5: 1, 10: 1}


def test_a_program_is_counted_with_all_that_it_reads_and_writes(data_dir):
  few, many = (roofline.count_program("sasrec", "float32", data_dir, SIZE, width, rows=8)
               for width in (SIZE.max_len // 2, SIZE.max_len))
  # Positions of half the columns are parameters less.
  assert 0 < many["parameters"] - few["parameters"] == SIZE.width * (SIZE.max_len // 2)
  assert 4 * 7 * many["parameters"] < few["bytes"] < many["bytes"]
  padded = np.full(8, SIZE.max_len)
  items = workload.load(data_dir).num_items
  necessary = 8 * flops.of_task("sasrec", padded, size=SIZE, num_items=items)
  assert necessary < many["flops"] < 20 * necessary and few["flops"] < many["flops"]


ROOFLINE = """
import json, sys
from launch.bench import roofline, workload
data_dir, size = json.loads(sys.argv[1])
print(json.dumps(roofline.of_task("sasrec", "float32", data_dir, 1e9, 1e9, workload.Size(**size))))
"""


@pytest.mark.slow
def test_a_roofline_is_that_of_a_step_on_all_cores(data_dir):
  batch = 8 * settings.FAST["sasrec"]["num_devices"]
  size = dataclasses.replace(SIZE, layers=1, max_len=100, batch=batch)
  # In a process that has as many devices as it asks for first, unlike tests.
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-c", ROOFLINE, json.dumps([data_dir, dataclasses.asdict(size)])],
    cwd=processes.ROOT, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert 0 < found["necessary GFLOP"] < found["GFLOP of the program"]
  assert found["share of the roofline"] == found["floor, s"] / found["step, s"] > 0


def test_every_contestant_has_a_module_and_requirements():
  folder = processes.ROOT / "launch" / "bench"
  for one in table.CONTESTANTS.values():
    assert (folder / "contestants" / f"{one.module}.py").exists()
    assert not one.env or (folder / f"requirements-{one.env}.txt").exists()
    assert set(one.tasks) <= set(workload.TASKS)


def test_largest_terms_of_a_trace(tmp_path):
  import gzip
  folder = tmp_path / "plugins" / "profile" / "now"
  folder.mkdir(parents=True)
  def event(name, dur, lane=2, pid=1):
    return {"ph": "X", "pid": pid, "tid": lane, "name": name, "dur": dur}
  meta = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
          {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "Stream #1"}}]
  events = [event("gemm.1", 30), event("gemm.2", 30), event("softmax", 25), event("copy", 10),
            event("rest", 5), event("while.3", 90), event("module", 100, lane=3),
            event("python", 500, pid=9)]
  with gzip.open(folder / "host.trace.json.gz", "wt") as file:
    json.dump({"traceEvents": meta + events}, file)
  assert gpu.largest(tmp_path) == [("gemm", 0.6), ("softmax", 0.25), ("copy", 0.1)]


def test_weights_of_the_hand_tuned_pytorch_score_as_in_recjax(data_dir, tmp_path):
  python = processes.python_of(processes.default_envs(), "torch")
  if python is None:
    pytest.skip("no environment with torch; bash launch/bench/run.sh makes it")
  code = """
import sys, numpy as np, torch
from launch.bench import workload
from launch.bench.contestants import tuned_model
size = workload.Size(layers=2, width=8, heads=2, hidden=12, max_len=6, batch=8)
model = tuned_model.Model(size, int(sys.argv[2]), causal=False).eval()
items = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
with torch.no_grad():
  scores = model._linear(model.encode(items), "head/scores").numpy()
np.savez(sys.argv[1], scores=scores, **model.export())
"""
  exp = experiment.build(settings.get_config("bert4rec", data_dir=data_dir, size=SIZE))
  subprocess.run([python, "-c", code, str(tmp_path / "a.npz"), str(exp.data.num_items)], check=True,
                 cwd=processes.ROOT)
  from recjax import trees
  with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
    params = trees.unflatten({name: arrays[name] for name in trees.flatten(exp.params_shapes())})
    expected = arrays["scores"]
  items = jnp.array([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]], jnp.int32)
  scores = exp.apply_fn(params, {"items": items, "users": jnp.zeros(2, jnp.int32)}, None)
  # At padding nothing is read.
  np.testing.assert_allclose(scores[0, 2:], expected[0, 2:], rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(scores[1], expected[1], rtol=2e-4, atol=2e-5)


# Starting.

STEPS = """
import sys, time
for line in sys.argv[1:]:
  time.sleep(0.2)
  print(line, file=sys.stderr, flush=True)
"""


def test_a_start_is_timed_and_ended():
  command = [sys.executable, "-c", STEPS, "begin", "step 1/9 [..]", "step 2/9 [..]", *"x" * 1000]
  start, step = startup.first_steps(command, dict(os.environ))
  assert 0.4 <= start < 20 and 0.1 < step < 5  # Waiting for the rest would take 200 s.


def test_a_start_that_fails_says_why():
  with pytest.raises(errors.UserError, match="took no step: error: so and so"):
    startup.first_steps([sys.executable, "-c", STEPS, "error: so and so"], dict(os.environ))


@pytest.mark.slow
def test_starts_of_a_command(tmp_path):
  tiny.command(tmp_path / "tiny", tiny.config())
  found = startup.measure(str(tmp_path / "tiny_config.py"), str(tiny.root() / "data"), 1)
  assert 0 < found["step"] < found["warm"] < found["cold"] and found["imports"] < found["warm"]
  assert found["cache_mb"] > 0


def test_a_product_that_takes_seconds_is_taken_once(monkeypatch):
  taken = []
  monkeypatch.setattr(peak, "ONCE_S", -1)
  make, wait = lambda rows, columns: None, lambda x: None
  assert peak.measure(lambda a, b: taken.append(1), make, wait, (2, 3, 4)) > 0
  assert taken == [1]
