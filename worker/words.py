"""Saying a sentence of the catalogue: by its id, with what is particular about it.

Decides how a sentence is put together, and in which language: that of the catalogue, unless somebody speaks another
(`spoken`), as a translation would, and as the pseudo-locale of the tests does. Holds always: what is said is in the
catalogue; a parameter is never a sentence of its own that is not; what a coordinator said is marked as its words
(`foreign`). Touches nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from worker.catalogue import SENTENCES


class Words(str):
    """Text that came out of the catalogue."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tongue:
    """How the catalogue is spoken."""

    sentence: Callable[[str, str], str] = lambda _id, text: text
    """From a sentence's id and its text, with parameters in braces, to the one that is said."""
    parameter: Callable[[str], str] = lambda value: value
    foreign: Callable[[str], str] = lambda text: text


_tongue = [Tongue()]
"""The last one is spoken: by every thread of the process."""


@contextlib.contextmanager
def spoken(tongue: Tongue) -> Iterator[None]:
    """Inside, everything is said in this one."""
    _tongue.append(tongue)
    try:
        yield
    finally:
        _tongue.remove(tongue)


def say(name: str, /, **parameters: object) -> Words:
    """The sentence of this id."""
    tongue = _tongue[-1]
    shown = {
        key: value if isinstance(value, Words) else tongue.parameter(str(value)) for key, value in parameters.items()
    }
    return Words(tongue.sentence(name, SENTENCES[name]).format(**shown))


def joined(parts: Iterable[str], between: str = " ") -> Words:
    """Those of them that say anything."""
    return Words(between.join(part for part in parts if part))


def foreign(text: str) -> Words:
    """Somebody else's words, which stand in no catalogue of ours."""
    return Words(_tongue[-1].foreign(text) if text else "")
