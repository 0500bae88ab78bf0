"""gRPC without a network: a channel that gives a worker the bytes of an input, a call that gives them to a handler.

Everything runs in this thread under virtual time, so that long polls and backoffs cost nothing and nothing outlives an
input.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import grpc

from protocol.errors import Refused
from protocol.joinlink import JoinLink
from simulator.deterministic.loop import VirtualLoop
from worker.ports import Progress
from worker.wire import GrpcWire

MOST_STEPS = 5_000
"""Callbacks for one input; hundreds are honest, and whoever needs more goes in circles."""
LIMIT_S = 3 * 3600.0


class Loop(VirtualLoop):
    """One loop for all inputs: some objects are bound to the one that they first waited in."""

    def __init__(self) -> None:
        super().__init__(1000.0, lambda _: (0.0, 0.0))

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`; what it left behind is cleared away. AssertionError when it never ends."""
        self._steps, self.error = 395_000, None  # of the 400,000 after which the loop gives up
        self.now_s = 1000.0
        task = self.create_task(work)
        try:
            self.run(task.done, self.now_s + LIMIT_S)
            if self.error is not None:
                raise self.error
            assert task.done(), f"still waiting after {LIMIT_S:g} s"
            return task.result()
        finally:
            if not task.done():
                task.cancel()
            self._ready.clear()
            self._timers.clear()


_LOOP = Loop()  # type: ignore[abstract]  # as the loop that it is made of: what nobody here calls is not there


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, under virtual time."""
    return _LOOP.finish(work)


class InlineBackground:
    """`worker.background.Threads` without threads."""

    busy = False

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """At once."""
        return function(*arguments)


# ---- what a worker sees of its coordinator


class FakeChannel:
    """Answers one call with given bytes, or with a status and given words; refuses every later one."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.frames: list[bytes] = []

    def unary_unary(self, *_: Any) -> Callable[..., Any]:
        """One message for one."""
        return self._call

    def stream_unary(self, *_: Any) -> Callable[..., Any]:
        """One message for many, of which none is taken."""
        return self._call

    def unary_stream(self, *_: Any) -> Callable[..., Any]:
        """Many messages for one."""
        return lambda *_, **__: _Frames(self._next(), self.frames)

    def _call(self, *_: Any, **__: Any) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer = self._next()
        if isinstance(answer, bytes):
            future.set_result(answer)
        else:
            future.set_exception(answer)
        return future

    def _next(self) -> Any:
        return self.answers.pop(0) if self.answers else Refused("this coordinator answers once")


class FakeWire(GrpcWire):
    """The real line, over such a channel."""

    def __init__(self, link: JoinLink, channel: FakeChannel, ca_pem: bytes) -> None:
        super().__init__(link)
        self._channel, self._ca_pem = channel, ca_pem

    def bootstrap(self, timeout_s: float) -> bytes:
        """The right certificate."""
        return self._ca_pem

    def connect(self, ca_pem: bytes) -> None:
        """The channel stays."""


class Idle:
    """A trainer that is never given anything."""

    progress = Progress()

    def start(self, *_: Any) -> None:
        """Not to be called."""
        raise AssertionError

    def stop(self) -> None:
        """Nothing runs."""

    def rest(self) -> None:
        """Nothing is held."""

    def wake(self) -> None:
        """Nothing was given up."""

    def pace(self, share: float) -> None:
        """No rule makes it slower."""

    def join(self, timeout_s: float) -> bool:
        """It has ended."""
        del timeout_s
        return True


class _Frames:
    def __init__(self, answer: Any, frames: Sequence[bytes]) -> None:
        self._error = None if isinstance(answer, bytes) else answer
        self._frames = list(frames)

    async def read(self) -> Any:
        """The next frame."""
        if self._error is not None:
            raise self._error
        return self._frames.pop(0) if self._frames else grpc.aio.EOF

    def cancel(self) -> None:
        """Nothing is under way."""


_CODES = list(grpc.StatusCode)


def status(number: int, words: bytes) -> grpc.aio.AioRpcError:
    """A call that failed over there, in the other side's words."""
    code = _CODES[1 + number % (len(_CODES) - 1)]
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details=words.decode("utf-8", "replace"))


# ---- what a coordinator sees of a caller


class Aborted(Exception):
    """A handler refused a call."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(f"{code.name}: {words}")
        self.code = code


class FakeContext:
    """One call to a handler."""

    def __init__(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._metadata = tuple(metadata)
        self._at_end: list[Callable[[Any], None]] = []
        self.sent_bytes = 0

    def peer(self) -> str:
        """gRPC's name of the caller."""
        return "ipv4:192.0.2.7:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As it came."""
        return self._metadata

    def time_remaining(self) -> float:
        """Seconds."""
        return 60.0

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """For the end of the call."""
        self._at_end.append(callback)

    async def send_initial_metadata(self, _: Any) -> None:
        """Nothing to send."""

    async def write(self, message: bytes) -> None:
        """Taken at once."""
        self.sent_bytes += len(message)

    async def abort(self, code: grpc.StatusCode, words: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        """End the call."""
        raise Aborted(code, words)

    def end(self) -> None:
        """gRPC frees the call."""
        for callback in self._at_end:
            callback(self)


async def stream(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    """What the caller sends."""
    for message in messages:
        yield message
