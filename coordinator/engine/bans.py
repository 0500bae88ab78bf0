"""Who is shut out: bans of a key, of an owner's machines and of an invite's, what follows from one, and how it ends.

Decides what becomes of a banned worker's leases: what is out is cancelled, what has not counted is withdrawn, a round
that is being aggregated is begun again without it; what counted stays counted (a rollback takes that back). Holds
always: said twice, a ban changes nothing; an owner's or an invite's later keys are banned from the start; whoever comes
back weighs nothing until it has sent valid work, unless it was wronged (a pardon).
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.engine import audits, closing, leases, measuring
from coordinator.engine import contributions as votes
from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, FindHarmful, ShutOut, SlowCommand, TryContributions
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import BANNED, Case, reason, rejected
from coordinator.engine.rows import Ban, BanOf, WorkerRecord
from coordinator.engine.sequential import RankTest
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import WorkerId

BY_ENGINE = "engine"


def let_in(turn: Turn, record: WorkerRecord) -> None:
    """A new worker, banned where its owner or its invite is."""
    state = turn.state
    ban = state.banned_owners.get(record.owner) if record.owner else None
    ban = ban or (state.banned_invites.get(record.invite) if record.invite else None)
    state.put_worker(replace(record, ban=ban))


def on_worker_banned(turn: Turn, event: ev.WorkerBanned) -> None:
    """The key takes no part any more."""
    shut_out(turn, _known(turn, event.worker), _ban(turn, event, BanOf.KEY))


def on_worker_unbanned(turn: Turn, event: ev.WorkerUnbanned) -> None:
    """It may come back, on probation, unless all of its owner's or its invite's are banned."""
    _take_back(turn, _known(turn, event.worker))


def on_worker_pardoned(turn: Turn, event: ev.WorkerPardoned) -> None:
    """Its record is as if nothing had been said against it; figures of what it sent stay."""
    record = _known(turn, event.worker)
    turn.state.put_worker(
        replace(
            record,
            ban=_group_ban(turn, record),
            quarantine=None,
            quarantines=0,
            refused_lately=0.0,
            probation_left=0,
            audits_failed=0,
            accused=None,
            false_accusations=0,
            appeal=None,
            gain_test=RankTest(),
            harm_test=RankTest(),
            data_test=RankTest(),
        )
    )


def on_owner_banned(turn: Turn, event: ev.OwnerBanned) -> None:
    """All of the owner's machines, and those to come."""
    if not event.owner:
        raise IllegalEvent("a ban of an owner needs the owner's name")
    ban = turn.state.banned_owners.get(event.owner) or _ban(turn, event, BanOf.OWNER)
    turn.state.banned_owners = {**turn.state.banned_owners, event.owner: ban}
    _shut_out_all(turn, [record for record in turn.state.workers.values() if record.owner == event.owner], ban)


def on_owner_unbanned(turn: Turn, event: ev.OwnerUnbanned) -> None:
    """Keys that are banned themselves stay so."""
    state = turn.state
    state.banned_owners = {owner: ban for owner, ban in state.banned_owners.items() if owner != event.owner}
    for record in [one for one in state.workers.values() if one.owner == event.owner and one.owner]:
        if record.ban is not None and record.ban.of is BanOf.OWNER:
            _take_back(turn, record)


def on_invite_banned(turn: Turn, event: ev.InviteBanned) -> None:
    """All keys that came with the invite, and those to come."""
    if not event.invite:
        raise IllegalEvent("a ban of an invite needs its digest")
    ban = turn.state.banned_invites.get(event.invite) or _ban(turn, event, BanOf.INVITE)
    turn.state.banned_invites = {**turn.state.banned_invites, event.invite: ban}
    _shut_out_all(turn, [record for record in turn.state.workers.values() if record.invite == event.invite], ban)


def on_invite_unbanned(turn: Turn, event: ev.InviteUnbanned) -> None:
    """Keys that are banned themselves stay so."""
    state = turn.state
    state.banned_invites = {invite: ban for invite, ban in state.banned_invites.items() if invite != event.invite}
    for record in [one for one in state.workers.values() if one.invite == event.invite and one.invite]:
        if record.ban is not None and record.ban.of is BanOf.INVITE:
            _take_back(turn, record)


def shut_out(turn: Turn, record: WorkerRecord, ban: Ban) -> None:
    """Ban one worker, with all that follows. One that is banned already stays banned for the first reason."""
    if record.ban is not None:
        return
    state, worker = turn.state, record.worker
    state.update_worker(worker, ban=ban, waiting_since_s=None, waits_until_s=None)
    refusal = rejected(BANNED, Case.WORKER_BANNED)
    for lease in list(state.leases_of(worker)):
        lease_id = lease.lease.lease_id
        if lease.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
            leases.expire(turn, lease_id, refusal.why)
        elif lease.status is LeaseStatus.UPLOADED:
            turn.settle(measuring.measure_id(lease_id))
            turn.settle(audits.compare_id(lease_id))  # nor is what it found as an auditor heard
            leases.reject(turn, lease_id, refusal)
        elif lease.status is LeaseStatus.ACCEPTED and lease.counted_in is None:
            leases.withdraw(turn, lease_id, refusal)
    turn.emit(ShutOut(worker=worker, why=ban.why))
    _begin_again_without(turn, worker)


def _begin_again_without(turn: Turn, worker: WorkerId) -> None:
    """What is being aggregated is aggregated without the worker's submissions; of nothing the round makes nothing."""
    state = turn.state
    for command in list(state.pending.values()):
        attempt = command.attempt if isinstance(command, TryContributions | FindHarmful) else command
        if not isinstance(attempt, AggregateRound):
            continue
        rest = tuple(one for one in attempt.contributions if state.leases[one.lease_id].lease.worker != worker)
        if len(rest) == len(attempt.contributions):
            continue
        turn.settle(command.command_id)
        if not rest:
            closing.publish_nothing(turn, reason(Case.NOTHING_ACCEPTABLE))
            return
        clips = votes.clips_of(state, [state.leases[one.lease_id] for one in rest], rest)
        turn.emit(_renewed(command, replace(attempt, contributions=rest, clips=clips), worker))


def _renewed(command: SlowCommand, attempt: AggregateRound, worker: WorkerId) -> SlowCommand:
    """The same command for fewer contributions, under another id: a result of the former is too late. Whom a search for
    what harms was about may have been the harm: without it the version is tried before anybody else is looked for."""
    command_id = f"{command.command_id}:without:{worker[:16]}"
    if isinstance(command, TryContributions):
        return TryContributions(command_id=command_id, attempt=attempt)
    return replace(attempt, command_id=f"{attempt.command_id}:without:{worker[:16]}")


def _shut_out_all(turn: Turn, records: list[WorkerRecord], ban: Ban) -> None:
    for record in records:
        shut_out(turn, record, ban)


def _take_back(turn: Turn, record: WorkerRecord) -> None:
    if record.ban is None:
        return
    probation = turn.state.config.reputation.probation
    turn.state.put_worker(replace(record, ban=_group_ban(turn, record), accused=None, probation_left=probation))


def _group_ban(turn: Turn, record: WorkerRecord) -> Ban | None:
    """The ban of its owner or its invite, which a key's own pardon leaves."""
    state = turn.state
    of_owner = state.banned_owners.get(record.owner) if record.owner else None
    return of_owner or (state.banned_invites.get(record.invite) if record.invite else None)


def _ban(turn: Turn, event: ev.WorkerBanned | ev.OwnerBanned | ev.InviteBanned, of: BanOf) -> Ban:
    return Ban(at_s=turn.state.now_s, by=event.by, why=reason(Case.BANNED, event.why), of=of)


def _known(turn: Turn, worker: WorkerId) -> WorkerRecord:
    record = turn.state.workers.get(worker)
    if record is None:
        raise IllegalEvent(f"worker {worker} is not enrolled in run {turn.state.config.run_id}")
    return record
