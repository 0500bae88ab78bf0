"""Sessions: which key a call speaks for, and that no call counts twice.

Decides whether a signed call belongs to an open session. Touches nothing but memory: sessions end with the process, and
a client opens another. Always: one session a key (a new one closes the old), each counter is used once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from coordinator.store.operators import OperatorKey
from protocol.causes import Cause
from protocol.errors import Unauthenticated
from protocol.ids import WorkerId
from protocol.limits import PROTOCOL_VERSION
from protocol.signing import SESSION_ID_BYTES, CounterWindow

REMEMBERED_REPLIES = 32
"""Replies kept for a repeated request id: a client has a handful of calls under way at most."""
OPERATOR_SESSIONS = 64
"""The operator's commands each open one and none closes it: the oldest makes room."""


@dataclass(slots=True)
class CallerSession:
    """One key's session."""

    session_id: bytes
    public_key: bytes
    worker: WorkerId
    """The operator's key has an id of the same make, but is not a worker."""
    is_operator: bool
    key: OperatorKey | None = None
    """Which operator's; None: a worker's, or the run's own."""
    version: int = PROTOCOL_VERSION
    """Of the protocol: what the request that opened it was signed with."""
    window: CounterWindow = field(default_factory=CounterWindow)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    host: str = ""
    """The address that its last unary call came from; empty where that is unknown."""
    replies: OrderedDict[tuple[str, str], bytes] = field(default_factory=OrderedDict)

    def remember(self, method: str, request_id: str, reply: bytes) -> None:
        """Keep a reply, so that a repeated request is answered and not carried out again."""
        self.replies[method, request_id] = reply
        while len(self.replies) > REMEMBERED_REPLIES:
            self.replies.popitem(last=False)


class SessionTable:
    """Open sessions, by id and by worker."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, CallerSession] = {}
        self._by_worker: dict[WorkerId, CallerSession] = {}
        self._operators: deque[CallerSession] = deque()

    def open(
        self,
        public_key: bytes,
        worker: WorkerId,
        *,
        is_operator: bool,
        key: OperatorKey | None = None,
        version: int = PROTOCOL_VERSION,
    ) -> CallerSession:
        """A new session; the key's earlier one ends. The operator may have several (a status watch, a command)."""
        session_id = secrets.token_bytes(SESSION_ID_BYTES)
        session = CallerSession(session_id, public_key, worker, is_operator, key, version)
        if not is_operator:
            self.close(self._by_worker.get(worker))
            self._by_worker[worker] = session
        else:
            self._operators.append(session)
            if len(self._operators) > OPERATOR_SESSIONS:
                self.close(self._operators.popleft())
        self._by_id[session.session_id] = session
        return session

    def close(self, session: CallerSession | None) -> None:
        """End a session: calls that wait under it are answered."""
        if session is None:
            return
        self._by_id.pop(session.session_id, None)
        if self._by_worker.get(session.worker) is session:
            del self._by_worker[session.worker]
        session.closed.set()

    def close_of(self, worker: WorkerId) -> None:
        """End the worker's session, if it has one."""
        self.close(self._by_worker.get(worker))

    def close_operators(self, public_key: bytes) -> None:
        """End all sessions of an operator's key."""
        for session in [one for one in self._operators if one.public_key == public_key]:
            self._operators.remove(session)
            self.close(session)

    def close_all(self) -> None:
        """The coordinator stops: everybody who waits is answered."""
        for session in list(self._by_id.values()):
            self.close(session)

    def find(self, session_id: bytes) -> CallerSession:
        """The open session with this id."""
        session = self._by_id.get(session_id)
        if session is None:
            raise Unauthenticated(
                "this session is not open (replaced by a newer one, or the coordinator restarted); open another",
                cause=Cause.SESSION_ENDED,
            )
        return session

    def has(self, worker: WorkerId) -> bool:
        """Whether the worker has a session."""
        return worker in self._by_worker

    def __len__(self) -> int:
        return len(self._by_id)
