"""Bytes that are nearly right: what a stranger, a broken disk or an attacker would send instead of a valid message.

Decides nothing about what is right. Everything follows from the `random.Random` that is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

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
    """The same document with one value replaced, removed, renamed or added; None where `data` is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 2))):
        document = _changed(random, document)
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
