"""The simulated network between volunteers and the coordinator, and a client's side of a call.

Decides when, in which order, how often and whether messages arrive. A message that is lost, and a process that died,
look the same to the caller: `Unavailable`, after a while; it is then tried again with full jitter, as
`worker/client.py` does. Errors cross as they do over gRPC (`edge/rpc.py`): whose fault it was, and a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from coordinator.edge.rpc import status_of, trailers_of
from protocol.errors import (
    FINAL_TRAILER,
    BarnraiseError,
    DigestMismatch,
    FinalRefusal,
    Refused,
    Unauthenticated,
    Unavailable,
)
from protocol.framing import frames_of
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.loop import VirtualLoop
from simulator.deterministic.node import CoordinatorNode
from simulator.deterministic.scenario import Scenario
from simulator.faults import Fault, FaultKind, FaultPlan, Point

CALL_TIMEOUT_S = 30.0
HELD_AT_MOST_S = 10.0
"""How long a reordered message waits to be overtaken."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
_ON_MESSAGES = frozenset({FaultKind.DELAY, FaultKind.DROP, FaultKind.DUPLICATE, FaultKind.REORDER})

Answer = Callable[[], Coroutine[Any, Any, Any]]


class Network:
    """All links of one simulated world."""

    def __init__(
        self,
        loop: VirtualLoop,
        scenario: Scenario,
        node: CoordinatorNode,
        plan: FaultPlan,
        draw: random.Random,
        note: Callable[[str], None],
    ) -> None:
        self._loop, self._scenario, self._node, self._plan, self._draw = loop, scenario, node, plan, draw
        self._note = note
        self._calls: dict[tuple[int, str], int] = {}
        self._cut_until_s: dict[int, float] = {}
        self._frozen_until_s = self._asleep_until_s = 0.0
        self._held: list[Callable[[], None]] = []
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._next = 0

    def partition(self, worker: int, seconds: float) -> None:
        """Cut one worker's link."""
        self._cut_until_s[worker] = self._loop.now_s + seconds

    def freeze(self, seconds: float) -> None:
        """The coordinator's machine takes in nothing for a while."""
        self._frozen_until_s = self._loop.now_s + seconds

    def sleep(self, seconds: float) -> None:
        """The coordinator's machine sleeps: what is sent to it meanwhile is lost."""
        self._asleep_until_s = self._loop.now_s + seconds

    def break_connections(self) -> None:
        """The coordinator's process died: its callers notice soon, most of them."""
        for future in self._open.values():
            if self._draw.random() < 0.8:
                self._loop.call_later(self._latency_s(), _fail, future, Unavailable("the connection was reset"))

    async def call(
        self, worker: int, call: str, key: bytes, session_id: bytes, request: Any, hold_s: float = 0.0
    ) -> Any:
        """One call, tried as long as it takes."""
        return await self._retried(lambda: self.once(worker, call, key, session_id, request, hold_s))

    async def once(
        self, worker: int, call: str, key: bytes, session_id: bytes, request: Any, hold_s: float = 0.0
    ) -> Any:
        """One call, tried once."""
        answer = lambda: self._node.answer(call, key, session_id, request)  # noqa: E731
        return await self._exchange(worker, call, answer, CALL_TIMEOUT_S + hold_s)

    async def upload(self, worker: int, key: bytes, session_id: bytes, header: pb.UploadHeader, payload: bytes) -> Any:
        """One upload, tried once."""
        struck = self._strike(worker, "Upload", frozenset({FaultKind.TRUNCATE}))
        share = min((fault.share for fault in struck), default=1.0)
        answer = lambda: self._node.receive(key, session_id, header, self._frames(payload, header.offset, share))  # noqa: E731
        return await self._exchange(worker, "Upload", answer, 2 * CALL_TIMEOUT_S)

    async def _frames(self, payload: bytes, offset: int, share: float) -> AsyncIterator[bytes]:
        """The payload's frames, as many as come."""
        frames = list(frames_of(lambda start, length: payload[start : start + length], len(payload), offset))
        for frame in frames[: math.ceil(len(frames) * share)]:
            await asyncio.sleep(self._latency_s())
            yield frame

    async def _retried(self, once: Answer) -> Any:
        for attempt in range(1_000_000):
            with contextlib.suppress(Unavailable):
                return await once()
            await asyncio.sleep(self._draw.uniform(0.0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt, 6))))
        raise Unavailable("given up")

    # ---- one exchange --------------------------------------------------------------------------------------------

    async def _exchange(self, worker: int, call: str, answer: Answer, timeout_s: float) -> Any:
        future = self._loop.create_future()
        self._next = number = self._next + 1
        self._open[number] = future
        timer = self._loop.call_later(timeout_s, _fail, future, Unavailable(f"{call}: deadline"))
        self._send(worker, call, answer, future)
        try:
            return await future
        finally:
            timer.cancel()
            del self._open[number]

    def _send(self, worker: int, call: str, answer: Answer, future: asyncio.Future[Any]) -> None:
        self._calls[worker, call] = self._calls.get((worker, call), 0) + 1
        struck = self._strike(worker, call, _ON_MESSAGES)
        kinds = {fault.kind for fault in struck}
        arrive = lambda: self._arrive(worker, call, answer, future)  # noqa: E731
        noise = self._scenario if self._loop.now_s < self._scenario.calm_s else None
        if FaultKind.DROP in kinds or (noise is not None and self._draw.random() < noise.drop_share):
            self._note(f"lost {call} of {worker}")
            return
        late_s = sum(fault.seconds for fault in struck if fault.kind is FaultKind.DELAY)
        if noise is not None and self._draw.random() < noise.late_share:
            late_s += self._draw.uniform(0.0, noise.late_s)
        if FaultKind.DUPLICATE in kinds or (noise is not None and self._draw.random() < noise.duplicate_share):
            self._loop.call_later(self._latency_s() + self._draw.choice((0.0, 1.0, 20.0)), arrive)
        if FaultKind.REORDER in kinds:
            held = _Once(arrive)
            self._held.append(held)
            self._loop.call_later(HELD_AT_MOST_S, held)
            return
        self._loop.call_later(self._latency_s() + late_s, arrive)
        waiting, self._held = self._held, []
        for overtaken in waiting:
            self._loop.call_later(self._latency_s() + late_s + 0.5, overtaken)

    def _arrive(self, worker: int, call: str, answer: Answer, future: asyncio.Future[Any]) -> None:
        now_s = self._loop.now_s
        if now_s < self._frozen_until_s:
            self._loop.call_at(self._frozen_until_s, self._arrive, worker, call, answer, future)
        elif now_s < self._asleep_until_s:
            self._note(f"lost {call} of {worker}: the coordinator's machine sleeps")
        elif now_s < self._cut_until_s.get(worker, 0.0):
            self._note(f"lost {call} of {worker}: partition")
        elif not self._node.is_up:
            self._loop.call_later(self._latency_s(), _fail, future, Unavailable("connection refused"))
        else:
            self._note(f"arrived {call} of {worker}")
            self._loop.create_task(self._serve(worker, call, answer, future), context=self._node.context)

    async def _serve(self, worker: int, call: str, answer: Answer, future: asyncio.Future[Any]) -> None:
        process = self._node.process
        try:
            result, error = await answer(), None
        except BarnraiseError as caught:
            result, error = None, _over_the_wire(call, caught)
        except asyncio.CancelledError:
            raise
        except BaseException as bug:
            self._loop.error = self._loop.error or bug
            raise
        if process is None or not process.alive:
            return
        noise = self._scenario if self._loop.now_s < self._scenario.calm_s else None
        cut = self._loop.now_s < self._cut_until_s.get(worker, 0.0)
        if cut or (noise is not None and self._draw.random() < noise.drop_share):
            self._note(f"lost the answer to {call} of {worker}")
            return
        self._loop.call_later(self._latency_s(), _settle, future, result, error)

    def _strike(self, worker: int, call: str, kinds: frozenset[FaultKind]) -> tuple[Fault, ...]:
        if self._loop.now_s >= self._scenario.calm_s:
            return ()
        nth = self._calls.get((worker, call), 1)
        return self._plan.take(Point(worker=worker, call=call, nth=nth, now_s=self._loop.now_s), kinds)

    def _latency_s(self) -> float:
        return self._draw.uniform(0.01, 0.2)


class _Once:
    """Calls what it was given, the first time only."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()


_TOLD: dict[str, type[BarnraiseError]] = {
    "UNAUTHENTICATED": Unauthenticated,
    "INVALID_ARGUMENT": Refused,
    "FAILED_PRECONDITION": Refused,
    "PERMISSION_DENIED": Refused,
    "DATA_LOSS": DigestMismatch,
}
"""What a client makes of a status; every other may pass."""


def _over_the_wire(call: str, error: BarnraiseError) -> BarnraiseError:
    kind = FinalRefusal if FINAL_TRAILER in trailers_of(error) else _TOLD.get(status_of(error).name, Unavailable)
    return kind(f"{call}: {error}")


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    _settle(future, None, error)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
