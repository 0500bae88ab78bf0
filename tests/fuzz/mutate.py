"""Bytes that are nearly right: what a stranger, a broken disk or an attacker would send instead of a valid message.

Decides nothing about what is right. Everything follows from the `random.Random` that is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

Mutate = Callable[[Random, Sequence[bytes]], bytes]

MAX_BYTES = 64 * 1024
NUMBERS = [0, 1, -1, 2, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64]
ODD_VALUES: list[Any] = [
    *NUMBERS,
    10**30,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    None,
    True,
    "",
    "\0",
    "../../etc/passwd",
    "\x1b[2J",
    "\ud800",
    "é" * 200,
    "9" * 5000,
    [],
    {},
    [[]],
    {"type": "RunStopped"},
    [0] * 1000,
]
DEEP = b"[" * 20_000


def mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """One of `samples`, changed in one to four places; now and then nothing of the kind."""
    data = random.choice(samples)
    if random.random() < 0.02:
        return random.randbytes(random.choice((0, 1, 7, 16, 17, 100, 1000)))
    if random.random() < 0.4 and (changed := _json_mutated(random, data)) is not None:
        return changed[:MAX_BYTES]
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_BYTE_CHANGES)(random, data, samples)
    return data[:MAX_BYTES]


def _json_mutated(random: Random, data: bytes) -> bytes | None:
    """The same document with one value replaced, removed, renamed or added; None where `data` is not JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 2))):
        document = _changed(random, document)
    if random.random() < 0.5:  # the canonical form, which some decoders insist on
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(document).encode()


def _changed(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key, changed = random.choice(list(value)), dict(value)
        what = random.random()
        if what < 0.1:
            del changed[key]
        elif what < 0.2:
            changed[str(random.choice(ODD_VALUES))[:100]] = changed.pop(key)
        elif what < 0.3:
            changed[str(random.choice(ODD_VALUES))[:100]] = random.choice(ODD_VALUES)
        else:
            changed[key] = _changed(random, changed[key])
        return changed
    if isinstance(value, list) and value and random.random() < 0.9:
        place = random.randrange(len(value))
        return [*value[:place], _changed(random, value[place]), *value[place + (random.random() < 0.8) :]]
    return random.choice(ODD_VALUES)


def _flip(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _overwrite(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place, size = random.randint(0, len(data)), random.choice((1, 2, 4, 8))
    value = (random.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, random.choice(("big", "little")))
    return data[:place] + value + data[place + size :]


def _insert(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = random.randint(0, len(data))
    piece = random.choice(
        (b"\0", b"\xff" * 8, b" ", b"\n", b"9" * 30, b'"', DEEP, random.randbytes(random.randint(1, 40)))
    )
    return data[:place] + piece + data[place:]


def _cut(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    return random.choice((data[:start], data[end:], data[:start] + data[end:]))


def _repeat(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    return data[:end] + data[start:end] * random.choice((1, 2, 20)) + data[end:]


def _splice(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    other = random.choice(samples)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


_BYTE_CHANGES = (_flip, _flip, _overwrite, _overwrite, _insert, _cut, _repeat, _splice)


# ---- messages ---------------------------------------------------------------------------------------------------

_FLOATS = [value for value in ODD_VALUES if type(value) is float] + [-1.0, 1.0, 1e-300, 1e18]
_TEXTS = [value for value in ODD_VALUES if isinstance(value, str) and value.isascii()] + [
    "é",
    "x" * 2000,
    "cuda",
    "r1.1",
]
_LENGTHS = (0, 1, 8, 16, 31, 32, 33, 64, 1000)
_WIDTHS = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}


def message_mutations(kind: type[Message]) -> Mutate:
    """Half of the inputs by fields (an odd value in one or two of them), half by bytes."""

    def mutate(random: Random, samples: Sequence[bytes]) -> bytes:
        if random.random() < 0.5:
            return mutated(random, samples)
        return message_mutated(random, kind, random.choice(samples))

    return mutate


def message_mutated(random: Random, kind: type[Message], data: bytes) -> bytes:
    """The message in `data` with one or two fields changed; changed by bytes where it holds none."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        return mutated(random, [data])
    for _ in range(random.choice((1, 1, 2))):
        _change_field(random, message)
    return message.SerializeToString()[:MAX_BYTES]


def _change_field(random: Random, message: Message) -> None:
    fields: Any = message.DESCRIPTOR.fields
    if not fields:
        return
    field = random.choice(fields)
    if random.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(random, getattr(message, field.name), field)
    elif field.message_type is not None:
        _change_field(random, getattr(message, field.name))
    else:
        setattr(message, field.name, _odd(random, field))


def _change_list(random: Random, values: Any, field: FieldDescriptor) -> None:
    if field.message_type is not None:
        values.add()
        _change_field(random, random.choice(values))
    elif values and random.random() < 0.5:
        values[random.randrange(len(values))] = _odd(random, field)
    else:
        values.extend([_odd(random, field)] * random.choice((1, 2, 500)))


def _odd(random: Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in _WIDTHS:
        return random.choice(NUMBERS) % 2 ** _WIDTHS[kind]
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return random.choice(_TEXTS) if field.type == field.TYPE_STRING else random.randbytes(random.choice(_LENGTHS))
    return random.choice((0, 1, 2, 99))  # an enum takes any number


# ---- several pieces in one input --------------------------------------------------------------------------------


def joined(pieces: Sequence[bytes]) -> bytes:
    """`pieces` as one input, each behind its length."""
    return b"".join(len(piece[:0xFFFF]).to_bytes(2, "big") + piece[:0xFFFF] for piece in pieces)


def split(data: bytes) -> list[bytes]:
    """The pieces again, of any bytes."""
    pieces, place = [], 0
    while place + 2 <= len(data):
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        pieces.append(data[place + 2 : end])
        place = end
    return pieces


def pieces_mutated(random: Random, samples: Sequence[bytes]) -> bytes:
    """One piece changed, or pieces dropped, doubled or swapped."""
    pieces = split(random.choice(samples))
    what, place = random.random(), random.randrange(max(1, len(pieces)))
    if not pieces or what < 0.05:
        return mutated(random, samples)
    if what < 0.15:
        del pieces[place]
    elif what < 0.25:
        pieces.insert(random.randint(0, len(pieces)), pieces[place])
    elif what < 0.3:
        random.shuffle(pieces)
    else:
        pieces[place] = mutated(random, pieces if random.random() < 0.2 else [pieces[place]])
    return joined(pieces)[:MAX_BYTES]


def after_head(mutate: Mutate) -> Mutate:
    """For inputs whose first byte says what the rest is: `mutate` the rest; one in twenty gets another first byte."""

    def mutate_rest(random: Random, samples: Sequence[bytes]) -> bytes:
        sample = random.choice(samples)
        head = bytes([random.randrange(256)]) if random.random() < 0.05 else sample[:1]
        return head + mutate(random, [sample[1:]])

    return mutate_rest
