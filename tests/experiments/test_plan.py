"""The plan of a run: loops counted, collectives counted, and memory as it is measured here."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.plan import __main__ as plan
from experiments.plan import known, programs
from experiments.support import Refusal

COLLECTIVES = """
%body (p: (f32[8])) -> (f32[8]) {
  %p = (f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %r = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%sum
  ROOT %t = (f32[8]{0}) tuple(%r)
}

ENTRY %main (a: (f32[8])) -> (f32[8]) {
  %a = (f32[8]{0}) parameter(0)
  %g = (bf16[4,2]{1,0}, /*index=1*/f32[]) all-gather-start(%a), dimensions={0}
  ROOT %w = (f32[8]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_products_in_loops_are_counted_as_often_as_they_run():
    def three_times(x, w):
        return jax.lax.scan(lambda x, _: (x @ w @ w, None), x, length=3)[0]

    found = programs.work(jax.jit(three_times).lower(jnp.ones((4, 8)), jnp.ones((8, 8))).compile().as_text())
    assert found.flops == 3 * 2 * (2 * 4 * 8 * 8)


def test_collectives_are_counted_by_kind_with_what_they_send():
    found = programs.work(COLLECTIVES)
    assert found.count == {"all-reduce": 5, "all-gather": 1}
    assert found.sent == {"all-reduce": 5 * 2 * 32, "all-gather": 20}


def test_remedies_follow_what_is_too_large():
    work = programs.Work(flops=1e12, product_bytes=4e9)
    parts = {"sampling": plan.Program(1, 20, work), "learning": plan.Program(1, 3, work)}
    found = plan.Plan(10.0, 15.0, 0.1, parts, 8)
    assert found.peak == 30
    assert plan.remedies(plan.Config(), found, 40) == "fits"
    assert plan.remedies(plan.Config(sampling=2), found, 16) == "try --sampling 8"
    assert plan.remedies(plan.Config(), found, 8).startswith("the state alone is 10 GiB: 4 times the devices")
    chip = known.Chip(16, 1e12, 1e10, 1e9)
    assert plan.seconds(parts["learning"], chip, 2)["products"] == 1.0
    with pytest.raises(ValueError, match="responses"):
        plan.Config(responses=12)
    with pytest.raises(Refusal, match="has 64 devices, of which JAX made"):
        plan.mesh_of("data=64")


@pytest.mark.slow
def test_the_memory_of_a_plan_is_that_of_a_run_on_one_device():
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.plan_peak", "512"],
        cwd=pathlib.Path(__file__).parents[2],
        # the allocator gives back what is freed, and does not count it as held before the next program
        env=os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 3
    for line in done.stdout.splitlines():
        planned, measured = map(float, line.split())
        assert abs(planned / measured - 1) < 0.15, done.stdout
