"""Bugs of a coordinator, planted on purpose: each is a small change to the real code, as long as its context lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from coordinator.engine import closing, commits, contributions, gaps, leases, measuring, quorum, rescue
from coordinator.engine import engine as engine_module
from coordinator.engine.commands import DropPayload
from coordinator.engine.event_table import EVENT_TABLE, EventRow
from coordinator.engine.events import FailedAlone, RoundAggregated, SettingChanged
from coordinator.engine.index import Index
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.records import event_to_json
from coordinator.engine.tally import was_lost
from coordinator.run import clock as run_clock
from coordinator.run import pump as pump_module
from coordinator.run.clock import RunClock
from coordinator.run.pump import Pump
from coordinator.store.ports import Snapshot
from protocol.errors import IllegalEvent, StorageTrouble
from simulator.deterministic.disk import MemoryJournal, MemoryPayloads
from simulator.deterministic.planting import replaced


def reply_before_commit() -> AbstractContextManager[None]:
    """The answer goes out before its event is durable."""

    async def commit(pump: Any, batch: Sequence[Any]) -> None:
        records = [event_to_json(queued.event) for queued in batch]
        for queued, record in zip(batch, records, strict=True):
            pump._apply(queued, record)
        await asyncio.get_running_loop().run_in_executor(pump._writer, pump._journal.append, records)

    return replaced(Pump, "_commit", commit)


def journal_without_sync() -> AbstractContextManager[None]:
    """The last commit is lost with the power."""
    write = MemoryJournal._write

    def unsynced(handle: Any, records: Sequence[str]) -> None:
        write(handle, records)
        handle._disk.unsynced_records = handle._disk.records[-len(records) :]

    return replaced(MemoryJournal, "_write", unsynced)


def apply_twice() -> AbstractContextManager[None]:
    """A journalled event is applied two times."""
    apply = Pump._apply

    def twice(pump: Any, queued: Any, *rest: Any) -> None:
        with contextlib.suppress(IllegalEvent):
            pump.engine.handle(queued.event)
        apply(pump, queued, *rest)

    return replaced(Pump, "_apply", twice)


@contextlib.contextmanager
def no_compare_and_set() -> Iterator[None]:
    """A stale outer step is published again."""
    asked: dict[str, Any] = {}

    def publish(turn: Any, event: RoundAggregated) -> None:
        command = turn.state.pending.get(event.command_id) or asked.get(event.command_id)
        if command is None:
            raise IllegalEvent("never asked for")
        asked[event.command_id] = command
        if turn.state.phase is not Phase.AGGREGATING:
            turn.state.phase = Phase.AGGREGATING
        closing.publish(turn, event, command)

    anywhere = EventRow(RoundAggregated, frozenset(Phase), publish)
    with replaced(engine_module, "EVENT_TABLE", {**EVENT_TABLE, RoundAggregated: anywhere}):
        yield


def pending_forgotten() -> AbstractContextManager[None]:
    """A restart does not issue pending commands again."""
    start = Pump.start

    def forgetful(pump: Any) -> None:
        push, pump._slow.push = pump._slow.push, lambda _: None
        start(pump)
        pump._slow.push = push

    return replaced(Pump, "start", forgetful)


def counted_again() -> AbstractContextManager[None]:
    """A submission counts in the next round, too."""

    def countable(state: Any) -> list[Any]:
        return [
            record
            for record in state.leases.values()
            if record.status is LeaseStatus.ACCEPTED and state.staleness_of(record.lease) <= state.config.max_staleness
        ]

    return replaced(contributions, "countable", countable)


def column_leased_twice() -> AbstractContextManager[None]:
    """A worker's second lease repeats its columns."""

    def to_replace(standings: Any, _worker: Any) -> set[int]:
        return set(standings.replaceable())

    return replaced(quorum.Standings, "to_replace", to_replace)


def owner_seated_twice() -> AbstractContextManager[None]:
    """Two machines of one owner get the same column."""

    def as_if_unowned(standings: Any, worker: Any) -> set[int]:
        state = standings._state
        current = [r for r in state.leases_of(worker) if r.lease.round == state.round.round and not was_lost(r)]
        return set(range(state.config.columns)).difference(*(record.lease.columns for record in current))

    return replaced(quorum.Standings, "open_to", as_if_unowned)


def owner_back_from_silence() -> AbstractContextManager[None]:
    """A lost lease counts after all, though its column went to another machine of its owner."""

    def nobody(_index: Any, _number: Any, _owner: Any) -> frozenset[int]:
        return frozenset()

    refusal = commits.refusal_of

    def blind(state: Any, record: Any, event: Any) -> Any:
        with replaced(Index, "seats", nobody):
            return refusal(state, record, event)

    return replaced(leases, "refusal_of", blind)


def owner_votes_twice() -> AbstractContextManager[None]:
    """Each submission of one owner counts on the trunk."""

    def everybody(_state: Any, records: Sequence[Any]) -> set[Any]:
        return {record.lease.lease_id for record in records}

    return replaced(contributions, "_trunk_voters", everybody)


def snapshot_one_behind() -> AbstractContextManager[None]:
    """A snapshot names the position before its own."""
    honest = Snapshot

    def behind(*, position: int, **rest: Any) -> Any:
        return honest(position=position - 1, **rest)

    return replaced(pump_module, "Snapshot", behind)


def snapshot_claims_later() -> AbstractContextManager[None]:
    """A snapshot claims events that came while it was being written."""
    save = MemoryJournal.save_snapshot

    def claiming(handle: Any, snapshot: Snapshot) -> None:
        save(handle, replace(snapshot, position=handle.last_position))

    return replaced(MemoryJournal, "save_snapshot", claiming)


def payload_without_sync() -> AbstractContextManager[None]:
    """An upload is acknowledged before it is durable."""
    keep = MemoryPayloads.keep

    def unsynced(payloads: Any, digest: Any, content: bytes) -> None:
        keep(payloads, digest, content)
        payloads._disk.unsynced_payloads[digest] = content

    return replaced(MemoryPayloads, "keep", unsynced)


def payload_dropped_early() -> AbstractContextManager[None]:
    """Bytes are dropped once accepted, not once counted."""
    accept = leases.accept

    def hasty(turn: Any, lease_id: Any, verdict: Any) -> None:
        accept(turn, lease_id, verdict)
        turn.emit(DropPayload(digest=turn.state.leases[lease_id].digest))

    return replaced(leases, "accept", hasty)


def data_named_twice() -> AbstractContextManager[None]:
    """Two leases name the same training sequences."""
    take = measuring.take_data

    def sticky(turn: Any, count: int) -> Any:
        data = take(turn, count)
        turn.state.next_sequence -= count // 2
        return data

    return replaced(measuring, "take_data", sticky)


def base_swept_early() -> AbstractContextManager[None]:
    """Blocks are swept that an open lease needs."""
    return replaced(contributions, "oldest_version_needed", lambda state: state.version + 1)


def wall_clock_decides() -> AbstractContextManager[None]:
    """Events carry the wall clock's time."""

    def by_the_calendar(clock: Any) -> float:
        return float(clock.wall_s())

    return replaced(RunClock, "now_s", by_the_calendar)


def gap_forgotten() -> AbstractContextManager[None]:
    """Deadlines run on while the coordinator is not there."""
    bridge = gaps.bridge
    return replaced(gaps, "bridge", lambda turn, _gap_s: bridge(turn, 0.0))


def suspend_unnoticed() -> AbstractContextManager[None]:
    """Silence runs on while the coordinator's machine sleeps."""
    return replaced(run_clock, "STOOD_STILL_S", 1e12)


def aggregated_for_ever() -> AbstractContextManager[None]:
    """An outer step that fails of a submission is tried again without end."""
    return replaced(rescue, "after_failures", lambda turn, command, _: turn.state.put_pending(command))


def everybody_blamed() -> AbstractContextManager[None]:
    """Where an outer step fails, all who took part are refused for it."""
    without = rescue.without_those

    def blames(turn: Any, attempt: Any, failed: Any) -> None:
        known = {one.lease_id for one in failed}
        others = [one.lease_id for one in attempt.contributions if one.lease_id not in known]
        without(turn, attempt, [*failed, *(FailedAlone(lease_id=one, error="in its company") for one in others)])

    return replaced(rescue, "without_those", blames)


def set_before_durable() -> AbstractContextManager[None]:
    """`set` is applied and answered before its event is durable."""

    async def commit(pump: Any, batch: Sequence[Any]) -> None:
        records = {id(queued): event_to_json(queued.event) for queued in batch}
        hasty = [queued for queued in batch if isinstance(queued.event, SettingChanged)]
        for queued in hasty:
            pump._apply(queued, records[id(queued)])
        append = pump._journal.append
        try:
            await asyncio.get_running_loop().run_in_executor(pump._writer, append, list(records.values()))
        except StorageTrouble as error:
            pump._stall(batch, error)
            return
        for queued in batch:
            if queued not in hasty:
                pump._apply(queued, records[id(queued)])

    return replaced(Pump, "_commit", commit)
