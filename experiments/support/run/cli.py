"""The command line of an experiment: its options, its run, and one line where something is wrong."""

import contextlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import configs, processes, runs, stages, stopping
from proxlm import sharding

REMEDY = "What was saved is whole: mend this and go on with --resume"


def run(main: Callable[[Any, runs.Run], Any]) -> None:
    """Runs an experiment, `main(config, run)`, by the command line."""
    kind = config_of(main)

    def command(config=kind(), options=runs.Options()):  # noqa: B008
        start(main, config, options)

    command.__annotations__ = {"config": kind, "options": runs.Options}
    call(command, name_of(main), sys.modules[main.__module__].__doc__)


def start(
    main: Callable[[Any, runs.Run], Any], config: Any = None, options: runs.Options = runs.Options()
) -> Any:
    """Opens a run of this configuration, the default one if None, and gives it to `main`.

    Returns:
      What `main(config, run)` returns.
    """
    config = config_of(main)() if config is None else config
    config = configs.smoke(config) if options.smoke else config
    if options.distributed:
        processes.join(options.coordinator, options.num_processes, options.process_id)
    processes.check_alike({"name": name_of(main)}, config, {"mesh": options.mesh, "resume": options.resume})
    devices = over_devices(options.mesh or ("data=-1" if options.distributed else ""))
    with devices, quick_compilation(options.smoke), runs.opened(name_of(main), config, options) as opened:
        print(f"{'SMOKE run' if options.smoke else 'run'}: {opened.path}", flush=True)
        return main(config, opened)


def call(command: Callable[..., Any], name: str, description: str | None) -> None:
    """Calls a function with the command line's options; exits with a status and one line at a refusal.

    What another library raised, or Python, is a fault, and keeps its traceback; a full disk and the
    like are no faults.
    """
    try:
        with stopping.signals():
            try:
                tyro.cli(
                    command,
                    prog=f"python -m experiments.{name}",
                    description=description,
                    config=(tyro.conf.OmitArgPrefixes,),
                )
            except BaseException as error:
                processes.leave(name, error)
                raise
    except stages.StorageFailure as error:
        print(f"{name}: {error}. {REMEDY}", file=sys.stderr, flush=True)
        os._exit(1)  # the threads of the storage would end with tracebacks of their own
    except Refusal as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        sys.exit(f"{name}: {error}{f'. {REMEDY}' if error.errno else ''}")
    except stopping.Stopped as stop:
        print(f"\n{name}: stopped; go on with --resume", file=sys.stderr)
        sys.exit(128 + stop.args[0])


def over_devices(axes: str) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh over which training loops divide their work; nothing if there is none.

    Raises:
      Refusal: the axes are not known, or do not multiply to the devices.
    """
    if not axes:
        return contextlib.nullcontext()
    try:
        return jax.set_mesh(sharding.make_mesh(axes))
    except ValueError as error:
        raise processes.SharedRefusal(str(error)) from error


@contextlib.contextmanager
def quick_compilation(quick: bool) -> Iterator[None]:
    """Leaves out most of XLA's optimisations if `quick`: a smoke run does little but compile.

    Programs are kept for the next run, in .cache/jax unless JAX_COMPILATION_CACHE_DIR names a folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(corpora.ROOT / ".cache" / "jax"))
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", quick or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def config_of(main: Callable[[Any, runs.Run], Any]) -> type:
    """The class of the configuration that a main takes."""
    return inspect.signature(main).parameters["config"].annotation


def name_of(main: Callable[..., Any]) -> str:
    """The name of the experiment whose main this is."""
    return pathlib.Path(main.__code__.co_filename).stem
