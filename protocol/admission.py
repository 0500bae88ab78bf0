"""Proof of work at admission: a price in computing time for each key that asks to take part (hashcash, Back 2002).

Decides what a proof is: a nonce with which the SHA-256 of run id, public key and nonce begins with so many zero bits.
Touches nothing. Always: a proof is good for one key in one run, checking one costs one hash whatever its bits, and
nobody works for more bits than `MOST_WORK_BITS`, whoever asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from protocol.errors import MalformedMessage

MOST_WORK_BITS = 30
"""2**30 hashes take a laptop about a quarter of an hour; no honest operator asks for more."""
NONCE_BYTES = 8
_DOMAIN = b"barnraise admission 1\x00"
_LOOK_EVERY = 1 << 14


def has_worked(run_id: str, public_key: bytes, nonce: bytes, bits: int) -> bool:
    """Whether `nonce` proves the work that is asked for."""
    if bits <= 0:
        return True
    return (
        len(nonce) == NONCE_BYTES and _zero_bits(hashlib.sha256(_opening(run_id, public_key) + nonce).digest()) >= bits
    )


def work_for(run_id: str, public_key: bytes, bits: int, on_tried: Callable[[int], None] = lambda _: None) -> bytes:
    """A nonce that proves it, after 2**bits hashes on average; `on_tried` hears now and then how many were tried, and
    may raise to stop. Raises MalformedMessage where more is asked than anybody should."""
    if not 0 <= bits <= MOST_WORK_BITS:
        raise MalformedMessage(f"the coordinator asks for {bits} bits of work; at most {MOST_WORK_BITS} are done")
    begun = hashlib.sha256(_opening(run_id, public_key))
    number = 0
    while True:
        nonce = number.to_bytes(NONCE_BYTES, "big")
        attempt = begun.copy()
        attempt.update(nonce)
        if _zero_bits(attempt.digest()) >= bits:
            return nonce
        number += 1
        if number % _LOOK_EVERY == 0:
            on_tried(number)


def _opening(run_id: str, public_key: bytes) -> bytes:
    return _DOMAIN + run_id.encode() + b"\x00" + public_key


def _zero_bits(digest: bytes) -> int:
    return len(digest) * 8 - int.from_bytes(digest, "big").bit_length()
