"""Bugs planted on purpose, one in each place where such a system has been known to go wrong.

Decides nothing about a run. Each is a small change to the real code that lasts as long as its context: what the
simulation is worth shows in how many seeds it needs to find each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from coordinator.engine import contributions, gaps, leases, quorum, rescue, results, rounds
from coordinator.engine import engine as engine_module
from coordinator.engine.commands import DropPayload
from coordinator.engine.events import FailedAlone, RoundAggregated
from coordinator.engine.index import Index
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.records import event_to_json
from coordinator.engine.tally import was_lost
from coordinator.run import clock as run_clock
from coordinator.run import pump as pump_module
from coordinator.run.clock import RunClock
from coordinator.run.needed import needed_by
from coordinator.run.pump import Pump
from coordinator.store import journal
from protocol.errors import IllegalEvent
from simulator.deterministic import node, work
from simulator.deterministic.disk import MemoryJournal, MemoryPayloads
from worker import messages as m
from worker import session as session_module


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedBug:
    """One mutation."""

    name: str
    what: str
    plant: Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _reply_before_commit() -> AbstractContextManager[None]:
    async def commit(pump: Any, batch: Sequence[Any]) -> None:
        records = [event_to_json(queued.event) for queued in batch]
        for queued, record in zip(batch, records, strict=True):
            pump._apply(queued, record)
        await asyncio.get_running_loop().run_in_executor(pump._writer, pump._journal.append, records)

    return _replaced(Pump, "_commit", commit)


def _journal_without_sync() -> AbstractContextManager[None]:
    write = MemoryJournal._write

    def unsynced(handle: Any, records: Sequence[str]) -> None:
        write(handle, records)
        handle._disk.unsynced_records = handle._disk.records[-len(records) :]

    return _replaced(MemoryJournal, "_write", unsynced)


def _apply_twice() -> AbstractContextManager[None]:
    apply = Pump._apply

    def twice(pump: Any, queued: Any, *rest: Any) -> None:
        with contextlib.suppress(IllegalEvent):
            pump.engine.handle(queued.event)
        apply(pump, queued, *rest)

    return _replaced(Pump, "_apply", twice)


@contextlib.contextmanager
def _no_compare_and_set() -> Iterator[None]:
    """Any result of an aggregation is published, whether or not it is the one that was asked for."""
    asked: dict[str, Any] = {}

    def publish(turn: Any, event: RoundAggregated) -> None:
        command = turn.state.pending.get(event.command_id) or asked.get(event.command_id)
        if command is None:
            raise IllegalEvent("never asked for")
        asked[event.command_id] = command
        if turn.state.phase is not Phase.AGGREGATING:
            turn.state.phase = Phase.AGGREGATING
        rounds.publish(turn, event, command)

    legal = {**engine_module.LEGAL_EVENTS, RoundAggregated: frozenset(Phase)}
    with _replaced(results, "on_round_aggregated", publish), _replaced(engine_module, "LEGAL_EVENTS", legal):
        yield


def _pending_forgotten() -> AbstractContextManager[None]:
    start = Pump.start

    def forgetful(pump: Any) -> None:
        push, pump._push_slow = pump._push_slow, lambda _: None
        start(pump)
        pump._push_slow = push

    return _replaced(Pump, "start", forgetful)


def _counted_again() -> AbstractContextManager[None]:
    def countable(state: Any) -> list[Any]:
        return [
            record
            for record in state.leases.values()
            if record.status is LeaseStatus.ACCEPTED and state.staleness_of(record.lease) <= state.config.max_staleness
        ]

    return _replaced(contributions, "countable", countable)


def _column_leased_twice() -> AbstractContextManager[None]:
    def to_replace(standings: Any, _worker: Any) -> set[int]:
        return set(standings.replaceable())

    return _replaced(quorum.Standings, "to_replace", to_replace)


def _owner_seated_twice() -> AbstractContextManager[None]:
    def as_if_unowned(standings: Any, worker: Any) -> set[int]:
        state = standings._state
        current = [r for r in state.leases_of(worker) if r.lease.round == state.round.round and not was_lost(r)]
        return set(range(state.config.columns)).difference(*(record.lease.columns for record in current))

    return _replaced(quorum.Standings, "open_to", as_if_unowned)


def _owner_back_from_silence() -> AbstractContextManager[None]:
    def nobody(_index: Any, _number: Any, _owner: Any) -> frozenset[int]:
        return frozenset()

    refusal = leases._refusal

    def blind(turn: Any, record: Any, event: Any) -> Any:
        with _replaced(Index, "seats", nobody):
            return refusal(turn, record, event)

    return _replaced(leases, "_refusal", blind)


def _owner_votes_twice() -> AbstractContextManager[None]:
    def everybody(_state: Any, records: Sequence[Any]) -> set[Any]:
        return {record.lease.lease_id for record in records}

    return _replaced(contributions, "_trunk_voters", everybody)


def _snapshot_one_behind() -> AbstractContextManager[None]:
    honest = journal.Snapshot

    def behind(*, position: int, **rest: Any) -> Any:
        return honest(position=position - 1, **rest)

    return _replaced(pump_module, "Snapshot", behind)


def _snapshot_claims_later() -> AbstractContextManager[None]:
    save = MemoryJournal.save_snapshot

    def claiming(handle: Any, snapshot: journal.Snapshot) -> None:
        save(handle, replace(snapshot, position=handle.last_position))

    return _replaced(MemoryJournal, "save_snapshot", claiming)


def _payload_without_sync() -> AbstractContextManager[None]:
    keep = MemoryPayloads.keep

    def unsynced(payloads: Any, digest: Any, content: bytes) -> None:
        keep(payloads, digest, content)
        payloads._disk.unsynced_payloads[digest] = content

    return _replaced(MemoryPayloads, "keep", unsynced)


def _payload_dropped_early() -> AbstractContextManager[None]:
    accept = leases.accept

    def hasty(turn: Any, lease_id: Any, verdict: Any) -> None:
        accept(turn, lease_id, verdict)
        turn.emit(DropPayload(digest=turn.state.leases[lease_id].digest))

    return _replaced(leases, "accept", hasty)


def _data_named_twice() -> AbstractContextManager[None]:
    take = leases._take_data

    def sticky(turn: Any, count: int) -> Any:
        data = take(turn, count)
        turn.state.next_sequence -= count // 2
        return data

    return _replaced(leases, "_take_data", sticky)


def _base_swept_early() -> AbstractContextManager[None]:
    def newest_only(state: Any) -> Any:
        return replace(needed_by(state), oldest_version=int(state.version) + 1)

    swept = _replaced(node, "needed_by", newest_only)

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        keep_from = work.CheapExecutor._keep_from

        def eager(executor: Any, oldest: int) -> None:
            keep_from(executor, max(oldest, executor._oldest_needed()))

        with swept, _replaced(work.CheapExecutor, "_keep_from", eager):
            yield

    return both()


def _wall_clock_decides() -> AbstractContextManager[None]:
    def by_the_calendar(clock: Any) -> float:
        return float(clock.wall_s())

    return _replaced(RunClock, "now_s", by_the_calendar)


def _gap_forgotten() -> AbstractContextManager[None]:
    bridge = gaps.bridge
    return _replaced(gaps, "bridge", lambda turn, _gap_s: bridge(turn, 0.0))


def _suspend_unnoticed() -> AbstractContextManager[None]:
    return _replaced(run_clock, "STOOD_STILL_S", 1e12)


def _outbox_emptied_at_commit() -> AbstractContextManager[None]:
    def careless(session: Any, _: m.Committed) -> list[m.Command]:
        settled: list[m.Command] = session._settle()
        return settled

    handlers = {**session_module._HANDLERS, m.Committed: careless}
    return _replaced(session_module, "_HANDLERS", handlers)


def _aggregated_for_ever() -> AbstractContextManager[None]:
    return _replaced(rescue, "after_failures", lambda turn, command, _: turn.state.put_pending(command))


def _everybody_blamed() -> AbstractContextManager[None]:
    without = rescue.without_those

    def blames(turn: Any, attempt: Any, failed: Any) -> None:
        known = {one.lease_id for one in failed}
        others = [one.lease_id for one in attempt.contributions if one.lease_id not in known]
        without(turn, attempt, [*failed, *(FailedAlone(lease_id=one, error="in its company") for one in others)])

    return _replaced(rescue, "without_those", blames)


PLANTED: tuple[PlantedBug, ...] = (
    PlantedBug(
        name="reply-before-commit",
        what="the answer goes out before its event is durable",
        plant=_reply_before_commit,
    ),
    PlantedBug(
        name="journal-without-sync",
        what="the last commit is lost with the power",
        plant=_journal_without_sync,
    ),
    PlantedBug(
        name="apply-twice",
        what="a journalled event is applied two times",
        plant=_apply_twice,
    ),
    PlantedBug(
        name="no-compare-and-set",
        what="a stale outer step is published again",
        plant=_no_compare_and_set,
    ),
    PlantedBug(
        name="pending-forgotten",
        what="a restart does not issue pending commands again",
        plant=_pending_forgotten,
    ),
    PlantedBug(
        name="counted-again",
        what="a submission counts in the next round, too",
        plant=_counted_again,
    ),
    PlantedBug(
        name="column-leased-twice",
        what="a worker's second lease repeats its columns",
        plant=_column_leased_twice,
    ),
    PlantedBug(
        name="owner-seated-twice",
        what="two machines of one owner get the same column",
        plant=_owner_seated_twice,
    ),
    PlantedBug(
        name="owner-back-from-silence",
        what="a lost lease counts after all, though its column went to another machine of its owner",
        plant=_owner_back_from_silence,
    ),
    PlantedBug(
        name="owner-votes-twice",
        what="each submission of one owner counts on the trunk",
        plant=_owner_votes_twice,
    ),
    PlantedBug(
        name="snapshot-one-behind",
        what="a snapshot names the position before its own",
        plant=_snapshot_one_behind,
    ),
    PlantedBug(
        name="snapshot-claims-later",
        what="a snapshot claims events that came while it was being written",
        plant=_snapshot_claims_later,
    ),
    PlantedBug(
        name="payload-without-sync",
        what="an upload is acknowledged before it is durable",
        plant=_payload_without_sync,
    ),
    PlantedBug(
        name="payload-dropped-early",
        what="bytes are dropped once accepted, not once counted",
        plant=_payload_dropped_early,
    ),
    PlantedBug(
        name="data-named-twice",
        what="two leases name the same training sequences",
        plant=_data_named_twice,
    ),
    PlantedBug(
        name="base-swept-early",
        what="blocks are swept that an open lease needs",
        plant=_base_swept_early,
    ),
    PlantedBug(
        name="wall-clock-decides",
        what="events carry the wall clock's time",
        plant=_wall_clock_decides,
    ),
    PlantedBug(
        name="gap-forgotten",
        what="deadlines run on while the coordinator is not there",
        plant=_gap_forgotten,
    ),
    PlantedBug(
        name="suspend-unnoticed",
        what="silence runs on while the coordinator's machine sleeps",
        plant=_suspend_unnoticed,
    ),
    PlantedBug(
        name="outbox-emptied-at-commit",
        what="a worker forgets its submission before it is sent",
        plant=_outbox_emptied_at_commit,
    ),
    PlantedBug(
        name="aggregated-for-ever",
        what="an outer step that fails of a submission is tried again without end",
        plant=_aggregated_for_ever,
    ),
    PlantedBug(
        name="everybody-blamed",
        what="where an outer step fails, all who took part are refused for it",
        plant=_everybody_blamed,
    ),
)
"""One for each place where such a bug could be: pump, journal, votes, placement, blobs, data, session."""
