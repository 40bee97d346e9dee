"""Strings that end a response, found in its text on the host."""

from collections.abc import Callable, Collection
from typing import Any

from proxlm import _validation

__all__ = ["check", "says_one"]


def check(function: str, stop_strings: Any) -> tuple[str, ...]:
    """One string or several as a tuple; ValueError for what is none, or empty.

    >>> check("stop_at", "stop")
    ('stop',)
    """
    known = isinstance(stop_strings, str | Collection)
    stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings) if known else ()
    if not stops or not all(isinstance(stop, str) and stop for stop in stops):
        expected = "strings of a character or more"
        raise _validation.invalid("stop_strings", stop_strings, expected, "", function)
    return stops


def says_one(ids: list[int], decode: Callable[[list[int]], str], stops: tuple[str, ...]) -> bool:
    """Whether the text of these tokens has one of the strings.

    >>> says_one([97, 98], lambda ids: "".join(map(chr, ids)), ("b", "cd"))
    True
    """
    text = decode(ids)
    return any(stop in text for stop in stops)
