"""JAX at its strictest, compiling as fast as it can, and the fixtures that many tests share."""

import functools
import gc
import importlib.metadata
import itertools
import os
import pathlib

# Most of a test is compilation, of programs that run once: without optimisation it takes a third of the time.
# Commands that tests start inherit these variables. To test optimised programs, set them yourself:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS=" " make test
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA stops at flags that it does not know
    fast = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", fast)

import hypothesis
import jax
import numpy as np
import pytest
from _pytest.doctest import DoctestModule

from experiments.support.data import corpora

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
# What tests multiply by themselves is exact on accelerators too.
jax.config.update("jax_default_matmul_precision", "highest")

# Most of a test's seconds are compilation; what one run has compiled the next one reads.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Nobody reads where in the source an operation of a test's program stands.
jax.config.update("jax_traceback_in_locations_limit", 0)


def copy_what_is_numpys(primitive):
    """Makes arrays of NumPy's numbers by a copy, not by a program compiled for every shape."""
    compiled = primitive.impl

    def impl(x, **how):
        kind = jax.typeof(x)
        is_copy = how.get("new_dtype", kind.dtype) == kind.dtype and how.get("sharding") is None
        is_copy &= not how.get("weak_type", kind.weak_type) and jax.sharding.get_abstract_mesh().empty
        if isinstance(x, jax.Array) or not is_copy:
            return compiled(x, **how)
        return jax.device_put(np.asarray(x), may_alias=False)

    primitive.def_impl(impl)


# A context of MLIR with all its dialects takes as long as a small program does to lower: one serves a module.
if importlib.metadata.version("jax").startswith("0.10."):
    from jax._src.interpreters import mlir
    from jax._src.lax import lax

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
    copy_what_is_numpys(lax.stage_p)
    copy_what_is_numpys(lax.convert_element_type_p)

# An example's time is mostly compilation, so a deadline would judge the compiler; and a test
# that passes must pass again.
hypothesis.settings.register_profile("proxlm", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("proxlm")


def pytest_collection_finish():
    """Leaves to the end what is alive now, so that a collection of garbage looks at what tests make alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


DOCTESTS = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_with_their_module(request):
    """Keeps thousands of compiled programs from filling the memory; the disk still has them.

    Examples are small, and of the same operations in many modules: those of 50 end together.
    """
    yield
    if not isinstance(request.node, DoctestModule) or next(DOCTESTS) % 50 == 0:
        jax.clear_caches()


# As written, each operation is compiled by itself: a tenth of the suite's time.
@pytest.fixture(params=[pytest.param("eager", marks=pytest.mark.slow), "jit"])
def variant(request):
    """Gives a function as written and compiled: `variant(fn, static_argnames=...)(x)`."""
    compiled = request.param == "jit"
    return lambda fn, **options: jax.jit(fn, **options) if compiled else fn


@pytest.fixture(scope="session")
def wheels():
    """The folder of fetched texts; skips the test where they are not there."""
    missing = corpora.missing()
    if missing:
        pytest.skip(f"the wheels of {', '.join(missing)} are not there: run `make data`")
    return corpora.WHEELS
