"""Run by `test_plan`: GiB of programs beside their arguments, as planned and as measured here.

MALLOC_MMAP_THRESHOLD_=131072 python -m tests.experiments.plan_peak RESPONSES
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

from experiments.plan import __main__ as plan
from experiments.support.models import language_model
from proxlm import lm, training

CONFIG = plan.Config("tiny", "data=1", responses=512, tokens=256, prompt=224, dtype="float32")


def held(name):
    """GiB of this process: VmRSS now, VmHWM at most since it was reset."""
    return int(pathlib.Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 2**20


def ones(x):
    """An array of this shape, or a key."""
    return jax.random.key(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.ones(x.shape, x.dtype)


def supervised(config, model):
    """A step of Adam on an eighth of the rows, layers not rematerialised."""
    model, optimizer = dataclasses.replace(model, remat=False), optax.adam(1e-3)
    step = training.make_step(functools.partial(language_model.loss, config=model), optimizer)
    state = jax.eval_shape(lambda: training.init(lm.init(jax.random.key(0), model), optimizer))
    rows = jax.ShapeDtypeStruct((config.responses // 8, config.tokens), jnp.int32)
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return jax.jit(step, donate_argnums=0).lower(state, rows).compile(compiler_options=options)


if __name__ == "__main__":
    config = dataclasses.replace(CONFIG, responses=int(sys.argv[1]))
    found = plan.compiled(config, plan.mesh_of(config.mesh))
    found["supervised"] = supervised(config, found["model"])
    for name in ("sampling", "learning", "supervised"):
        args, _ = jax.block_until_ready(jax.tree.map(ones, found[name].args_info))
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        result = jax.block_until_ready(found[name](*args))
        print(plan.program_of(found[name]).made, held("VmHWM") - before, flush=True)
        del args, result
