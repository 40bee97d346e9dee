"""Ctrl-C and SIGTERM end a run at once, or as soon as a state is saved where one can be."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

_state = {"deferred": False, "asked": 0}  # asked: by which signal


class Stopped(KeyboardInterrupt):
    """A user or a scheduler has asked the process to end, by the signal in `args`."""


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Stopped`; outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state["asked"] = 0
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Defers one stop; yields a function that gives the signal that asked for it, 0 if none did.

    What nobody has taken, since it came after the last look, is still there the next time.
    """
    _state["deferred"] = True
    try:
        yield lambda: _state["asked"]
    finally:
        _state["deferred"] = False


def stop(number: int) -> NoReturn:
    """Ends the process for the signal that a deferred stop was asked by."""
    _state["asked"] = 0
    raise Stopped(number)


def _stop(number, frame):
    if _state["deferred"] and not _state["asked"]:
        _state["asked"] = number
        print("\nstopping after these steps; once more: at once", file=sys.stderr, flush=True)
        return
    raise Stopped(number)
