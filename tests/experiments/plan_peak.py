"""Run by `test_plan`: GiB of both programs beside their arguments, as planned and as measured here.

python -m tests.experiments.plan_peak
"""

import pathlib

import jax
import jax.numpy as jnp

from experiments.plan import __main__ as plan

CONFIG = plan.Config("tiny", "data=1", responses=1024, tokens=256, prompt=224, dtype="float32")


def held(name):
    """GiB of this process: VmRSS now, VmHWM at most since it was reset."""
    return int(pathlib.Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 2**20


def ones(x):
    """An array of this shape, or a key."""
    return jax.random.key(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.ones(x.shape, x.dtype)


if __name__ == "__main__":
    found = plan.compiled(CONFIG, plan.mesh_of(CONFIG.mesh))
    for name in ("sampling", "learning"):
        args, _ = jax.block_until_ready(jax.tree.map(ones, found[name].args_info))
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        result = jax.block_until_ready(found[name](*args))
        print(plan.program_of(found[name]).made, held("VmHWM") - before, flush=True)
        del args, result
