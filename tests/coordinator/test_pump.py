"""The pump: durable before applied, applied before executed, answered last; gaps; restarts. Virtual time."""

from __future__ import annotations

import asyncio
import errno

import pytest

from coordinator.engine.commands import GrantLease
from coordinator.engine.events import (
    CoordinatorResumed,
    LeaseRequested,
    SubmissionCommitted,
    WorkerSeen,
    WorkerSilent,
)
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.pump import load_engine
from coordinator.store.journal import Journal
from protocol.errors import IllegalEvent, Unavailable
from protocol.ids import Digest, WorkerId
from protocol.storage import storage_trouble
from tests.coordinator.pump_bench import ANNA, SECRET, Setup, enrolled, kinds, until


async def test_durable_before_applied_applied_before_executed_answered_last(setup: Setup) -> None:
    pump, recorder, journal = setup.open()
    await pump.submit(enrolled())
    commands = await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert kinds(commands) == ["GrantLease"]
    mine = [line for line in recorder.log if "Validat" not in line]
    assert mine == ["WorkerEnrolled", "LeaseRequested", "-> GrantLease", "do GrantLease"]
    assert all(recorder.durable_when_applied)
    await pump.stop()
    journal.close()


async def test_what_queued_up_shares_one_commit(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    pump, _, journal = setup.open()
    sizes: list[int] = []
    append = journal.append

    def counting(records: list[str]) -> int:
        sizes.append(len(records))
        return append(records)

    monkeypatch.setattr(journal, "append", counting)
    workers = [WorkerId(f"{number:032x}") for number in range(50)]
    await asyncio.gather(*(pump.submit(enrolled(worker)) for worker in workers))
    assert sum(sizes) >= 50
    assert len(sizes) <= 4
    await pump.stop()
    journal.close()


async def test_an_illegal_event_is_refused_and_skipped_alike_by_every_replay(setup: Setup) -> None:
    pump, recorder, journal = setup.open()
    await pump.submit(enrolled())
    with pytest.raises(IllegalEvent, match="enrolled already"):
        await pump.submit(enrolled())
    await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert "WorkerEnrolled" in recorder.log
    before = pump.engine.snapshot()
    await pump.stop()
    journal.close()
    again = Journal.open(setup.path)
    engine, _ = load_engine(again, SECRET)
    assert engine.snapshot() == before
    again.close()


async def test_heartbeats_leave_no_record(setup: Setup) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    position = journal.last_position
    pump.seen(WorkerSeen(at_s=1001.0, worker=ANNA, inner_step=3))
    pump.seen(WorkerSeen(at_s=1001.0, worker=WorkerId("f" * 32)))  # nobody we know: noted in the log only
    assert pump.engine.last_seen[ANNA].inner_step == 3
    await pump.submit(LeaseRequested(at_s=1001.0, worker=ANNA))
    assert not [event for event in setup.events()[position:] if isinstance(event, WorkerSeen)]
    await pump.stop()
    journal.close()


async def test_silence_is_found_and_journalled(setup: Setup) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    setup.clock.now_s += 1e4
    other = WorkerId("b" * 32)
    await pump.submit(enrolled(other))  # any event makes the pump look at the clock
    await until(lambda: any(isinstance(event, WorkerSilent) for event in setup.events()))
    (record,) = pump.engine.state.leases.values()
    assert record.status == "expired"
    await pump.stop()
    journal.close()


async def test_a_gap_is_recorded_before_what_came_after_it(setup: Setup) -> None:
    """The machine slept for three hours, and the first thing that reaches it is the commit of who trained meanwhile."""
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    (grant,) = await pump.submit(LeaseRequested(at_s=1000.0, worker=ANNA))
    assert isinstance(grant, GrantLease)
    setup.clock.now_s += 3 * 3600.0
    setup.news = [CoordinatorResumed(at_s=setup.clock.now_s, gap_s=3 * 3600.0)]
    await pump.submit(
        SubmissionCommitted(
            at_s=setup.clock.now_s, worker=ANNA, lease_id=grant.lease.lease_id, digest=Digest("1" * 64),
            payload_bytes=1, codec="fp32", inner_steps_done=grant.lease.inner_steps, train_loss_first=2.0,
            train_loss_last=1.0, train_s=10.0,
        )
    )  # fmt: skip
    assert pump.engine.state.leases[grant.lease.lease_id].status == "committed"
    assert kinds(setup.events())[-2:] == ["CoordinatorResumed", "SubmissionCommitted"]
    await pump.stop()
    journal.close()


async def test_a_gap_that_could_not_be_recorded_still_goes_first(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    pump, _, journal = setup.open()
    await pump.submit(enrolled())
    append, full = journal.append, [True]

    def sometimes(records: list[str]) -> int:
        if full[0]:
            raise storage_trouble(errno.ENOSPC, setup.path)
        return append(records)

    monkeypatch.setattr(journal, "append", sometimes)
    setup.clock.now_s += 1e4
    setup.news = [CoordinatorResumed(at_s=setup.clock.now_s, gap_s=1e4)]
    asked = LeaseRequested(at_s=setup.clock.now_s, worker=ANNA)
    with pytest.raises(Unavailable):
        await pump.submit(asked)
    full[0] = False
    await pump.submit(asked)
    assert kinds(setup.events())[-2:] == ["CoordinatorResumed", "LeaseRequested"]
    await pump.stop()
    journal.close()


async def test_pending_commands_are_done_again_after_a_restart_and_everybody_is_greeted(setup: Setup) -> None:
    pump, first, journal = setup.open()
    await pump.submit(enrolled())
    await until(lambda: not pump.engine.pending)
    assert first.executed == ["validate:v0"]
    await pump.stop()
    journal.close()
    # Cut the result out: the process died after the command, before its event.
    journal = Journal.open(setup.path)
    records = [record for _, record in journal.read() if "VersionValidated" not in record]
    journal.close()
    for path in tuple(setup.path.parent.glob("journal.sqlite*")):
        path.unlink()
    journal = Journal.create(setup.path, engine_version=ENGINE_VERSION)
    journal.append(records)
    journal.close()
    pump, second, journal = setup.open()
    await until(lambda: not pump.engine.pending)
    assert second.executed == ["validate:v0"]
    await until(lambda: any(isinstance(event, CoordinatorResumed) for event in setup.events()))
    await pump.stop()
    journal.close()


async def test_a_submitter_that_goes_away_does_not_take_its_event_along(setup: Setup) -> None:
    pump, _, journal = setup.open()
    task = asyncio.ensure_future(pump.submit(enrolled()))
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: ANNA in pump.engine.state.workers)
    await pump.stop()
    journal.close()
