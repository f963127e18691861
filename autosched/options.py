"""The texts of command-line options in, plain values out; an OptionError says what would do."""

from __future__ import annotations

import re
from collections.abc import Iterable

BUDGET_S = 120.0  # of tuning, where nothing is said
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|)")


class OptionError(ValueError):
    """An option that makes no sense, in words for its user."""


def duration_s(text: str) -> float:
    """Seconds: "120s", "2m", "1.5h" or plain "90"."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is no time; write 120s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Input name to shape, from texts like "input_ids=1,128"; "x=" is a scalar."""
    out: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = [s.strip() for s in sizes.split(",")] if sizes.strip() else []
        if not equals or not name or not all(s.isdecimal() for s in parts):
            raise OptionError(f"{text!r} is no shape; write NAME=SIZE,SIZE, say input_ids=1,128")
        shape = tuple(map(int, parts))
        if out.setdefault(name, shape) != shape:
            raise OptionError(f"{name} is given the shapes {out[name]} and {shape}")
    return out


def names(text: str) -> tuple[str, ...]:
    """The words between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def choice(option: str, text: str, allowed: tuple[str, ...]) -> str:
    """One of the words that an option takes."""
    if text not in allowed:
        raise OptionError(f"{option} {text!r}: it takes {' or '.join(allowed)}")
    return text
