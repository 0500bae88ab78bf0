"""How the workers of one machine, a GPU each, become known as one owner's: the statement that the first of them signs.

The new key signs the call (protocol/signing.py), the first one this statement, so nobody can seat a key beside somebody
else's, and no invite is needed for a card. Touches nothing.
"""

from __future__ import annotations

from protocol.canonical import length_prefixed
from protocol.identity import PrivateIdentity, verify

_DOMAIN = b"barnraise-sibling-v1"


def vouch_for_sibling(first: PrivateIdentity, sibling_public_key: bytes, audience: bytes) -> bytes:
    """The first key's signature: the other one is its machine's, too, at this coordinator (its CA's fingerprint)."""
    return first.sign(_sibling_statement(first.public_key, sibling_public_key, audience))


def check_sibling(first_public_key: bytes, sibling_public_key: bytes, audience: bytes, signature: bytes) -> None:
    """Raises Unauthenticated unless the holder of the first key signed that."""
    verify(first_public_key, signature, _sibling_statement(first_public_key, sibling_public_key, audience))


def _sibling_statement(first_public_key: bytes, sibling_public_key: bytes, audience: bytes) -> bytes:
    return length_prefixed(_DOMAIN, audience, first_public_key, sibling_public_key)
