"""The simulated network between volunteers and the coordinator.

Decides when, in which order, how often and whether messages arrive. A message that is lost, and a process that died,
look the same to the caller: `Unavailable`, after a while. What a client makes of that is its own
(`worker/client.py`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from protocol.errors import RemoteError, Unavailable
from protocol.signing import Metadata
from simulator.deterministic.calls import CallContext, Hop, SimulatedCall, taken
from simulator.deterministic.loop import PROCESS, VirtualLoop
from simulator.deterministic.node import CoordinatorNode
from simulator.deterministic.scenario import Scenario
from simulator.faults import Fault, FaultKind, FaultPlan, Point

HELD_AT_MOST_S = 10.0
"""How long a reordered message waits to be overtaken."""
MOST_FRAMES = 6
"""Of a stream that breaks: it does so before this one."""
_ON_MESSAGES = frozenset({FaultKind.DELAY, FaultKind.DROP, FaultKind.DUPLICATE, FaultKind.REORDER})
_ON_STREAMS = frozenset({FaultKind.TRUNCATE})
STREAMS = frozenset({"Upload", "Download"})


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
        refused: Callable[[int, SimulatedCall, RemoteError], None],
    ) -> None:
        self._loop, self._scenario, self._node, self._plan, self._draw = loop, scenario, node, plan, draw
        self._note, self._refused = note, refused
        self._calls: dict[tuple[int, str], int] = {}
        self._cut_until_s: dict[int, float] = {}
        self._frozen_until_s = self._asleep_until_s = 0.0
        self._held: list[Callable[[], None]] = []
        self._open: dict[int, SimulatedCall] = {}
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
        for call in self._open.values():
            if self._draw.random() < 0.8:
                self._loop.call_later(self._latency_s(), call.put, Unavailable("the connection was reset"))

    def is_cut(self, worker: int) -> bool:
        """Whether nothing comes through to this worker, or from it."""
        return self._loop.now_s < self._cut_until_s.get(worker, 0.0)

    def is_reachable(self, worker: int) -> bool:
        """Whether a handshake would come through at this moment."""
        now_s = self._loop.now_s
        is_there = self._node.is_up and now_s >= max(self._frozen_until_s, self._asleep_until_s)
        return is_there and not self.is_cut(worker)

    def begin(
        self, worker: int, name: str, messages: Sequence[bytes], metadata: Metadata, timeout_s: float
    ) -> SimulatedCall:
        """Make a call. `end` it, whatever comes of it."""
        process = PROCESS.get()
        assert process is not None
        call = SimulatedCall(self._loop, worker, name, messages, metadata, timeout_s, process, self._draw)
        self._next = number = self._next + 1
        self._open[number] = call
        call.closers.append(lambda: self._open.pop(number, None))
        self._send(call)
        return call

    # ---- there -----------------------------------------------------------------------------------------------------

    def _send(self, call: SimulatedCall) -> None:
        worker, name = call.worker, call.name
        self._calls[worker, name] = self._calls.get((worker, name), 0) + 1
        struck = self._strike(call, _ON_MESSAGES)
        kinds = {fault.kind for fault in struck}
        arrive = lambda: self._arrive(call)  # noqa: E731
        noise = self._noise
        if FaultKind.DROP in kinds or (noise is not None and self._draw.random() < noise.drop_share):
            self._note(f"lost {name} of {worker}")
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

    def _arrive(self, call: SimulatedCall) -> None:
        now_s = self._loop.now_s
        if now_s < self._frozen_until_s:
            self._loop.call_at(self._frozen_until_s, self._arrive, call)
        elif now_s < self._asleep_until_s:
            self._note(f"lost {call.name} of {call.worker}: the coordinator's machine sleeps")
        elif self.is_cut(call.worker):
            self._note(f"lost {call.name} of {call.worker}: partition")
        elif not self._node.is_up:
            self._loop.call_later(self._latency_s(), call.put, Unavailable("connection refused"))
        else:
            self._note(f"arrived {call.name} of {call.worker}")
            serving = self._loop.create_task(self._serve(call), context=self._node.context)
            left_s = max(0.0, call.ends_s - now_s)
            timer = self._loop.call_later(left_s, serving.cancel)
            serving.add_done_callback(lambda _: timer.cancel())

    # ---- and back ----------------------------------------------------------------------------------------------------

    async def _serve(self, call: SimulatedCall) -> None:
        process = self._node.process
        breaks_after = self._breaks_after(call)
        hop = self._hops(call, breaks_after)
        context = CallContext(call, self._loop, hop if call.name == "Download" else None)
        try:
            await self._node.answer(call.name, taken(call.messages, hop), context)
        except asyncio.CancelledError:
            raise
        except BaseException as bug:
            self._loop.error = self._loop.error or bug
            raise
        finally:
            context.done()
        if process is None or not process.alive:
            return
        noise = self._noise
        if self.is_cut(call.worker) or (noise is not None and self._draw.random() < noise.drop_share):
            self._note(f"lost the answer to {call.name} of {call.worker}")
            return
        if context.error is not None:
            self._refused(call.worker, call, context.error)
        came = [*context.replies[:1]] if context.error is None else [context.error]
        for one in came or [None]:
            self._loop.call_later(self._latency_s(), call.put, one)

    def _breaks_after(self, call: SimulatedCall) -> int | None:
        """Messages of a stream after which the connection breaks; None: it holds."""
        if call.name not in STREAMS:
            return None
        struck, noise = self._strike(call, _ON_STREAMS), self._noise
        if struck and call.name == "Upload":
            return math.ceil(min(fault.share for fault in struck) * (len(call.messages) - 1))
        if noise is not None and self._draw.random() < noise.drop_share:
            return self._draw.randrange(MOST_FRAMES)
        return None

    def _hops(self, call: SimulatedCall, breaks_after: int | None) -> Hop:
        passed = 0

        async def hop() -> bool:
            nonlocal passed
            slow_s = self._scenario.volunteers[call.worker].frame_s if call.name == "Download" else 0.0
            await asyncio.sleep(self._latency_s() + slow_s)
            if passed == breaks_after:
                self._note(f"{call.name} of {call.worker} breaks after {passed} frames")
                self._loop.call_later(self._latency_s(), call.put, Unavailable("the connection was reset"))
                return False
            passed += 1
            return call.caller.alive and not call.is_over and not self.is_cut(call.worker)

        return hop

    # ---- chance ----------------------------------------------------------------------------------------------------

    @property
    def _noise(self) -> Scenario | None:
        return self._scenario if self._loop.now_s < self._scenario.calm_s else None

    def _strike(self, call: SimulatedCall, kinds: frozenset[FaultKind]) -> tuple[Fault, ...]:
        if self._loop.now_s >= self._scenario.calm_s:
            return ()
        nth = self._calls.get((call.worker, call.name), 1)
        return self._plan.take(Point(worker=call.worker, call=call.name, nth=nth, now_s=self._loop.now_s), kinds)

    def _latency_s(self) -> float:
        return self._draw.uniform(0.01, 0.2)


class SimulatedWire:
    """One volunteer process's line; a `worker.wire.Wire`."""

    def __init__(self, network: Network, worker: int, ca_pem: bytes) -> None:
        self._network, self._worker, self._ca_pem = network, worker, ca_pem
        self._trusts = False

    def bootstrap(self, timeout_s: float) -> bytes:
        """The coordinator's certificate, where it is reachable."""
        if not self._network.is_reachable(self._worker):
            raise Unavailable(f"nobody answers within {timeout_s:g} s")
        return self._ca_pem

    def connect(self, ca_pem: bytes) -> None:
        """Whoever trusts another certificate reaches nobody."""
        self._trusts = ca_pem == self._ca_pem

    async def close(self) -> None:
        """Nothing is kept open."""

    async def unary(self, name: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One message there and one back."""
        return await self._answer(name, [body], metadata, timeout_s)

    async def upload(self, name: str, messages: AsyncIterator[bytes], metadata: Metadata, timeout_s: float) -> bytes:
        """All messages leave at once; they come in one by one."""
        return await self._answer(name, [message async for message in messages], metadata, timeout_s)

    async def download(
        self, name: str, body: bytes, metadata: Metadata, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Messages as they come."""
        call = self._begin(name, [body], metadata, timeout_s)
        try:
            while (message := await call.next()) is not None:
                yield message
        finally:
            call.close()

    async def _answer(self, name: str, messages: Sequence[bytes], metadata: Metadata, timeout_s: float) -> bytes:
        call = self._begin(name, messages, metadata, timeout_s)
        try:
            return await call.next() or b""
        finally:
            call.close()

    def _begin(self, name: str, messages: Sequence[bytes], metadata: Metadata, timeout_s: float) -> SimulatedCall:
        if not self._trusts:
            raise Unavailable("wrong certificate")
        return self._network.begin(self._worker, name, messages, metadata, timeout_s)


class _Once:
    """Calls what it was given, the first time only."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()
