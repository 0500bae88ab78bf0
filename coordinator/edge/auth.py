"""Who is calling: every request is signed, and the signature is over the exact bytes that came.

Decides whether a call may go on; touches nothing. Always: the signature is checked before the request is parsed, and a
session's counter is spent only on a call whose signature holds. Enrol and OpenSession carry their key in the request,
so they are parsed first and trusted with nothing until `check_key` has passed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from coordinator.edge.sessions import CallerSession, SessionTable
from protocol.errors import Unauthenticated
from protocol.signing import SignedCall, parse_metadata, verify_call

NONCE_BYTES = 16
REMEMBERED_NONCES = 65_536
"""OpenSession nonces that are refused a second time: days of them at any honest rate."""

Metadata = Iterable[tuple[str, str | bytes]]


class Authenticator:
    """Checks calls for one coordinator."""

    def __init__(self, sessions: SessionTable, audience: bytes) -> None:
        self._sessions = sessions
        self._audience = audience
        self._nonces: OrderedDict[bytes, None] = OrderedDict()

    def session_call(self, metadata: Metadata | None, method: str, body: bytes) -> tuple[CallerSession, SignedCall]:
        """The session that this call belongs to. Spends its counter."""
        call = parse_metadata(metadata)
        if not call.session_id:
            raise Unauthenticated(f"{method} needs a session; call OpenSession first")
        session = self._sessions.find(call.session_id)
        verify_call(session.public_key, call, method, body, audience=self._audience)
        session.window.accept(call.counter)
        return session, call

    def check_key(self, metadata: Metadata | None, method: str, body: bytes, public_key: bytes) -> None:
        """The caller of Enrol or OpenSession holds the key that the request names."""
        call = parse_metadata(metadata)
        if call.session_id or call.counter:
            raise Unauthenticated(f"{method} is called outside of any session: empty session id, counter 0")
        verify_call(public_key, call, method, body, audience=self._audience)

    def spend_nonce(self, public_key: bytes, nonce: bytes) -> None:
        """An OpenSession request opens one session only."""
        if len(nonce) != NONCE_BYTES:
            raise Unauthenticated(f"OpenSession needs a nonce of {NONCE_BYTES} random bytes, got {len(nonce)}")
        if public_key + nonce in self._nonces:
            raise Unauthenticated("this OpenSession request was used before; sign one with a new nonce")
        self._nonces[public_key + nonce] = None
        while len(self._nonces) > REMEMBERED_NONCES:
            self._nonces.popitem(last=False)
