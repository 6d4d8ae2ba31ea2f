"""The arithmetic of the scaling estimate, and that a compiled step is what the formulas say."""

import jax
import pytest

from launch.bench import scaling

HLO = """
  %all-reduce.1 = f32[10,4]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %r = (bf16[8]{0}, s32[]) all-reduce(%a, %b), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
  %all-gather-start.2 = f32[6]{0} all-gather-start(%y), replica_groups=[2,2]<=[4], dimensions={0}
  %fusion = f32[99]{0} fusion(f32[10,4]{1,0} %all-reduce.1), kind=kLoop
"""


def test_collectives_are_read_off_the_program():
  assert scaling.collectives(HLO) == [
    ("all-reduce", 160, 2, 1), ("all-reduce", 20, 2, 2), ("all-gather", 24, 2, 1)]


def test_an_all_reduce_sends_all_but_one_part_twice():
  assert scaling.all_reduce_s(100.0, 1, 10.0) == 0
  assert scaling.all_reduce_s(100.0, 2, 10.0) == 10
  assert scaling.all_reduce_s(100.0, 4, 10.0) == 15


def test_the_estimate_adds_up():
  chip = scaling.Chip(flops=10 / scaling.UTILIZATION, link=2.0, memory=1.0)
  step = scaling.Step(flops=40, data_bytes=4, model_bytes=8, largest_gather=0)
  alone = scaling.estimate(step, chip, chips=1, model_devices=1, rows=3)
  assert alone == {"step_s": 4, "compute_s": 4, "model_s": 0, "data_s": 0, "rows_per_s": 0.75,
                   "efficiency": 1}
  many = scaling.estimate(step, chip, chips=8, model_devices=2, rows=3)
  assert (many["model_s"], many["data_s"], many["step_s"]) == (4, 3, 11)
  assert many["rows_per_s"] == pytest.approx(4 * 3 / 11)
  lines = scaling.table(step, chips=[8, 16], model_devices=2, rows=3)
  assert len(lines) == 2 + 2 * len(scaling.CHIPS) and len({line.count("|") for line in lines}) == 1


@pytest.mark.slow
def test_a_compiled_step_is_what_the_formulas_say():
  size = dict(items=4000, width=64, layers=1, length=16, rows=8, model_devices=2)
  try:
    found = scaling.read(scaling.compile_step(**size, data_devices=2), model_devices=2)
  finally:
    jax.clear_caches()
  wanted = scaling.predicted(**size)
  assert found.flops == pytest.approx(wanted.flops, rel=0.25)
  assert found.data_bytes == pytest.approx(wanted.data_bytes, rel=0.05)
  assert found.model_bytes == pytest.approx(wanted.model_bytes, rel=0.25)
  assert found.largest_gather < 4000 * 64 * 4 / 2  # not the table, nor half of it
