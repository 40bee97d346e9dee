"""A process that runs an experiment, or goes on with it, and kills itself at a given moment."""

import importlib
import os
import pathlib
import signal
import sys
import threading

import jax

from experiments.support.run import cli, runs, stages
from proxlm import checkpoint

ROOT = pathlib.Path(__file__).parents[2]


def run(name, fields, root, data, moment):
    """Runs `name`, saving after every chunk; dies at the moment ("log" or "save", count, delay), if any.

    It dies right after the count-th line of its log, or so many seconds after the count-th save began.
    """
    _after_fork()
    experiment, root = importlib.import_module(f"experiments.{name}"), pathlib.Path(root)
    kind, left, delay = moment or (None, 0, 0.0)
    log, save, run_chunks = runs.log, checkpoint.start_save, stages.run_chunks

    def tick(what):
        nonlocal left
        left -= what == kind
        if left == 0 and what == kind:
            kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, kill).start() if what == "save" else kill()

    def log_and_die(*given, **numbers):
        log(*given, **numbers)
        tick("log")

    def die_while_saving(*given, **options):
        tick("save")
        return save(*given, **options)

    runs.log, checkpoint.start_save = log_and_die, die_while_saving
    stages.run_chunks = lambda *given, **options: run_chunks(*given, **options | {"every": 1})
    resume = any((root / name).glob("[0-9]*"))
    options = runs.Options(runs=str(root), data=str(data), resume=resume)
    cli.start(experiment.main, cli.config_of(experiment.main)(**fields), options)
    os._exit(0)  # a timer may still be running


def _after_fork():
    """Puts right what a fork takes away: the threads of MLIR, and the settings of the tests."""
    from jax._src.interpreters import mlir

    mlir.global_thread_pool = mlir.ir.ThreadPool()
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.stdout = open(os.devnull, "w")
