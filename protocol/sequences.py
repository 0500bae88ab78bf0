"""Lease data on the wire: token sequences as one small header and raw little-endian tokens.

    magic "BSQ1" | u8 bytes a token | 3 zero bytes | u32 count | u32 length | count x length tokens

Header integers are big endian like those of protocol/framing.py; tokens are little endian, row after row. The receiver
knows from its lease what count and length must be, so a payload is only ever compared with that, never believed. A row
is one token longer than the run's sequence length: inputs are row[:-1], targets are row[1:].
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import LocalError, MalformedMessage

MAGIC = b"BSQ1"
HEADER = struct.Struct(">4sB3sII")
MAX_TOKENS = 1 << 28
"""Tokens in one payload: 1 GiB at 4 bytes; a lease of 30 steps x 16 sequences x 4096 tokens has 2 million."""

_WIRE_DTYPES: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest unsigned type that holds every token id below `vocab_size`."""
    if not 0 < vocab_size <= 1 << 32:
        raise LocalError(f"a vocabulary has 1 to 2^32 tokens, got {vocab_size}")
    return _WIRE_DTYPES[1 if vocab_size <= 1 << 8 else 2 if vocab_size <= 1 << 16 else 4]


def max_payload_bytes(count: int, length: int) -> int:
    """The most that an honest payload of this shape can have: what a receiver may let a download grow to."""
    return HEADER.size + count * length * 4


def encode_sequences(tokens_NL: NDArray[Any]) -> bytes:
    """The payload of a [count, length] array of uint8, uint16 or uint32; equal arrays give equal bytes."""
    if tokens_NL.ndim != 2 or tokens_NL.dtype.kind != "u" or tokens_NL.dtype.itemsize not in _WIRE_DTYPES:
        raise LocalError(
            f"sequences to send must be a 2-D uint8, uint16 or uint32 array, "
            f"got {tokens_NL.dtype} of shape {tokens_NL.shape}"
        )
    count, length = tokens_NL.shape
    _check_shape(count, length)
    wire_dtype = _WIRE_DTYPES[tokens_NL.dtype.itemsize]
    header = HEADER.pack(MAGIC, wire_dtype.itemsize, b"\0\0\0", count, length)
    return header + tokens_NL.astype(wire_dtype, order="C", copy=False).tobytes()


def decode_sequences(
    payload: bytes | bytearray | memoryview, count: int, length: int, vocab_size: int
) -> NDArray[np.int64]:
    """The [count, length] tokens, all below `vocab_size`; MalformedMessage on anything that was not leased.

    `length` counts the tokens of a row: the run's sequence length plus one. Header and size are checked before any
    array is made.
    """
    _check_shape(count, length)
    wire_dtype = _checked_header(memoryview(payload).cast("B"), count, length)
    tokens_N = np.frombuffer(payload, dtype=wire_dtype, count=count * length, offset=HEADER.size)
    largest = int(tokens_N.max()) if tokens_N.size else 0
    if largest >= vocab_size:
        raise MalformedMessage(f"sequences: token {largest} is outside the vocabulary of {vocab_size}")
    return tokens_N.reshape(count, length).astype(np.int64)


def _checked_header(payload: memoryview, count: int, length: int) -> np.dtype[Any]:
    if payload.nbytes < HEADER.size:
        raise MalformedMessage(f"sequences: {payload.nbytes} bytes are less than the {HEADER.size} of the header")
    magic, token_bytes, padding, got_count, got_length = HEADER.unpack_from(payload)
    if magic != MAGIC or padding != b"\0\0\0":
        raise MalformedMessage(f"sequences: expected the magic {MAGIC!r} and zero padding, got {magic!r} {padding!r}")
    if token_bytes not in _WIRE_DTYPES:
        raise MalformedMessage(f"sequences: a token has 1, 2 or 4 bytes, got {token_bytes}")
    if (got_count, got_length) != (count, length):
        raise MalformedMessage(f"sequences: expected {count} x {length} tokens, got {got_count} x {got_length}")
    expected_bytes = HEADER.size + count * length * token_bytes
    if payload.nbytes != expected_bytes:
        raise MalformedMessage(f"sequences: expected {expected_bytes} bytes, got {payload.nbytes}")
    return _WIRE_DTYPES[token_bytes]


def _check_shape(count: int, length: int) -> None:
    if count < 0 or length < 1 or count * length > MAX_TOKENS:
        raise LocalError(f"sequences: {count} x {length} tokens are not a payload (at most {MAX_TOKENS} tokens)")
