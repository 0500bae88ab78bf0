"""One simulated call: what its caller waits for, and the gRPC context that the coordinator's real handlers are given.

Decides nothing; the network (network.py) decides what comes of the messages. Errors cross as they do over gRPC: a
status, a sentence, trailers.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from protocol.errors import RemoteError, Unavailable
from protocol.signing import Metadata
from simulator.deterministic.loop import Process, VirtualLoop
from worker.wire import error_told

MOST_HOPS = 4
"""Turns of the caller's event loop between a message's arrival and its being handed over: gRPC's own thread takes some;
in a process that stood still, what fell due meanwhile comes in any order."""

Hop = Callable[[], Awaitable[bool]]
"""A message on its way: when it would be there, and whether it is."""


class SimulatedCall:
    """The caller's end."""

    def __init__(
        self,
        loop: VirtualLoop,
        worker: int,
        name: str,
        messages: Sequence[bytes],
        metadata: Metadata,
        timeout_s: float,
        caller: Process,
        draw: random.Random,
    ) -> None:
        self._draw = draw
        self.worker, self.name, self.messages, self.metadata, self.caller = worker, name, messages, metadata, caller
        self.ends_s = loop.now_s + timeout_s
        self.is_over = False
        """The caller has its answer, or waits no more."""
        self.closers: list[Callable[[], object]] = []
        """Called at the caller's end: gRPC frees a call on both sides."""
        self._loop = loop
        self._came: deque[bytes | RemoteError | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer = loop.call_at(self.ends_s, self.put, Unavailable(f"{name}: deadline"))

    def put(self, came: bytes | RemoteError | None) -> None:
        """A message, what went wrong, or None at the end of a stream."""
        if self.is_over:
            return
        self._came.append(came)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._came:
            self._waiter = self._loop.create_future()
            await self._waiter
        came = self._came.popleft()
        for _ in range(self._draw.randrange(MOST_HOPS)):
            await asyncio.sleep(0)
        if isinstance(came, RemoteError):
            raise came
        return came

    def close(self) -> None:
        """The caller waits no more."""
        if not self.is_over:
            self.is_over = True
            self._timer.cancel()
            for closer in self.closers:
                closer()


class CallContext:
    """What gRPC gives a handler, as far as `coordinator.edge.rpc` asks."""

    def __init__(self, call: SimulatedCall, loop: VirtualLoop, hop: Hop | None) -> None:
        self._call, self._loop, self._hop = call, loop, hop
        self._done: list[Callable[[Any], object]] = []
        self.replies: list[bytes] = []
        """Where nothing hops by itself: what is sent when the handler has ended."""
        self.error: RemoteError | None = None

    def peer(self) -> str:
        """Everybody has an address of their own."""
        return f"ipv4:192.0.2.{self._call.worker + 1}:50000"

    def invocation_metadata(self) -> Metadata:
        """What the caller signed."""
        return self._call.metadata

    def time_remaining(self) -> float:
        """Until the caller's deadline."""
        return self._call.ends_s - self._loop.now_s

    def add_done_callback(self, act: Callable[[Any], object]) -> None:
        """At the call's end."""
        self._done.append(act)

    async def send_initial_metadata(self, _: Any) -> None:
        """Nobody reads it."""

    async def write(self, message: bytes) -> None:
        """Send one message; cancelled where the caller is gone, as gRPC does it."""
        if self._hop is None:
            self.replies.append(message)
            return
        if not await self._hop() or self._call.is_over:
            raise asyncio.CancelledError
        self._call.put(message)

    async def abort(self, code: Any, details: str, trailers: tuple[tuple[str, str], ...]) -> None:
        """End with an error."""
        self.error = error_told(self._call.name, code.name, details, trailers)

    def done(self) -> None:
        """The handler has ended, however it did."""
        for act in self._done:
            act(self)


async def taken(messages: Sequence[bytes], hop: Hop) -> AsyncIterator[bytes]:
    """What comes in of the caller's messages; the first is there with the call itself."""
    yield messages[0]
    for message in messages[1:]:
        if not await hop():
            return
        yield message
