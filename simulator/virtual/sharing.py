"""How one version's blocks move through a swarm under virtual time: who sends how much, and when everybody has it all.

Decides how lines are modelled: each machine's uplink and downlink passes one frame after the other at its rate, and a
frame's round trip is not waited for. Everything that decides is the product's: the coordinator's `Sources` with its
tracker, tickets and all, and each worker's `BlockSwarm` and `Sharing`, which speak in the wire's own messages. Bytes
are not looked at: a frame is true or false. Touches nothing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from coordinator.edge.sessions import CallerSession
from coordinator.edge.sources import Sources
from peering.limits import FRAME_STALL_S, UPLOAD_SLOTS, peer_deadline_s
from peering.line import holder_name
from peering.pace import Slots, UplinkPace
from protocol.errors import DigestMismatch, Refused, Unavailable
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId, digest_of
from protocol.limits import FRAME_BYTES
from protocol.manifest import BlockRef
from protocol.tickets import Ticket
from protocol.tls import CertificateAuthority
from protocol.v1 import barnraise_pb2 as pb
from simulator.deterministic.loop import VirtualLoop
from simulator.holders import LIES, Gives
from worker.ports import BlockSource
from worker.sharing import Sharing
from worker.swarm import BlockSwarm
from worker.timing import Timing

Result = TypeVar("Result")

HOST = "127.0.0.1"
RUN = RunId("virtual")
BEGINS_S = 1.0
"""Whoever shares has said so when the session opened, long before a version is fetched."""
GIVE_UP_S = 24 * 3600.0
MOST_STEPS = 20_000_000
TRUE, FALSE = bytes(FRAME_BYTES), b"\x01" + bytes(FRAME_BYTES - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRates:
    """Bytes a second."""

    coordinator_up: float = 12.5e6
    worker_up: float = 2.5e6
    worker_down: float = 12.5e6


@dataclass(slots=True)
class PeerMachine:
    """One worker, as others see it, and what has come to it."""

    number: int
    gives: Gives
    identity: PrivateIdentity
    up: UplinkPace
    down: UplinkPace
    slots: Slots = field(default_factory=lambda: Slots(UPLOAD_SLOTS))
    checked: frozenset[Digest] = frozenset()
    finished_s: float | None = None
    blamed: set[int] = field(default_factory=set)
    """Workers that it was failed by, in its own view."""

    def path(self, digest: Digest) -> Path:
        """Nowhere: what is given goes over a modelled line."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a version came to everybody."""

    wall_s: float
    """Until the last honest worker had it whole."""
    coordinator_bytes: int
    version_bytes: int
    blamed: frozenset[int]
    """Holders, by number, that some honest worker was failed by."""
    questions: int

    @property
    def copies(self) -> float:
        """Versions that left the coordinator."""
        return self.coordinator_bytes / self.version_bytes


def spread(
    gives: Sequence[Gives],
    blocks: Sequence[int],
    *,
    copies: int = 2,
    fallback_s: float = 30.0,
    lines: LineRates | None = None,
    seed: int = 0,
    lies_first: bool = True,
) -> Spread:
    """One worker for each of `gives`; all begin at once and need all `blocks`, by their bytes.

    `lies_first`: liars tell from the start that they hold everything. RuntimeError where somebody never finishes.
    """
    return _World(gives, blocks, copies, fallback_s, lines or LineRates(), seed, lies_first=lies_first).play()


@cache
def _authority() -> CertificateAuthority:
    return CertificateAuthority.create(RUN)


class _World:
    """One coordinator and its workers."""

    def __init__(
        self,
        gives: Sequence[Gives],
        blocks: Sequence[int],
        copies: int,
        fallback_s: float,
        lines: LineRates,
        seed: int,
        *,
        lies_first: bool,
    ) -> None:
        self._loop = VirtualLoop(0.0, lambda _pool: (0.0, 0.0), MOST_STEPS)  # type: ignore[abstract]
        self._draw, self._lies_first = random.Random(seed), lies_first
        self._refs = [
            BlockRef(digest=digest_of(f"block {number}".encode()), payload_bytes=size)
            for number, size in enumerate(blocks)
        ]
        self._up = self._pace(lines.coordinator_up)
        self._machines = [
            PeerMachine(
                number=number,
                gives=one,
                identity=PrivateIdentity.from_seed(digest_of(f"{seed} {number}".encode())[:32].encode()),
                up=self._pace(lines.worker_up),
                down=self._pace(lines.worker_down),
            )
            for number, one in enumerate(gives)
        ]
        self._sources = Sources(cast(Any, self._run(copies, fallback_s)), reach=lambda _shared: "")
        self._by_name: dict[Digest, PeerMachine] = {}
        self._sent_bytes = self._questions = 0

    def play(self) -> Spread:
        """Until every honest worker has everything."""
        honest = [one for one in self._machines if one.gives not in LIES]
        for one in self._machines:
            self._loop.create_task(self._work(one))
        done = self._loop.run(lambda: all(one.finished_s is not None for one in honest), GIVE_UP_S)
        if self._loop.error is not None:
            raise self._loop.error
        if not done:
            raise RuntimeError(f"{sum(one.finished_s is None for one in honest)} workers never had the whole version")
        return Spread(
            wall_s=max(one.finished_s or 0.0 for one in honest),
            coordinator_bytes=self._sent_bytes,
            version_bytes=sum(ref.payload_bytes for ref in self._refs),
            blamed=frozenset(number for one in honest for number in one.blamed),
            questions=self._questions,
        )

    def _run(self, copies: int, fallback_s: float) -> SimpleNamespace:
        present = SimpleNamespace(present=True)
        workers = {one.identity.worker_id: present for one in self._machines}
        state = SimpleNamespace(workers=workers, version=0)
        served = frozenset(ref.digest for ref in self._refs)
        return SimpleNamespace(
            run_id=RUN,
            settings=SimpleNamespace(copies=copies, fallback_s=fallback_s),
            run_time=self._loop.time,
            authority=_authority(),
            record=b"",
            whereabouts=None,
            versions=SimpleNamespace(served=lambda: served),
            store=SimpleNamespace(blocks=SimpleNamespace(stat=lambda _digest: None)),  # chunks are not simulated
            sessions=_Everybody(workers),
            pump=SimpleNamespace(engine=SimpleNamespace(state=state)),
        )

    def _pace(self, bytes_per_s: float) -> UplinkPace:
        return UplinkPace(bytes_per_s, self._loop.time, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        future = self._loop.create_future()
        timer = self._loop.call_later(seconds, future.set_result, None)
        try:
            await future
        finally:
            timer.cancel()

    async def _work(self, machine: PeerMachine) -> None:
        sharing = None
        if machine.gives is not Gives.NOTHING:
            sharing = Sharing(machine, 1_000_000, clock=self._loop.time)
            sharing.port = 1 + machine.number
        if machine.gives in LIES and self._lies_first:
            machine.checked = frozenset(ref.digest for ref in self._refs)
        session = CallerSession(b"", machine.identity.public_key, machine.identity.worker_id, False, host=HOST)
        desk = _Desk(self, machine, session)
        timing = Timing(clock=self._loop.time, sleep=self._sleep, draw=random.Random(self._draw.random()))
        swarm = BlockSwarm(cast(Any, desk), partial(self._dialled, machine), timing, near=HOST, sharing=sharing)
        if sharing is not None:
            await swarm.announce()
        if machine.gives in LIES:
            return
        await self._sleep(BEGINS_S)
        tasks = [self._loop.create_task(self._bring(swarm, machine, ref)) for ref in self._refs]
        for task in tasks:
            await task
        machine.finished_s = self._loop.now_s - BEGINS_S

    async def _bring(self, swarm: BlockSwarm, machine: PeerMachine, ref: BlockRef) -> None:
        here, tainted = 0, False

        async def take(source: BlockSource) -> None:
            nonlocal here, tainted
            async with aclosing(source.block(ref.digest, ref.payload_bytes, here)) as pieces:
                async for piece in pieces:
                    here, tainted = here + len(piece), tainted or piece[0] != 0
            if here < ref.payload_bytes:
                raise Unavailable("it broke off")
            if tainted:
                here, tainted = 0, False
                raise DigestMismatch("another block")

        await swarm.bring(ref, take)
        machine.checked |= {ref.digest}

    def _dialled(self, machine: PeerMachine, holder: pb.Holder) -> _Line:
        name = holder_name(holder.certificate)
        self._by_name[name] = self._machines[holder.port - 1]
        return _Line(self, machine, self._by_name[name], name)

    async def given(self, giver: UplinkPace, taker: PeerMachine, size: int, offset: int) -> AsyncGenerator[bytes, None]:
        """Frames from one line to another."""
        while offset < size:
            length = min(FRAME_BYTES, size - offset)
            await giver.spend(length)
            await taker.down.spend(length)
            await self._sleep(0.0)
            offset += length
            yield TRUE[:length]

    async def granted(self, taker: PeerMachine, size: int, offset: int) -> AsyncGenerator[bytes, None]:
        """Frames from the coordinator."""
        async with aclosing(self.given(self._up, taker, size, offset)) as pieces:
            async for piece in pieces:
                self._sent_bytes += len(piece)
                yield piece

    async def asked(self, machine: PeerMachine, session: CallerSession, request: pb.SourcesRequest) -> pb.SourcesReply:
        """The coordinator's answer, by its own code."""
        self._questions += 1
        named = [Digest(name.hex()) for name in request.failed]
        machine.blamed |= {self._by_name[name].number for name in named if name in self._by_name}
        return await self._sources.answer(session, request)


@dataclass(frozen=True, slots=True)
class _Desk:
    """The coordinator, as one worker has it."""

    world: _World
    machine: PeerMachine
    session: CallerSession

    async def patiently(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """It is always there."""
        return await step()

    async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
        """Over the wire's bytes."""
        read = pb.SourcesRequest.FromString(request.SerializeToString())
        return pb.SourcesReply.FromString(
            (await self.world.asked(self.machine, self.session, read)).SerializeToString()
        )

    def block(self, _digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes, None]:
        """From its own line."""
        return self.world.granted(self.machine, payload_bytes, offset)


class _Line:
    """From one worker to another; a `worker.swarm.HolderLine`."""

    def __init__(self, world: _World, taker: PeerMachine, giver: PeerMachine, name: Digest) -> None:
        self._world, self._taker, self._giver, self.name = world, taker, giver, name
        self.ticket: Ticket | None = None

    async def close(self) -> None:
        """Nothing is kept open."""

    async def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes, None]:
        """What the giver gives."""
        giver, passed = self._giver, 0
        async with giver.slots.of(self._taker.identity.public_key):
            if giver.gives is Gives.REFUSALS or digest not in giver.checked:
                raise Refused("not here")
            if giver.gives is Gives.SILENCE:
                await self._world._sleep(min(FRAME_STALL_S, peer_deadline_s(payload_bytes)))
                raise Unavailable("nothing came")
            async with aclosing(self._world.given(giver.up, self._taker, payload_bytes, offset)) as pieces:
                async for piece in pieces:
                    passed += len(piece)
                    if giver.gives is Gives.HALVES and 2 * passed > payload_bytes - offset:
                        raise Unavailable("it died")
                    yield FALSE[: len(piece)] if giver.gives is Gives.GARBAGE else piece


class _Everybody:
    """A session table in which all are."""

    def __init__(self, workers: Iterable[Any]) -> None:
        self._workers = frozenset(workers)

    def has(self, worker: Any) -> bool:
        """Whether it is one of them."""
        return worker in self._workers

    def __len__(self) -> int:
        return len(self._workers)
