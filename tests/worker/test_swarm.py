"""The fetching side alone: whose bytes were wrong, who is gone to again, and what a coordinator may tell it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from peering.limits import MAX_CERTIFICATE_BYTES
from peering.line import holder_name, may_dial
from protocol.errors import DigestMismatch, RateLimited, Refused, RemoteError, Unauthenticated, Unavailable
from protocol.ids import Digest, digest_of
from protocol.manifest import BlockRef
from protocol.tickets import Ticket
from protocol.v1 import barnraise_pb2 as pb
from worker.ports import BlockSource
from worker.swarm import GONE_S, BlockSwarm
from worker.timing import Timing

CONTENT = b"content" * 100
REF = BlockRef(digest=digest_of(CONTENT), payload_bytes=len(CONTENT))
HOLDERS = [pb.Holder(host="127.0.0.1", port=1 + number, certificate=b"%d" % number) for number in range(3)]
NAMES = [holder_name(holder.certificate) for holder in HOLDERS]


class Desk:
    """A coordinator that names all holders, and grants what nobody else may give any more."""

    def __init__(self, holders: list[pb.Holder] | None = None, error: RemoteError | None = None) -> None:
        self.holders, self.error = HOLDERS if holders is None else holders, error
        self.content, self.given = CONTENT, 0
        self.requests: list[pb.SourcesRequest] = []
        self.avoided: set[Digest] = set()

    async def patiently(self, step: Callable[[], Awaitable[Any]]) -> Any:
        return await step()

    async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        self.avoided |= {Digest(one.hex()) for one in request.failed}
        reply = pb.SourcesReply(holders=self.holders)
        usable = [n for n, one in enumerate(self.holders) if holder_name(one.certificate) not in self.avoided]
        for digest in request.wanted:
            reply.sources.add(digest=digest, holders=usable, granted=not usable)
        return reply

    async def block(self, _digest: Digest, _size: int, offset: int) -> AsyncGenerator[bytes, None]:
        self.given += 1
        yield self.content[offset:]


class Line:
    """One that gives what a test wants."""

    def __init__(self, name: Digest, answers: list[bytes | RemoteError]) -> None:
        self.name, self.answers = name, answers
        self.ticket: Ticket | None = None
        self.asked = 0

    async def close(self) -> None:
        pass

    async def block(self, _digest: Digest, _size: int, offset: int) -> AsyncGenerator[bytes, None]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, RemoteError):
            raise answer
        yield answer[offset:]


class Disk:
    """Keeps what came, as the block cache does."""

    def __init__(self, here: bytes = b"") -> None:
        self.here = here

    async def take(self, source: BlockSource) -> None:
        async for piece in source.block(REF.digest, REF.payload_bytes, len(self.here)):
            self.here += piece
        if len(self.here) < len(CONTENT):
            raise Unavailable("broke off")
        if self.here != CONTENT:
            self.here = b""
            raise DigestMismatch("another block")


class Clock:
    """Time that passes as somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


Brought = tuple[Disk, dict[Digest, Line]]


async def brought(
    desk: Desk,
    answers: dict[int, list[bytes | RemoteError]],
    here: bytes = b"",
    near: str = "127.0.0.1",
    clock: Clock | None = None,
) -> Brought:
    lines = {NAMES[number]: Line(NAMES[number], what) for number, what in answers.items()}
    swarm = BlockSwarm(
        desk,  # type: ignore[arg-type]  # as much of one as is asked
        lambda holder: lines[holder_name(holder.certificate)],
        Timing(sleep=lambda _s: asyncio.sleep(0)) if clock is None else Timing(clock=clock, sleep=clock.sleep),
        near=near,
    )
    disk = Disk(here)
    async with asyncio.timeout(5):
        await swarm.bring(REF, disk.take)
        if swarm._asking is not None:  # what came is told, too
            await swarm._asking
    return disk, lines


async def test_a_block_comes_from_a_holder_and_the_coordinator_hears_of_it() -> None:
    desk = Desk()
    disk, _ = await brought(desk, {0: [CONTENT]})
    assert disk.here == CONTENT
    assert desk.given == 0
    assert desk.requests[-1].got == [bytes.fromhex(REF.digest)]


@pytest.mark.parametrize("wrong", [bytes(len(CONTENT)), CONTENT[:9], Unauthenticated("no")])
async def test_a_holder_that_gives_something_else_is_left_for_another(wrong: bytes | RemoteError) -> None:
    desk = Desk()
    disk, lines = await brought(desk, {0: [wrong], 1: [CONTENT]})
    assert disk.here == CONTENT
    assert desk.avoided == {NAMES[0]}
    assert lines[NAMES[0]].asked == 1


async def test_a_busy_holder_is_nobodys_fault() -> None:
    desk = Desk()
    disk, _ = await brought(desk, {0: [RateLimited("come again")], 1: [CONTENT]})
    assert disk.here == CONTENT
    assert desk.avoided == set()


async def test_a_holder_that_has_let_go_of_a_block_is_asked_again_after_a_while() -> None:
    """It tells so when it asks next; between the two it is nobody's fault: seeds 7011642, 7015204, 7017621."""
    desk, clock = Desk(HOLDERS[:1]), Clock()
    disk, lines = await brought(desk, {0: [Refused("not here"), CONTENT]}, clock=clock)
    assert disk.here == CONTENT
    assert (lines[NAMES[0]].asked, desk.avoided, desk.given) == (2, set(), 0)
    assert clock.now_s >= GONE_S / 2


async def test_a_holder_that_never_has_what_it_tells_is_asked_twice() -> None:
    desk = Desk(HOLDERS[:1])
    _, lines = await brought(desk, {0: [Refused("not here")]}, clock=Clock())
    assert (lines[NAMES[0]].asked, desk.avoided, desk.given) == (2, {NAMES[0]}, 1)


async def test_where_all_fail_the_coordinator_gives_it() -> None:
    desk = Desk()
    disk, _ = await brought(desk, {number: [Unavailable("gone")] for number in range(3)})
    assert disk.here == CONTENT
    assert (desk.given, desk.avoided) == (1, set(NAMES))


async def test_half_of_a_lie_does_not_make_the_coordinator_a_liar() -> None:
    """Wrong bytes that a holder gave before it died, or that an earlier process kept, and right ones after them."""
    desk = Desk(HOLDERS[:1])
    disk, _ = await brought(desk, {0: [b"x" * 9]})
    assert disk.here == CONTENT
    assert desk.avoided == {NAMES[0]}
    disk, _ = await brought(Desk([]), {}, here=b"kept by an earlier process")
    assert disk.here == CONTENT


async def test_a_coordinator_whose_own_stream_is_wrong_is_told_so() -> None:
    desk = Desk([])
    desk.content = bytes(len(CONTENT))
    with pytest.raises(DigestMismatch):
        await brought(desk, {})
    assert desk.given == 2


async def test_what_the_question_ends_in_is_what_the_fetch_ends_in() -> None:
    with pytest.raises(Unauthenticated):
        await brought(Desk(error=Unauthenticated("no session")), {})


@pytest.mark.parametrize(
    "holder",
    [
        pb.Holder(host="127.0.0.1", port=0, certificate=b"0"),
        pb.Holder(host="127.0.0.1", port=70_000, certificate=b"0"),
        pb.Holder(host="127.0.0.1", port=1, certificate=bytes(MAX_CERTIFICATE_BYTES + 1)),
        pb.Holder(host="a.name.example", port=1, certificate=b"0"),
    ],
)
async def test_a_holder_that_is_none_is_not_dialled(holder: pb.Holder) -> None:
    desk = Desk([holder])
    disk, _ = await brought(desk, {})
    assert disk.here == CONTENT
    assert desk.given == 1


async def test_places_that_name_nobody_are_passed_over() -> None:
    class Wild(Desk):
        async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
            reply = await super().sources(request)
            if len(self.requests) == 1:
                return pb.SourcesReply(
                    sources=[
                        pb.BlockSources(digest=bytes.fromhex(REF.digest), holders=[7]),
                        pb.BlockSources(digest=b""),
                    ],
                    retry_after_s=float("nan"),
                )
            return reply

    disk, _ = await brought(Wild(), {0: [CONTENT]})
    assert disk.here == CONTENT


async def test_a_holder_at_home_is_not_dialled_for_a_coordinator_out_in_the_world() -> None:
    desk = Desk()
    disk, lines = await brought(desk, {number: [CONTENT] for number in range(3)}, near="coordinator.example.org")
    assert disk.here == CONTENT
    assert desk.given == 1
    assert [line.asked for line in lines.values()] == [0, 0, 0]


def test_a_coordinator_out_in_the_world_sends_nobody_round_their_home() -> None:
    world = "coordinator.example.org"
    assert may_dial("93.184.216.34", world)
    assert may_dial("2606:2800:220:1::1", world)
    for home in ("127.0.0.1", "192.168.1.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1", "fd00::1"):
        assert not may_dial(home, world)
        assert not may_dial(home, "93.184.216.34")
    for near in ("192.168.1.7", "localhost", "127.0.0.1", "trainer", "trainer.local", "trainer.lan"):
        assert may_dial("192.168.1.9", near)
    for none in ("0.0.0.0", "224.0.0.1", "::", "example.org", ""):
        assert not may_dial(none, "127.0.0.1")


async def test_a_lease_that_gets_nothing_in_its_time_leaves_the_next_to_wait_on() -> None:
    """Else leases shorter than the coordinator's patience would end in vain for ever: seed 7002956."""
    desk, now_s = Desk(holders=[]), [100.0]
    desk.avoided.add(NAMES[0])

    async def sleep(_s: float) -> None:
        now_s[0] += 1.0
        await asyncio.sleep(0)

    async def nothing(request: pb.SourcesRequest) -> pb.SourcesReply:
        desk.requests.append(request)
        return pb.SourcesReply()

    desk.sources, sources = nothing, desk.sources  # type: ignore[method-assign]
    timing = Timing(clock=lambda: now_s[0], sleep=sleep)
    swarm = BlockSwarm(desk, lambda _holder: Line(NAMES[0], []), timing, near="127.0.0.1")  # type: ignore[arg-type]
    for _lease in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await swarm.bring(REF, Disk().take)
        await swarm.close()
        now_s[0] += 1000.0  # between two leases nothing is waited for
        waited_s = desk.requests[-1].still_s
        assert waited_s == pytest.approx(len(desk.requests) - 1, abs=3.0)
    desk.sources = sources  # type: ignore[method-assign]
    await swarm.bring(REF, Disk().take)
    assert desk.requests[-2].still_s == pytest.approx(waited_s, abs=3.0)
    await swarm.close()
    now_s[0] += 5.0
    await swarm.bring(REF, Disk().take)
    assert desk.requests[-2].still_s == pytest.approx(0.0, abs=3.0), "something came since"
    await swarm.close()
