"""Trackers of metrics beside the log of a run: TensorBoard's files, Weights & Biases, or trackio."""

import contextlib
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from experiments.support import Refusal

# Takes a stage, a step and the numbers logged there.
Tracker = Callable[[str, int, Mapping[str, Any]], None]


@contextlib.contextmanager
def started(kind: str, name: str, path: pathlib.Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """The tracker of a run of this name in this folder, closed at the end; None for "none".

    A number for each seed is tracked as its mean.
    """
    if kind == "none":
        yield None
        return
    track, close = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[kind](
        name, path, config
    )
    try:
        yield track
    finally:
        close()


def _tensorboard(name, path, config):
    writer = _module("tensorboardX", "tensorboard").SummaryWriter(str(path / "tensorboard"))
    writer.add_text("config", "\n".join(f"    {field}: {value}" for field, value in config.items()))

    def track(stage, step, numbers):
        for name, value in _means(numbers).items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return track, writer.close


def _wandb(name, path, config):
    wandb = _module("wandb", "wandb")
    # The folder's name, so that a resumed run goes on where it was.
    run = wandb.init(
        project="proxlm", name=f"{name} {path.name}", id=path.name, dir=path, config=config, resume="allow"
    )
    return _logged_by(run), run.finish


def _trackio(name, path, config):
    # Its own folder holds all runs, TRACKIO_DIR or that of its dashboard.
    trackio = _module("trackio", "trackio")
    run = trackio.init(
        project="proxlm", name=f"{name} {path.name}", config=config, resume="allow", embed=False
    )
    return _logged_by(run), trackio.finish


def _logged_by(run):
    def track(stage, step, numbers):
        run.log({f"{stage}/{name}": value for name, value in (_means(numbers) | {"step": step}).items()})

    return track


def _means(numbers):
    found = {}
    for name, value in numbers.items():
        array = np.asarray(value)
        if array.dtype.kind in "biuf" and array.size:
            found[name] = float(np.mean(array))
    return found


def _module(name, kind):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Refusal(f"track={kind} needs {name}: pip install {name}, or leave track out") from None
