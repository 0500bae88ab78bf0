"""Events, commands and the state as JSON, and back, exactly.

Decides the journal's format: an object with one key for each field, and `type` where the field's type has several
kinds (events, commands). Typed by the dataclasses themselves, from a closed registry; nothing is ever unpickled.
Floats keep all their bits; NaN and infinities use the JSON names that Python reads and writes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from coordinator.engine import commands, events
from coordinator.engine.commands import Command, SlowCommand
from coordinator.engine.events import Event
from protocol.errors import LocalError

T = TypeVar("T")

_TAG = "type"


def _kinds(module: types.ModuleType, base: type) -> dict[str, type]:
    found = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base))
    return {kind.__name__: kind for kind in found if kind not in {base, SlowCommand}}


_EVENTS = _kinds(events, Event)
_COMMANDS = _kinds(commands, Command)
_REGISTRY: dict[type, dict[str, type]] = {
    Event: _EVENTS,
    Command: _COMMANDS,
    SlowCommand: {name: kind for name, kind in _COMMANDS.items() if issubclass(kind, SlowCommand)},
}
"""Types with several kinds: the closed list of what may come back."""


def event_to_json(event: Event) -> str:
    """One line of the journal."""
    return json.dumps(to_plain(event, Event), separators=(",", ":"))


def event_from_json(text: str) -> Event:
    """The event that `text` was made of."""
    return from_plain(_parsed(text), Event)


def command_to_json(command: Command) -> str:
    """One command, for logs and reports."""
    return json.dumps(to_plain(command, Command), separators=(",", ":"))


def command_digest(command: Command) -> str:
    """SHA-256 of the command's canonical JSON (keys sorted): the same for the same command, whoever writes it down."""
    text = json.dumps(to_plain(command, Command), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def command_from_json(text: str) -> Command:
    """The command that `text` was made of."""
    return from_plain(_parsed(text), Command)


def to_plain(value: Any, declared: Any) -> Any:
    """JSON values for `value`, which was declared as a `declared`."""
    return _codec(declared)[0](value)


def from_plain(plain: Any, declared: type[T]) -> T:
    """The value that `plain` was made of. Raises LocalError where it is no such thing."""
    try:
        value: T = _codec(declared)[1](plain)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LocalError(f"not a record of {declared.__name__}: {error!r}") from error
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LocalError(f"not a record: {error}") from error


_Coding = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def _codec(declared: Any) -> _Coding:
    return _codec_of(declared)


@functools.cache
def _codec_of(declared: Any) -> _Coding:
    """Encoder and decoder of one type; made once, since the journal's whole replay goes through them."""
    declared = getattr(declared, "__supertype__", declared)  # a NewType is written as what it stands for
    if declared in _REGISTRY:
        return _tagged(declared, _REGISTRY[declared])
    if dataclasses.is_dataclass(declared):
        return _dataclass(declared)
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in {types.UnionType, typing.Union}:
        return _optional(arguments)
    if origin is tuple and arguments[1:] == (...,):
        encode, decode = _codec(arguments[0])
        return lambda value: [encode(item) for item in value], lambda plain: tuple(map(decode, plain))
    if origin is dict:
        return _dict(arguments)
    if isinstance(declared, type) and issubclass(declared, Enum):
        return lambda value: value.value, declared
    return _scalar(declared)


def _tagged(declared: type, kinds: dict[str, type]) -> _Coding:
    def encode(value: Any) -> Any:
        name = type(value).__name__
        if kinds.get(name) is not type(value):
            raise LocalError(f"{name} is not a registered {declared.__name__}")
        return {_TAG: name, **_codec(type(value))[0](value)}

    def decode(plain: Any) -> Any:
        fields = dict(plain)
        return _codec(kinds[fields.pop(_TAG)])[1](fields)

    return encode, decode


def _dataclass(declared: Any) -> _Coding:
    hints = typing.get_type_hints(declared)
    # what is not given to the constructor follows from the rest
    codecs = {field.name: _codec(hints[field.name]) for field in dataclasses.fields(declared) if field.init}

    def encode(value: Any) -> Any:
        return {name: codec[0](getattr(value, name)) for name, codec in codecs.items()}

    def decode(plain: Any) -> Any:
        # a field that was added later takes its default; one that is unknown is an error
        return declared(**{name: codecs[name][1](value) for name, value in plain.items()})

    return encode, decode


def _optional(arguments: tuple[Any, ...]) -> _Coding:
    inner = [argument for argument in arguments if argument is not type(None)]
    if len(inner) != 1:
        raise LocalError(f"only X | None can be recorded, not {arguments}")
    encode, decode = _codec(inner[0])
    return (
        lambda value: None if value is None else encode(value),
        lambda plain: None if plain is None else decode(plain),
    )


def _dict(arguments: tuple[Any, ...]) -> _Coding:
    key_type = getattr(arguments[0], "__supertype__", arguments[0])
    encode, decode = _codec(arguments[1])
    return (
        lambda value: {str(key): encode(item) for key, item in value.items()},
        lambda plain: {key_type(key): decode(item) for key, item in plain.items()},
    )


def _scalar(declared: Any) -> _Coding:
    accepted = (int, float) if declared is float else (declared,)

    def check(value: Any) -> Any:
        # bool is an int to Python, and a float field may hold a whole number; nothing else passes for another
        if type(value) not in accepted:
            raise TypeError(f"expected {declared.__name__}, got {value!r}")
        return value

    return check, check
