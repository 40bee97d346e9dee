"""Folders of runs: new ones named by the time, and the newest of a configuration."""

import contextlib
import datetime
import json
import pathlib
from typing import Any

from experiments.support import Refusal
from proxlm import settings

CONFIG, ABOUT = "config.json", "run.json"
_STAMP = "%Y%m%d-%H%M%S-%f"


def new(folder: pathlib.Path) -> pathlib.Path:
    """A folder named by the time, or by the time of the newest run if the clock was set back."""
    while True:
        newest = max((started(path) for path in folder.glob("[0-9]*") if path.is_dir()), default="")
        stamp = datetime.datetime.now().strftime(_STAMP)
        if stamp <= newest:
            with contextlib.suppress(ValueError):
                later = datetime.datetime.strptime(newest, _STAMP) + datetime.timedelta(microseconds=1)
                stamp = later.strftime(_STAMP)
        try:
            (folder / stamp).mkdir(parents=True)
            return folder / stamp
        except FileExistsError:
            if not folder.is_dir():
                raise _no_folder(folder / stamp, "a file is in the way") from None
        except OSError as error:
            raise _no_folder(folder / stamp, error.strerror) from error


def _no_folder(path, reason):
    return Refusal(f"runs: {str(path)!r} cannot be made ({reason}); give another folder")


def started(path: pathlib.Path) -> str:
    """The time of the beginning of a run as it was recorded; its folder may have been renamed."""
    try:
        return str(read_json(path / ABOUT)["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.name


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def newest_with(folder: pathlib.Path, given: dict[str, Any]) -> pathlib.Path:
    """The newest run in a folder whose configuration is the given one."""
    paths = sorted((path.parent for path in folder.glob(f"[0-9]*/{CONFIG}")), key=started, reverse=True)
    newest = ""
    for path in paths:
        try:
            differing = settings.differences(read_json(path / CONFIG), given)
        except (OSError, ValueError, AttributeError, TypeError):  # damaged, so not one to continue
            continue
        if not differing:
            return path
        newest = newest or f"The newest, {path.name}, differs in {'; '.join(differing)}. "
    if not paths:
        raise Refusal(f"resume: there is no run in {folder}; start one without resume")
    raise Refusal(
        f"resume: no run in {folder} has this config. {newest}Give its settings, or start anew without resume"
    )
