"""Text for a terminal or a log: what somebody else wrote, numbers of bytes, and durations.

Decides which characters stay: the printable ones. A control character could move a cursor, colour a line or forge one.
Decides the unit of an amount: the largest of which there is at least one.
"""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def printable(text: str, *, keep: str = "") -> str:
    """`text` with a space for every character that is neither printable nor in `keep`."""
    return "".join(character if character.isprintable() or character in keep else " " for character in text)


def human_bytes(count: float) -> str:
    """A number of bytes, for reading."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    for unit, name, less, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // less
            return f"{whole // unit} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
