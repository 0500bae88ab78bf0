"""How a key is replaced by another: the statement that both sign.

The old key signs the call (protocol/signing.py), the new one this statement, so nobody can give a worker a key that is
somebody else's. Touches nothing.
"""

from __future__ import annotations

from protocol.canonical import length_prefixed
from protocol.identity import PrivateIdentity, verify

_DOMAIN = b"barnraise-new-key-v1"


def agree_to_replace(new: PrivateIdentity, old_public_key: bytes, audience: bytes) -> bytes:
    """The new key's signature: it takes the place of the old one at this coordinator (its CA's fingerprint)."""
    return new.sign(_statement(old_public_key, new.public_key, audience))


def check_agreement(new_public_key: bytes, old_public_key: bytes, audience: bytes, signature: bytes) -> None:
    """Raises Unauthenticated unless the holder of the new key signed that."""
    verify(new_public_key, signature, _statement(old_public_key, new_public_key, audience))


def _statement(old_public_key: bytes, new_public_key: bytes, audience: bytes) -> bytes:
    return length_prefixed(_DOMAIN, audience, old_public_key, new_public_key)
