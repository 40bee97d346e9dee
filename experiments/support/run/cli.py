"""How an experiment is started: by its options, and with one line where something is wrong."""

import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import tyro

import proxlm

OURS = pathlib.Path(__file__).resolve().parents[2], pathlib.Path(proxlm.__file__).resolve().parent


def run(main: Callable[..., Any]) -> None:
    """Calls main with what the command line says; ends with status 1 and one line at a refusal."""
    try:
        tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        if not is_refusal(error):
            raise
        sys.exit(f"{pathlib.Path(sys.argv[0]).stem}: {error}")


def is_refusal(error: Exception) -> bool:
    """Whether the project raised it, in words made for its user.

    What another library raised, or Python, is a fault that one finds by its traceback.
    """
    place = traceback.extract_tb(error.__traceback__)[-1]
    path = pathlib.Path(place.filename).resolve()
    raised = (place.line or "").startswith("raise ")
    return raised and any(path.is_relative_to(folder) for folder in OURS)
