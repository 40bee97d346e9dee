"""Speed, side by side with PyTorch and with what matrix products cost at the least.

    make bench                              # all tables; on a CPU one pinned core, processor time
    make bench ARGS="--clock wall"          # every core, wall time: for a machine left alone
    make bench ARGS="--only sampling"       # one kind;  --quick: the small jobs, a first look

PyTorch, transformers, TRL and peers of the operators and solvers (jaxopt, copt, pyproximal, proxop,
skglm, celer, scikit-learn, NeMoS) are measured where they are installed; nothing here installs them.
"""

import dataclasses
from typing import Literal

import jax
import tyro

from experiments.benchmarks import chain, clock, grpo, matmul, ppo, prox, sampling, solvers, sweeps, training
from experiments.support.run import runs

MODULES = {
    "training": training,
    "sampling": sampling,
    "ppo": ppo,
    "grpo": grpo,
    "sweeps": sweeps,
    "prox": prox,
    "chain": chain,
    "solvers": solvers,
}


@dataclasses.dataclass(frozen=True)
class Config:
    only: Literal["all", "training", "sampling", "ppo", "grpo", "sweeps", "prox", "chain", "solvers"] = "all"
    quick: bool = False  # the smallest job of each kind, two samples
    clock: Literal["auto", "cpu", "wall"] = "auto"  # auto: wall on an accelerator
    repeats: int = 5


def main(config: Config, root: str = "runs") -> str:
    """Measures, prints, and writes runs/benchmarks/<time>/tables.txt; returns the text."""
    settings = clock.Settings(config.clock, config.repeats)
    if config.quick:
        settings = clock.Settings(config.clock, repeats=2, seconds=0.0)
    check(settings)
    run = runs.open_run("benchmarks", config, root)
    sections = []
    for section in tables(config, settings):
        print(f"{section}\n", flush=True)
        sections.append(section)
    text = "\n\n".join(sections) + "\n"
    (run.path / "tables.txt").write_text(text)
    print(f"Written to {run.path / 'tables.txt'}")
    return text


def check(settings: clock.Settings) -> None:
    """Raises ValueError where processor time would not be the wall time of an idle machine."""
    if settings.clock != "cpu":
        return
    if jax.default_backend() != "cpu":
        raise ValueError('clock="cpu" does not see what an accelerator does; take "wall"')
    if clock.cores() != 1:
        raise ValueError(
            f'clock="cpu" with {clock.cores()} cores would count threads that wait for one '
            'another; confine the process to one core, as `run` does, or take "wall"'
        )


def tables(config: Config, settings: clock.Settings):
    """Yields the hardware's line and then one table after another."""
    yield clock.hardware(settings)
    chosen = {
        kind: dict(list(module.JOBS.items())[: 1 if config.quick else None])
        for kind, module in MODULES.items()
        if config.only in ("all", kind)
    }
    shapes = {
        f"{kind} {name}": job.shapes
        for kind in ("training", "ppo")
        for name, job in chosen.get(kind, {}).items()
    }
    limits = {}
    if shapes:
        limits, table = matmul.limits(shapes, settings, config.quick)
        yield table
    of = lambda kind: {name: limits[f"{kind} {name}"] for name in chosen[kind]}
    if "training" in chosen:
        yield training.compare(chosen["training"], of("training"), settings)
    if "sampling" in chosen:
        yield sampling.compare(chosen["sampling"], settings)
    if "ppo" in chosen:
        yield ppo.compare(chosen["ppo"], of("ppo"), settings)
    if "grpo" in chosen:
        yield grpo.compare(chosen["grpo"], settings)
    if "sweeps" in chosen:
        yield sweeps.compare(chosen["sweeps"], settings)
    if "prox" in chosen:
        yield from prox.compare(chosen["prox"], settings)
    if "chain" in chosen:
        yield from chain.compare(chosen["chain"], settings)
    if "solvers" in chosen:
        yield from solvers.compare(chosen["solvers"], settings)


def run(config: Config) -> None:
    """Chooses the clock and, for processor time, pins the process; then measures."""
    if config.clock == "auto":
        config = dataclasses.replace(config, clock=clock.default())
    if config.clock == "cpu":
        clock.pin()
    main(config)


if __name__ == "__main__":
    tyro.cli(run, config=(tyro.conf.OmitArgPrefixes,))
