"""A frozen dataclass as the protobuf message of the same field names, and back.

Decides nothing about values: whoever reads bytes from the network checks them first. Always: what the message has and
the dataclass has not is left alone (`deadline` and the like are each side's own); nested dataclasses are nested
messages, tuples are repeated fields. Imports no generated code: the message is given.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def fill(message: Any, record: Any, kind: type) -> None:
    """Write each field of `kind`, which `record` is an instance of, into `message`."""
    for name, nested in _fields(kind):
        value = getattr(record, name)
        if nested is not None:
            fill(getattr(message, name), value, nested)
        elif isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


def record_of(kind: type[T], message: Any) -> T:
    """The `kind` that `message` carries; protobuf's zero stands for what it leaves out."""
    fields = _fields(typing.cast(Any, kind))  # mypy does not know that a class is hashable
    return kind(**{name: _value(getattr(message, name), nested) for name, nested in fields})


def _value(value: Any, nested: type | None) -> Any:
    if nested is not None:
        return record_of(nested, value)
    return value if isinstance(value, str | bytes | bool | int | float) else tuple(value)


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, type | None], ...]:
    """Names of the fields, each with its dataclass where it is one."""
    hints = typing.get_type_hints(kind)
    names = (field.name for field in dataclasses.fields(kind))
    return tuple((name, hints[name] if dataclasses.is_dataclass(hints[name]) else None) for name in names)
