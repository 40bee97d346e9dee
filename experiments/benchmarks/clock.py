"""Times several functions side by side on a machine that others use too.

The functions take turns, so a busy moment strikes all of them. Two clocks: "cpu" is the processor
time of this process, which other processes hardly change and which on one pinned core is the wall
time of an idle machine; "wall" is the only one that means something on several cores or on an
accelerator.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Durations of a measurement."""

    clock: str = "cpu"
    repeats: int = 5  # samples of each function
    seconds: float = 0.2  # a sample calls its function until about this much has passed

    def __post_init__(self):
        if self.clock not in CLOCKS:
            raise ValueError(f"clock={self.clock!r}: expected one of {', '.join(CLOCKS)}")
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats}: expected at least 1")


class Timing(NamedTuple):
    """Seconds per call: of the median and the best sample, and of the very first call."""

    median: float
    best: float
    first: float
    samples: int


def measure(
    functions: Mapping[Any, Callable[[], Any]],
    settings: Settings,
    after_first: Callable[[], Any] = lambda: None,
) -> dict[Any, Timing]:
    """Times functions of no arguments, each of which returns when its work is done.

    Two untimed calls of each come first, for compilation and for the caches; `after_first` is
    called between them. Then one sample of each, in turn, `repeats` times.
    """
    now = CLOCKS[settings.clock]
    first = {name: _seconds(now, function, 1) for name, function in functions.items()}
    after_first()
    calls = {}
    for name, function in functions.items():
        once = max(_seconds(now, function, 1), 1e-7)
        calls[name] = max(1, math.ceil(settings.seconds / once))
    samples = {name: [] for name in functions}
    for _ in range(settings.repeats):
        for name, function in functions.items():
            samples[name].append(_seconds(now, function, calls[name]))
    return {
        name: Timing(statistics.median(rows), min(rows), first[name], len(rows))
        for name, rows in samples.items()
    }


def _seconds(now, function, calls):
    """Seconds per call."""
    start = now()
    for _ in range(calls):
        function()
    return (now() - start) / calls


def default() -> str:
    """The clock that fits this machine: "cpu" unless JAX finds an accelerator.

    Another process is asked: the threads of a backend are made when JAX first looks for devices,
    and pinning must come before.
    """
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX finds no device here:\n{answer.stderr}")
    can_pin = hasattr(os, "sched_setaffinity")
    return "cpu" if can_pin and answer.stdout.split()[-1:] == ["cpu"] else "wall"


def pin() -> None:
    """Confines this process to one of its cores; to be called before JAX finds its devices."""
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError('clock="cpu" pins the process to a core, which needs Linux; take "wall"')
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware(settings: Settings) -> str:
    """One line for the head of a table: processor, cores, device, versions, clock."""
    peers = [name for name in ("torch", "transformers") if torch_fits() and importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ["jax", *peers]]
    device = jax.devices()[0]
    place = "" if device.platform == "cpu" else f", {len(jax.devices())} x {device.device_kind}"
    pages = ", huge pages" if "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "") else ""
    pages += ", products by Eigen" if "ynn_fusion_type=" in os.environ.get("XLA_FLAGS", "") else ""
    used = f"{cores()} core{'s' if cores() > 1 else ''}"
    kind = {"cpu": "processor time", "wall": "wall time"}[settings.clock]
    return f"{_processor()}, {used}{place}{pages}; {', '.join(versions)}; {kind}"


def seconds_of(timings: Mapping[str, Timing], per: float = 1.0) -> dict[str, tuple[float, float]]:
    """Median and best of each, in seconds for one of the parts of a call, `per` in all."""
    return {name: (timing.median / per, timing.best / per) for name, timing in timings.items()}


def ratios(seconds: Mapping[str, tuple[float, float]], unit: str) -> dict[str, list[float]]:
    """Median and best as multiples of those of `unit`; the pairs are (median, best).

    Where the two disagree the machine was not quiet: threads that spin while they wait for a
    preempted one can make a median many times its best.
    """
    median, best = seconds[unit]
    return {name: [round(m / median, 2), round(b / best, 2)] for name, (m, b) in seconds.items()}


def caption(timings: Mapping[str, Timing]) -> str:
    """Says what the numbers of a table are."""
    return f"median (best) of n={min(t.samples for t in timings.values())} interleaved samples"


def torch_fits() -> bool:
    """True if PyTorch is installed and would run on the same kind of device as JAX."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available() == (jax.default_backend() == "gpu")


def _processor():
    """The model of the processor, as the system calls it, and the widest vectors it multiplies."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    of = lambda key: [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
    name = (of("model name") or [platform.processor() or platform.machine()])[0]
    flags = {"avx512f": "AVX-512", "avx2": "AVX2"}
    widest = [kind for flag, kind in flags.items() if flag in " ".join(of("flags")[:1]).split()]
    return f"{name} ({widest[0]})" if widest else name
