"""The tracker's promises: few copies from the coordinator, nobody starves, liars cost bounded time and nobody else."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peering import tracker as book
from peering.tracker import Shared, Tracker
from protocol.ids import Digest, WorkerId, digest_of

FALLBACK_S = 20.0
BLOCKS = [digest_of(b"block %d" % number) for number in range(8)]


def worker(number: int) -> WorkerId:
    return WorkerId(digest_of(b"worker %d" % number))


def shared(number: int) -> Shared:
    certificate = b"certificate %d" % number
    return Shared(host="192.0.2.1", port=1000 + number, certificate=certificate, name=digest_of(certificate))


def of_sharers(*numbers: int, copies: int = 2) -> Tracker:
    tracker = Tracker(copies=copies, fallback_s=FALLBACK_S)
    for number in numbers:
        tracker.share(worker(number), shared(number))
    return tracker


def granted(tracker: Tracker, number: int, wanted: list[Digest], now_s: float = 0.0, still_s: float = 0.0) -> set[str]:
    return {one.digest for one in tracker.ask(worker(number), wanted, now_s, still_s=still_s) if one.granted}


def holders(tracker: Tracker, number: int, digest: Digest, now_s: float = 0.0) -> set[Shared]:
    return {one for source in tracker.ask(worker(number), [digest], now_s) for one in source.holders}


def test_where_nobody_shares_everything_is_the_coordinators_at_once() -> None:
    tracker = of_sharers()
    assert not tracker.anybody_shares
    assert granted(tracker, 0, BLOCKS) == set(BLOCKS)


def test_each_block_is_granted_so_many_times_and_then_comes_from_holders() -> None:
    tracker = of_sharers(0, 1, 2)
    block = BLOCKS[:1]
    assert granted(tracker, 0, block) == granted(tracker, 1, block) == set(block)
    assert tracker.ask(worker(2), block, 0.0) == []
    tracker.got(worker(0), block)
    (source,) = tracker.ask(worker(2), block, 1.0)
    assert source.holders == (shared(0),)
    assert not source.granted


def test_workers_begin_with_different_blocks_the_rarest_first() -> None:
    tracker = of_sharers(0, 1, 2, 3)
    first = [granted(tracker, number, BLOCKS) for number in range(4)]
    assert all(len(one) == book.GRANTS_AT_ONCE for one in first)
    assert set().union(*first) == set(BLOCKS)


def test_a_worker_that_does_not_share_waits_for_those_that_do() -> None:
    tracker = of_sharers(0)
    wanted = BLOCKS[:1]
    assert tracker.ask(worker(9), wanted, 0.0) == []
    assert granted(tracker, 0, wanted, 1.0) == set(wanted)
    assert tracker.ask(worker(9), wanted, 5.0) == []
    tracker.got(worker(0), wanted)
    assert holders(tracker, 9, wanted[0], 6.0) == {shared(0)}


def test_what_no_sharer_wants_is_soon_granted_to_whoever_does() -> None:
    tracker = of_sharers(0)
    assert tracker.ask(worker(9), BLOCKS[:1], 0.0) == []
    assert granted(tracker, 9, BLOCKS[:1], book.FIRST_WAIT_S) == set(BLOCKS[:1])


def test_a_grant_lapses_unless_it_is_renewed() -> None:
    tracker = of_sharers(0, 1, copies=1)
    block = BLOCKS[:1]
    assert granted(tracker, 0, block) == set(block)
    tracker.renew(worker(0), block, 20.0)
    assert tracker.ask(worker(1), block, book.GRANT_S + 1.0) == []
    assert granted(tracker, 1, block, 20.0 + book.GRANT_S) == set(block)
    # and whoever let it lapse has lost its turn until it comes to something
    tracker.got(worker(1), block)
    assert granted(tracker, 0, BLOCKS[1:2], 60.0) == set()
    assert granted(tracker, 0, BLOCKS[1:2], 60.0, still_s=FALLBACK_S) == set(BLOCKS[1:2])
    tracker.got(worker(0), BLOCKS[1:2])
    assert granted(tracker, 0, BLOCKS[2:3], 61.0) == set(BLOCKS[2:3])


def test_a_grant_cannot_be_renewed_for_ever() -> None:
    tracker = of_sharers(0, 1, copies=1)
    assert granted(tracker, 0, BLOCKS[:1])
    now_s = 0.0
    while now_s < book.MOST_GRANT_S:
        tracker.renew(worker(0), BLOCKS[:1], now_s)
        now_s += 10.0
    assert granted(tracker, 1, BLOCKS[:1], now_s) == set(BLOCKS[:1])


def test_a_word_against_a_holder_counts_for_whoever_says_it_alone() -> None:
    tracker = of_sharers(0, 1, 2)
    tracker.got(worker(0), BLOCKS[:1])
    tracker.failed(worker(1), [shared(0).name], 0.0)
    assert holders(tracker, 1, BLOCKS[0]) == set()
    assert holders(tracker, 2, BLOCKS[0]) == {shared(0)}
    assert holders(tracker, 1, BLOCKS[0], book.AVOIDED_S) == {shared(0)}
    tracker.failed(worker(1), [shared(0).name], 200.0)
    assert holders(tracker, 1, BLOCKS[0], 200.0 + 1.5 * book.AVOIDED_S) == set()


def test_strange_names_are_not_remembered() -> None:
    tracker = of_sharers(0)
    tracker.failed(worker(1), [digest_of(b"%d" % number) for number in range(100)], 0.0)
    assert len(tracker._of(worker(1)).failed_by) == 0


def test_whoever_is_gone_holds_nothing_and_is_nobodys_hope() -> None:
    here = {worker(0), worker(1)}
    tracker = Tracker(copies=1, fallback_s=FALLBACK_S, is_here=lambda one: one in here)
    for number in (0, 1):
        tracker.share(worker(number), shared(number))
    assert granted(tracker, 0, BLOCKS[:1]) == set(BLOCKS[:1])
    tracker.got(worker(0), BLOCKS[:1])
    assert holders(tracker, 1, BLOCKS[0]) == {shared(0)}
    here.discard(worker(0))
    assert granted(tracker, 1, BLOCKS[:1]) == set(BLOCKS[:1])


def test_what_a_worker_told_before_counts_no_more_once_it_tells_everything() -> None:
    tracker = of_sharers(0, 1)
    tracker.got(worker(0), BLOCKS[:4])
    tracker.gone(worker(0), BLOCKS[:1])
    assert tracker.known(worker(0)) == 3
    tracker.got(worker(0), BLOCKS[2:3], whole=True)
    assert tracker.known(worker(0)) == 1
    tracker.keep(lambda digest: digest != BLOCKS[2])
    assert tracker.known(worker(0)) == 0


# ---- a swarm of honest workers and liars ----------------------------------------------------------------------------

STEP_S = 1.0
STALL_S = 5.0


@dataclass
class Machine:
    """Takes one block at a time: from the coordinator in one step, from a peer in two, from a liar in vain."""

    number: int
    shares: bool
    lies: bool
    has: set[Digest] = field(default_factory=set)
    busy_until_s: float = 0.0
    moved_s: float = 0.0
    finished_s: float | None = None


def played(sharers: int, others: int, liars: int, copies: int, seed: int) -> tuple[dict[Digest, int], list[Machine]]:
    """How often each block left the coordinator, and who ended how. Liars claim everything and give nothing."""
    draw = random.Random(seed)
    tracker = Tracker(copies=copies, fallback_s=FALLBACK_S)
    machines = [Machine(n, shares=n < sharers + liars, lies=n < liars) for n in range(sharers + others + liars)]
    taken = dict.fromkeys(BLOCKS, 0)
    for one in machines:
        if one.shares:
            tracker.share(worker(one.number), shared(one.number))
        if one.lies and draw.random() < 0.5:
            tracker.got(worker(one.number), BLOCKS)
    by_name = {shared(one.number).name: one for one in machines}
    now_s = 0.0
    while any(one.finished_s is None for one in machines if not one.lies) and now_s < 2000.0:
        draw.shuffle(machines)
        for one in machines:
            if one.busy_until_s > now_s or one.finished_s is not None:
                continue
            _step(tracker, one, by_name, taken, now_s, draw)
        now_s += STEP_S
    return taken, machines


def _step(
    tracker: Tracker, one: Machine, by_name: dict[Digest, Machine], taken: dict[Digest, int], now_s: float,
    draw: random.Random,
) -> None:  # fmt: skip
    wanted = [digest for digest in BLOCKS if digest not in one.has]
    if not wanted:
        one.finished_s = now_s
        return
    sources = tracker.ask(worker(one.number), wanted, now_s, still_s=now_s - one.moved_s)
    if one.lies:  # takes the turns of others, never the bytes; says of honest holders that they failed it
        tracker.failed(worker(one.number), [name for name, other in by_name.items() if not other.lies], now_s)
        return
    for source in sources:
        if source.granted:
            taken[source.digest] += 1
        else:
            holder = by_name[draw.choice(source.holders).name]
            if source.digest not in holder.has:
                tracker.failed(worker(one.number), [shared(holder.number).name], now_s)
                one.busy_until_s = now_s + STALL_S
                return
        one.has.add(source.digest)
        one.moved_s = now_s
        one.busy_until_s = now_s + (STEP_S if source.granted else 2 * STEP_S)
        tracker.got(worker(one.number), [source.digest])
        return


@settings(max_examples=60, deadline=None)
@given(
    sharers=st.integers(1, 8), others=st.integers(0, 8), copies=st.integers(1, 3), seed=st.integers(0, 10**6)
)  # fmt: skip
def test_while_holders_deliver_the_coordinator_sends_no_more_than_its_copies(
    sharers: int, others: int, copies: int, seed: int
) -> None:
    taken, machines = played(sharers, others, 0, copies, seed)
    assert all(one.finished_s is not None for one in machines)
    assert max(taken.values()) <= copies


@settings(max_examples=60, deadline=None)
@given(sharers=st.integers(1, 8), others=st.integers(0, 4), liars=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_liars_cost_a_copy_and_bounded_time(sharers: int, others: int, liars: int, seed: int) -> None:
    taken, machines = played(sharers, others, liars, 2, seed)
    honest = [one for one in machines if not one.lies]
    assert all(one.finished_s is not None for one in honest)
    # each liar makes each worker wait for one stall, and once for a grant that lapses
    slowest_s = max(one.finished_s or 0.0 for one in honest)
    assert slowest_s <= 10.0 * len(BLOCKS) + liars * (STALL_S + book.GRANT_S) + 4 * FALLBACK_S
    if others == 0:
        assert sum(taken.values()) <= 3 * len(BLOCKS)


@pytest.mark.parametrize("still_s", [FALLBACK_S, 10 * FALLBACK_S])
def test_whoever_got_nothing_for_long_is_granted_whatever_is_known(still_s: float) -> None:
    tracker = of_sharers(0, 1, 2)
    for number in (0, 1):
        tracker.got(worker(number), BLOCKS)
    assert granted(tracker, 9, BLOCKS) == set()
    assert len(granted(tracker, 9, BLOCKS, still_s, still_s)) == book.GRANTS_AT_ONCE


def test_of_many_that_wait_for_a_silent_holder_one_falls_back_at_a_time() -> None:
    """Seed 100092 of the deterministic simulation: five took the block at once, with one copy set."""
    tracker, block = of_sharers(*range(7), copies=1), BLOCKS[:1]
    assert granted(tracker, 0, block)
    tracker.got(worker(0), block)  # and gives it to nobody
    late_s = FALLBACK_S
    assert granted(tracker, 1, block, late_s, still_s=late_s) == set(block)
    for number in range(2, 7):
        assert not granted(tracker, number, block, late_s + 1.0, still_s=late_s + 1.0)
    tracker.got(worker(1), block)
    assert holders(tracker, 2, block[0], late_s + 2.0) == {shared(0), shared(1)}


def test_a_silent_taker_holds_nobody_up_for_good() -> None:
    tracker, block = of_sharers(*range(6), copies=1), BLOCKS[:1]
    began: dict[int, float] = {}
    for second in range(int(4 * FALLBACK_S) + 2):
        for number in range(6):
            tracker.renew(worker(number), block, float(second))  # all of them take it, and none comes to an end
            if granted(tracker, number, block, float(second), still_s=float(second)):
                began.setdefault(number, second)
    assert sorted(began.values()) == [0, *(FALLBACK_S * times for times in (2, 3, 4))]


def test_whoever_is_behind_relays_is_named_last_and_to_those_that_can_go_there() -> None:
    tracker = of_sharers(0, 1)
    behind = dataclasses.replace(shared(2), host="", port=0, peer_id="12D3", through=("12D3@192.0.2.9:1",))
    tracker.share(worker(2), behind)
    block = BLOCKS[:1]
    tracker.got(worker(2), block)
    assert tracker.ask(worker(3), block, 0.0) == []
    (source,) = tracker.ask(worker(3), block, 0.0, relayed=True)
    assert (source.holders, source.granted) == ((behind,), False)
    tracker.got(worker(1), block)
    for _ in range(3):
        (source,) = tracker.ask(worker(3), block, 0.0, relayed=True)
        assert source.holders == (shared(1), behind)
    assert set(tracker.some_sharers(9)) == {shared(0), shared(1)}
    assert granted(tracker, 4, block, still_s=FALLBACK_S) == set(block)  # who can go nowhere is not left waiting
