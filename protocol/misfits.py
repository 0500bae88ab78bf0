"""Values that somebody set and that do not fit, in our own words: what was expected, and what came.

Decides the words for each kind of misfit that pydantic finds; of one that is not known here it is said only that it
does not fit. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from protocol.text import printable

if TYPE_CHECKING:
    from pydantic import ValidationError

_MOST_SHOWN: Final = 60
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
}
_LENGTHS: Final[Mapping[str, tuple[str, str, str]]] = {
    "string_too_long": ("at most", "max_length", "characters"),
    "string_too_short": ("at least", "min_length", "characters"),
    "too_long": ("at most", "max_length", "entries"),
    "too_short": ("at least", "min_length", "entries"),
}
_KINDS: Final[Mapping[str, str]] = {
    "float": "a number",
    "decimal": "a number",
    "finite_number": "a finite number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "text",
    "bytes": "bytes",
    "path": "a path",
    "list": "a list, as in ['one', 'other']",
    "tuple": "a list, as in ['one', 'other']",
    "set": "a list, as in ['one', 'other']",
    "frozen_set": "a list, as in ['one', 'other']",
    "dict": "a table of settings",
    "model": "a table of settings",
    "dataclass": "a table of settings",
}
"""By how the kind's name begins: `float_parsing` and `float_type` alike."""
_ENDS: Final = {"", "_type", "_exact_type", "_attributes_type", "_parsing", "_parsing_size", "_from_float"}


def misfits(error: ValidationError) -> list[tuple[str, str]]:
    """Each setting's key, as `inner.learning_rate`, and what does not fit about it. Empty key: all of them together."""
    return [(".".join(map(str, found["loc"])), misfit(found)) for found in error.errors()]


def misfit(found: Any) -> str:
    """One of `ValidationError.errors()`, as `expected at most 19, got 20`."""
    kind, context = found["type"], found.get("ctx", {})
    if kind == "value_error":
        return str(context.get("error") or found["msg"])  # what our own checks say
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return "there is no such setting"
    if kind in {"missing", "missing_argument"}:
        return "it is missing"
    expected = _expected(kind, context)
    got = printable(repr(found.get("input")))[:_MOST_SHOWN]
    return f"expected {expected}, got {got}" if expected else f"{got} does not fit"


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"{word} {context[name]:g}"
    if kind in _LENGTHS:
        word, name, things = _LENGTHS[kind]
        return f"{word} {context[name]} {things}"
    if kind in {"literal_error", "enum"}:
        return str(context["expected"])
    matching = (name for name in _KINDS if kind.startswith(name) and kind.removeprefix(name) in _ENDS)
    return _KINDS.get(next(matching, ""), "")
