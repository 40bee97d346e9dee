"""Sampling from a language model: 48 new tokens after a prompt of 16.

One core of an Intel Xeon (AVX-512), much other work beside it (load 7), best (median) of n=5, tokens a
CPU s and how many times as fast proxlm is:

                 proxlm, tokens    PyTorch's loop                 transformers
    64 rows      13,030 (12,800)   8,345 (6,506): 1.6 (2.0)       5,819 (4,499): 2.2 (2.8)
    one row      4,517 (3,947)     737 (611): 6.1 (6.5)           337 (299): 13.4 (13.2)

With nine processes on two cores 64 rows made 23,200 tokens a CPU s, 2.2 times PyTorch's loop and 2.9 times
transformers, an hour before 2.4 times PyTorch's; one row, before its cache was written in place, 4,950,
6.2 and 13 times. Where the time goes, per cent (lower quartiles of each operation in traces, load 7):

                               64 rows                                  one row
    products with weights      38, at 75 to 98 GFLOP a second;          61: 3.3 MB of weights a token at
                               MKL alone 98 to 114 here                 23 to 26 GB a second
    attention's products       26 to 32: they read the cache, 12 MB,    5
                               at 11 to 22 GB a second
    the prompt                 14, of which products 10                 15, of which 7 are copies of the
                                                                        stacked layers, products 5
    rotations, cache written   5 to 6                                   4
    softmax                    4                                        4
    norms, residual stream     2                                        5
    SwiGLU                     2 to 3                                   1
    cache grown, token drawn   2                                        4

What is beyond the second-level cache the core alone sums at 24 to 28 GB a second. So 3 times PyTorch's is out
of reach for 64 rows: products and the cache alone leave 2.5. And so is 12 times for one row: the weights are
read at what memory gives, so that without anything else it were some 10 times. It has 105 operations a token,
half a microsecond each but for 25 products.

What was tried, by turns unless said:

    cache of one row written in place,         one row 10.7 -> 10.1 ms, median 11.5 -> 11.0 (n=11), of 105
    norms in two operations, not four,         operations a token in place of 144; a cache `[1, H, S, d]` was
    softmax in five, not eight (is so now)     copied by each layer at each token; the first call took 6.5
                                               and 6.3 CPU s (1). For 64 rows norms and softmax in two stages
                                               took 175 in place of 173 ms, median 198 and 198 (11): not done
    layers in a list (`lm.unstack`)            one row 9.1 in place of 10.1 ms (11): no copies of the layers
    the cache of one row written once          12.2 -> 8.6 ms (in a quieter hour): XLA wrote what it read
    (is so now)                                beside it
    attention by a product of numbers          245 us in place of 68 for q k of 64 rows and 48 columns, 215
    and a sum, not of matrices                 in place of 73 for the values, 34 in place of 1.8 for one row
                                               (best of 9): XLA does not vectorise the sum
    rotation by the halves exchanged, or       64 rows of 4 heads of 32 took 31 and 29 us in place of 28 (9),
    stacked, not concatenated                  16 x 6 heads of 256 x 64 with their gradient 12.3 and 11.5 in
                                               place of 9.1 ms (9)
    segments of 16                             would spare a tenth of attention for two more loops to compile
    products by Eigen (`training`)             as fast
    fusions of several results (`training`)    one row 10.1 in place of 10.8 ms (best of 7, load 8); XLA
                                               aborts some programs with it: not done

Attention reads only segments that are filled, and numbers are drawn before the loop, one a token and row.

Run as a module it measures one job on several CPU devices, which must be made before JAX starts:

    python -m experiments.benchmarks.sampling --num-devices 2
"""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import clock
from experiments.support.models import language_model
from experiments.support.run import tables
from proxlm import lm


@dataclasses.dataclass(frozen=True)
class Job:
    """A model and what it continues."""

    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    vocab_size: int = 256
    batch: int = 64
    prompt: int = 16
    response: int = 48

    @property
    def model(self) -> lm.ModelConfig:
        return language_model.shape(self, self.vocab_size, max_length=self.prompt + self.response)


JOBS = {"batch 64": Job(), "batch 1": Job(batch=1)}


def prompts(job: Job) -> np.ndarray:
    """Random tokens `[B, P]`."""
    shape = (job.batch, job.prompt)
    return np.random.default_rng(0).integers(0, job.vocab_size, shape, dtype=np.int32)


def ours(job: Job):
    """A function of no arguments that samples; it returns `lm.Samples`."""
    sample = jax.jit(functools.partial(lm.sample, config=job.model, num_tokens=job.response))
    params = lm.init(jax.random.key(0), job.model)
    key, given = jax.random.key(1), jnp.asarray(prompts(job))
    return lambda: jax.block_until_ready(sample(key, params, given))


def sharded(job: Job, num_devices: int):
    """As `ours`, every device continuing its share of the prompts."""
    if job.batch % num_devices:
        raise ValueError(f"batch={job.batch} does not divide into num_devices={num_devices}")
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, split = jax.P(), jax.P("data")

    def share(key, params, given):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return lm.sample(key, params, given, job.model, job.response)

    specs = {"in_specs": (everywhere, everywhere, split), "out_specs": split}
    sample = jax.jit(jax.shard_map(share, mesh=mesh, check_vma=False, **specs))
    put = lambda tree, spec: jax.device_put(tree, jax.NamedSharding(mesh, spec))
    params = put(lm.init(jax.random.key(0), job.model), everywhere)
    key, given = put(jax.random.key(1), everywhere), put(jnp.asarray(prompts(job)), split)
    return lambda: jax.block_until_ready(sample(key, params, given))


def contenders(job: Job):
    """All that can run here, by name."""
    calls = {"proxlm": ours(job)}
    if clock.torch_fits():
        from experiments.benchmarks import torch_peer

        params = lm.init(jax.random.key(0), job.model)
        calls["torch loop, KV cache"] = torch_peer.sampling(params, job.model, prompts(job), job.response)
        if importlib.util.find_spec("transformers") is not None:
            calls["transformers generate"] = torch_peer.hugging_face(job.model, prompts(job), job.response)
    return calls


def compare(jobs: dict[str, Job], settings: clock.Settings) -> str:
    """A table of all the jobs; on several cores also with a CPU device for each of two."""
    rows = []
    for name, job in jobs.items():
        timings = clock.measure(contenders(job), settings)
        if _can_share(job, settings):
            timings["proxlm, 2 devices"] = in_another_process(job, 2, settings)
        tokens = job.batch * job.response
        seconds = clock.seconds_of(timings)
        ratios = clock.ratios(seconds, "proxlm")
        rows += [
            [name, by, round(tokens / median), round(tokens / best), *ratios[by]]
            for by, (median, best) in seconds.items()
        ]
    headers = ["sampling", "by", "tokens/s", "(best)", "time / proxlm's", "(best)"]
    return f"{tables.table(rows, headers)}\n{clock.caption(timings)}"


def in_another_process(job: Job, num_devices: int, settings: clock.Settings) -> clock.Timing:
    """Measures `sharded` in a process of its own; it is not interleaved with the others."""
    options = {"num_devices": num_devices} | {
        f"{part}.{name}": value
        for part, fields in (("job", job), ("settings", settings))
        for name, value in dataclasses.asdict(fields).items()
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "experiments.benchmarks.sampling", *flags]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{answer.stderr}")
    return clock.Timing(*json.loads(answer.stdout.splitlines()[-1]))


def _can_share(job, settings):
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and settings.clock == "wall" and clock.cores() >= 2 and job.batch % 2 == 0


def main(
    job: Job = Job(),
    settings: clock.Settings = clock.Settings(clock="wall"),  # noqa: B008 (frozen)
    num_devices: int = 2,
) -> None:
    """Prints the timing of one job on several CPU devices, as JSON."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    print(json.dumps(clock.measure({"": sharded(job, num_devices)}, settings)[""]))


if __name__ == "__main__":
    tyro.cli(main)
