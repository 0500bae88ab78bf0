"""Signed calls: what the caller puts into a call's metadata, and what the other side checks.

The signature covers (domain, audience, session, counter, request id, method, SHA-256 of the exact request bytes). The
session id is random and given by the coordinator, and a counter is used once in a session, so a recorded call is
worth nothing and no common clock is needed. A retry has a new counter and the same request id, by which the
coordinator knows it. Enrol and OpenSession come before any session: empty session, counter 0, and the key stands in
the request. The audience (the CA's fingerprint) ties a signature to one coordinator, so that another one, to which
the same key says hello, cannot pass it on.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.canonical import length_prefixed
from protocol.errors import Unauthenticated
from protocol.identity import SIGNATURE_BYTES, PrivateIdentity, verify

SESSION_KEY = "barnraise-session-bin"
COUNTER_KEY = "barnraise-counter-bin"
REQUEST_KEY = "barnraise-request-bin"
SIGNATURE_KEY = "barnraise-signature-bin"

SESSION_ID_BYTES = 16
REQUEST_ID_BYTES = 16
COUNTER_BYTES = 8
COUNTER_WINDOW = 1024
"""Counters that may overtake each other: far more calls than one worker ever has under way."""

_DOMAIN = b"barnraise-call-v1"
_LENGTHS = {
    SESSION_KEY: (0, SESSION_ID_BYTES),
    COUNTER_KEY: (COUNTER_BYTES,),
    REQUEST_KEY: (REQUEST_ID_BYTES,),
    SIGNATURE_KEY: (SIGNATURE_BYTES,),
}

Metadata = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCall:
    """What a call's metadata claims; true only after `verify_call`."""

    session_id: bytes
    counter: int
    request_id: bytes
    signature: bytes


def new_request_id() -> bytes:
    """A request id for one intention, kept over all of its retries."""
    return secrets.token_bytes(REQUEST_ID_BYTES)


class CallSigner:
    """Signs the calls of one session; owns that session's counter. Safe to share between tasks and threads."""

    def __init__(self, identity: PrivateIdentity, session_id: bytes = b"", *, audience: bytes = b"") -> None:
        self._identity = identity
        self._session_id = session_id
        self._audience = audience
        self._counters = itertools.count(1) if session_id else itertools.repeat(0)

    def metadata(self, method: str, body: bytes, request_id: bytes | None = None) -> Metadata:
        """Metadata of one call of `method` (full name) with request bytes `body`. Sign again for each retry."""
        call = SignedCall(
            session_id=self._session_id,
            counter=next(self._counters),
            request_id=new_request_id() if request_id is None else request_id,
            signature=b"",
        )
        return (
            (SESSION_KEY, call.session_id),
            (COUNTER_KEY, call.counter.to_bytes(COUNTER_BYTES, "big")),
            (REQUEST_KEY, call.request_id),
            (SIGNATURE_KEY, self._identity.sign(_signed_bytes(call, method, body, self._audience))),
        )


def parse_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> SignedCall:
    """The signed call that `metadata` claims; Unauthenticated where a part is missing, doubled or of the wrong size."""
    found: dict[str, bytes] = {}
    for key, value in metadata or ():
        if key not in _LENGTHS:
            continue
        if key in found:
            raise Unauthenticated(f"call metadata has {key} twice")
        if not isinstance(value, bytes) or len(value) not in _LENGTHS[key]:
            allowed = " or ".join(str(length) for length in _LENGTHS[key])
            raise Unauthenticated(f"call metadata {key} has {len(value)} bytes, expected {allowed}")
        found[key] = value
    missing = [key for key in _LENGTHS if key not in found]
    if missing:
        raise Unauthenticated(f"call is not signed: metadata lacks {', '.join(missing)}")
    return SignedCall(
        session_id=found[SESSION_KEY],
        counter=int.from_bytes(found[COUNTER_KEY], "big"),
        request_id=found[REQUEST_KEY],
        signature=found[SIGNATURE_KEY],
    )


def verify_call(public_key: bytes, call: SignedCall, method: str, body: bytes, *, audience: bytes = b"") -> None:
    """Raises Unauthenticated unless the holder of `public_key` signed exactly this call. Then spend its counter."""
    verify(public_key, call.signature, _signed_bytes(call, method, body, audience))


def _signed_bytes(call: SignedCall, method: str, body: bytes, audience: bytes) -> bytes:
    return length_prefixed(
        _DOMAIN,
        audience,
        call.session_id,
        call.counter.to_bytes(COUNTER_BYTES, "big"),
        call.request_id,
        method.encode(),
        hashlib.sha256(body).digest(),
    )


class CounterWindow:
    """Each counter of a session is accepted once; those more than COUNTER_WINDOW behind the highest not at all.

    As the anti-replay window of IPsec, RFC 4303 section 3.4.3. Only for calls whose signature has been verified.
    """

    def __init__(self) -> None:
        self._highest = 0
        self._used = 1  # bit i: counter `highest - i` was used; counter 0 is for calls without a session

    def accept(self, counter: int) -> None:
        """Spend `counter`; Unauthenticated, and nothing changed, if it was spent or is too old to know."""
        behind = self._highest - counter
        if behind >= COUNTER_WINDOW:
            raise Unauthenticated(f"counter {counter} is {behind} behind, at most {COUNTER_WINDOW - 1} is remembered")
        if behind < 0:
            self._used = ((self._used << min(-behind, COUNTER_WINDOW)) | 1) & ((1 << COUNTER_WINDOW) - 1)
            self._highest = counter
            return
        if self._used >> behind & 1:
            raise Unauthenticated(f"counter {counter} was used before in this session")
        self._used |= 1 << behind
