"""Signatures of simulated calls: hashes that need the signer's key and every byte, in place of Ed25519's arithmetic.

Decides nothing. What is signed, by whom, when, and what a wrong signature does are the product's: only the 64 bytes are
made another way, since elliptic curves took a fifth of every seed and no seed can forge either kind. Keys themselves
are real ones, as are the signatures of manifests, and every sixteenth seed signs its calls with them.
"""

from __future__ import annotations

import hashlib

from protocol.errors import Unauthenticated
from protocol.identity import PrivateIdentity, verify
from protocol.ids import worker_id_of
from protocol.signing import Verify

_REAL_EVERY = 16


class _HashingIdentity(PrivateIdentity):
    """Has the same public key, and signs with hashes."""

    def __init__(self, identity: PrivateIdentity) -> None:
        self.public_key, self.worker_id = identity.public_key, identity.worker_id

    def sign(self, message: bytes) -> bytes:
        """As much as the real one gives."""
        return _signature(self.public_key, message)


def signer_of(seed: int, identity: PrivateIdentity) -> PrivateIdentity:
    """What signs the calls of a worker with this key in the world of `seed`."""
    return identity if seed % _REAL_EVERY == 0 else _HashingIdentity(identity)


def check_of(seed: int) -> Verify:
    """What checks them."""
    return verify if seed % _REAL_EVERY == 0 else _check


def _check(public_key: bytes, signature: bytes, message: bytes) -> None:
    if signature != _signature(public_key, message):
        raise Unauthenticated(f"signature does not hold for key {worker_id_of(public_key)}")


def _signature(public_key: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=public_key).digest()
