"""Text for a terminal or a log: what somebody else wrote, and numbers of bytes.

Decides which characters stay: the printable ones. A control character could move a cursor, colour a line or forge one.
Decides the unit of an amount: the largest of which there is at least one.
"""

from __future__ import annotations

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
