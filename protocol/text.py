"""Text that somebody else wrote, made fit for a terminal or a log.

Decides which characters stay: the printable ones. A control character could move a cursor, colour a line or forge one.
"""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """`text` with a space for every character that is neither printable nor in `keep`."""
    return "".join(character if character.isprintable() or character in keep else " " for character in text)
