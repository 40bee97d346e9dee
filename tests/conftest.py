"""JAX at its strictest, compiling as fast as it can, and the fixtures that many tests share."""

import gc
import importlib.metadata
import itertools
import os

import pytest

# Most of a test is compilation, of programs that run once: without optimisation it takes a third of the time.
# Commands that tests start inherit these variables. To test optimised programs, set them yourself:
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS=" " make test
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA stops at flags that it does not know
    fast = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", fast)


def pytest_configure(config):
    """Sets JAX and Hypothesis, which a process that only hands files to workers does without."""
    if getattr(config.option, "numprocesses", None):
        return
    gc.disable()  # until all tests are collected: what they import stays
    import hypothesis
    import jax
    from hypothesis.internal.conjecture import providers

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_legacy_prng_key", "error")
    # What tests multiply by themselves is exact on accelerators too.
    jax.config.update("jax_default_matmul_precision", "highest")

    # Most of a test's seconds are compilation; what one run has compiled the next one reads.
    jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if jax.__version__.startswith("0.10."):
        from tests import fast_jax

        fast_jax.apply()

    # An example's time is mostly compilation, so a deadline would judge the compiler; and a test
    # that passes must pass again.
    hypothesis.settings.register_profile("proxlm", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("proxlm")
    # Constants of all modules, parsed to be drawn as examples, are a second for what no test here is about.
    providers._get_local_constants = lambda: providers._local_constants


def pytest_collection_finish():
    """Leaves to the end what is alive now, so that a collection of garbage looks at what tests make alone."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


MODULES = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end_after_ten_modules():
    """Keeps thousands of compiled programs from filling the memory; the disk still has them."""
    yield
    if next(MODULES) % 10 == 0:
        import jax

        jax.clear_caches()


# As written, each operation is compiled by itself: a tenth of the suite's time.
@pytest.fixture(params=[pytest.param("eager", marks=pytest.mark.slow), "jit"])
def variant(request):
    """Gives a function as written and compiled: `variant(fn, static_argnames=...)(x)`."""
    import jax

    compiled = request.param == "jit"
    return lambda fn, **options: jax.jit(fn, **options) if compiled else fn


@pytest.fixture(scope="session")
def wheels():
    """The folder of fetched texts; skips the test where they are not there."""
    from experiments.support.data import corpora

    missing = corpora.missing()
    if missing:
        pytest.skip(f"the wheels of {', '.join(missing)} are not there: run `make data`")
    return corpora.WHEELS
