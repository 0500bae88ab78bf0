"""Why things stand as they stand, in words with numbers, from the state alone. Decides nothing.

`waits` says why the round is not closed, `wait_reason` why one worker has no lease; what volunteers read: `telling.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from coordinator.engine import arithmetic, audits, dispatch, measuring, pacing, quorum, rounds, vouching
from coordinator.engine.commands import (
    AggregateRound,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    Remedy,
    ReplayLease,
    SlowCommand,
    TryContributions,
    ValidateVersion,
)
from coordinator.engine.dispatch import Hindrance
from coordinator.engine.phases import LOST_STATUSES, LeaseStatus, Phase
from coordinator.engine.quorum import ColumnStanding, Outlook
from coordinator.engine.reasons import told
from coordinator.engine.rows import LeaseRecord, WorkerRecord
from coordinator.engine.stages import told_to_worker, verdict_told
from coordinator.engine.state import EngineState
from coordinator.engine.trust import trust_of
from coordinator.engine.withholding import MOST_IN_ROW
from protocol.ids import LeaseId, WorkerId

_REMEDIES = {
    Remedy.WITHOUT_HARMFUL: "without those that made it worse",
    Remedy.VOUCHED: "only what is trusted or audited, since all together made it worse",
    Remedy.SHORT: "by a shorter step, since the whole one made it worse",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What is waited for, and why."""

    subject: str
    reason: str


def waits(state: EngineState, now_s: float) -> tuple[Wait, ...]:
    """Everything that keeps the present round from closing (or the run from ending), as of `now_s`."""
    return first_waits(state, now_s, most=sys.maxsize)[0]


def first_waits(state: EngineState, now_s: float, *, most: int) -> tuple[tuple[Wait, ...], int]:
    """The first `most` of the same, and how many there are besides; only these are put into words."""
    at = state.seen_at(state.now_s if state.paused else max(state.now_s, now_s))
    if at.phase is Phase.OVER:
        return (), 0
    if at.hold is not None and (at.paused or at.phase is Phase.GATHERING):
        return (Wait(subject=f"round {at.round.round}", reason=at.hold.told),), 0
    if at.phase is Phase.GATHERING:
        return (_gathering(at),), 0
    if at.phase not in rounds.RUNNING_PHASES:
        making = (AggregateRound, TryContributions, FindHarmful, RebuildVersion)
        wanted = making if at.phase is Phase.AGGREGATING else SlowCommand
        commands = [command for command in at.pending.values() if isinstance(command, wanted)]
        return tuple(_command(at, command) for command in commands[:most]), max(0, len(commands) - most)
    outlook = quorum.outlook_of(at)
    columns = [*_trunk(outlook), *_columns(at, outlook)]
    expected = [record for record in at.leases.values() if at.is_awaited(record)]
    awaited = sorted([*expected, *quorum.absent_commits(at)], key=lambda one: one.status is LeaseStatus.UPLOADED)
    audited, again = list(audits.awaited(at)), measuring.under_way_again(at)
    shown = [*columns, *(_lease(at, record) for record in awaited[: max(0, most - len(columns))])]
    shown = [*shown, *(_audit(at, record) for record in audited[: max(0, most - len(shown))])]
    shown = [*shown, *(_command(at, command) for command in again[: max(0, most - len(shown))])][:most]
    return tuple(shown), len(columns) + len(awaited) + len(audited) + len(again) - len(shown)


def audit_plan(state: EngineState) -> str:
    """How much is computed again in this run, and by whom."""
    config = state.config.audits
    if config.budget <= 0.0:
        return "none: no lease is computed again (audits.budget is 0)"
    by = "the coordinator or trusted workers" if config.by_coordinator else "trusted workers alone"
    return f"leases are computed again by {by}, {config.budget:g} a round at most"


def common_reason(state: EngineState) -> str | None:
    """Why nobody at all has a new lease; None where each worker has a reason of its own. Looks at every worker."""
    if state.phase is Phase.OVER:
        return f"the run is over: {state.end_reason}"
    if state.phase is Phase.GATHERING:
        return _gathering(state).reason
    if state.phase is Phase.AGGREGATING:
        return f"round {state.round.round} is being aggregated; the next round opens soon"
    if state.phase is Phase.FINISHING:
        return "the run took its last step; it is being validated and exported"
    return None


def wait_reason(state: EngineState, record: WorkerRecord, common: str | None = None) -> str:
    """Why this worker has no new lease. `common`: what `common_reason` said, where it was asked already."""
    standing = dispatch.hindrance_of(state, record)
    if standing is not None:
        return _hindrance(state, record, standing)
    common = common or common_reason(state)
    if common is not None:
        return common
    open_lease = state.open_lease_of(record.worker)
    if open_lease is not None:
        return f"it holds lease {open_lease.lease.lease_id}"
    refusal = dispatch.refusal_now(state, quorum.Standings(state), pacing.pace_of(state), record)
    if refusal is not None:
        return _hindrance(state, record, refusal)
    if state.round.granting:
        return f"round {state.round.round} is handing out its leases; its turn comes at once"
    return f"round {state.round.round} has a lease for it as soon as it asks"


def lease_ended(state: EngineState, worker: WorkerId, lease_id: LeaseId) -> str | None:
    """Why going on with this lease is worth nothing, in words for its worker; None while it is not."""
    record = state.leases.get(lease_id)
    if record is None or record.lease.worker != worker:
        return f"lease {lease_id} is not known any more"
    if record.status in LOST_STATUSES:
        return told_to_worker(record.ended) if record.ended else ""
    return verdict_told(record.verdict) if record.status is LeaseStatus.REJECTED and record.verdict else None


def cautions(state: EngineState) -> tuple[str, ...]:
    """What keeps an operator from taking the run's versions on trust."""
    found: list[str] = []
    if state.withheld_in_row >= MOST_IN_ROW:
        why = next((told(row.withheld[-1]) for row in reversed(state.history) if row.withheld), "")
        found.append(
            f"{state.withheld_in_row} rounds in a row withheld: {why}. Leaving nobody out mended it: is the learning "
            "rate too high, or are most workers liars? Trusted or audited work alone is taken, and by short steps"
        )
    config = state.config
    replays = config.audits.budget > 0.0 and config.audits.by_coordinator
    if config.open_run and not replays and not any(one.trusted for one in state.workers.values()):
        found.append(
            "this run is open, and nobody vouches for what strangers send: the coordinator computes no lease again "
            "(audits.budget, audits.by_coordinator), and nobody is in it who was invited with --trusted"
        )
    found += [said for said in (arithmetic.caution(config), arithmetic.caution_of_workers(state)) if said]
    thin = state.history[-1].thin if state.history else 0
    if thin and not vouching.anyone_vouches(state):
        found.append(f"unaudited: fewer than three owners on {thin} blocks and nobody trusted")
    elif thin:
        found.append(f"fewer than three owners on {thin} blocks: only trusted or audited work counts there")
    return tuple(found)


def _hindrance(state: EngineState, record: WorkerRecord, hindrance: Hindrance) -> str:
    number = state.round.round
    cooling_s = record.cooling_until_s - state.now_s
    held = state.hold.told if state.hold else ""
    words = {
        Hindrance.PAUSED: held,
        Hindrance.DRAINING: held,
        Hindrance.BANNED: f"banned: {told(record.ban.why) if record.ban else ''}",
        Hindrance.SET_ASIDE: f"set aside: {told(record.quarantine.why) if record.quarantine else ''}",
        Hindrance.OFFERS_TOO_LITTLE: f"it offers {record.max_columns} columns, and this run needs "
        f"{state.config.min_columns} a worker",
        Hindrance.COOLING: f"it lost more than one lease in round {number}; leased again in {cooling_s:.0f} s",
        Hindrance.REFUSED: f"its submission to round {number} was refused; it may take part in the next",
        Hindrance.PAST_DEADLINE: f"the deadline of round {number} has passed; the next round opens soon",
        Hindrance.PART_IS_DONE: f"it has done its part of round {number}; the next round opens when this one closes",
        Hindrance.SAME_OWNER: f"{record.owner or 'its owner'}'s other machines have the columns of round {number} that"
        " it could take; it may take part in the next",
        Hindrance.QUORUM_REACHED: f"every column of round {number} has its quorum; the next round opens soon",
        Hindrance.TOO_LITTLE_TIME: f"too little is left of round {number} for one lease; the next round opens soon",
    }
    return words[hindrance]


def _gathering(state: EngineState) -> Wait:
    subject, config = f"round {state.round.round}", state.config
    ready, wanted = sum(1 for _ in dispatch.workers_here(state)), rounds.workers_wanted(state)
    if ready >= wanted:
        left_s = rounds.gathering_left_s(state)
        return Wait(subject=subject, reason=f"{ready} workers are waiting; {left_s:.1f} s left for more to come")
    workers = state.workers.values()
    aside = sum(1 for record in workers if not trust_of(state.config, record).may_hold)
    cooling = sum(
        1 for record in workers if dispatch.is_waiting(state, record) and record.cooling_until_s > state.now_s
    )
    details = [f"{len(state.workers)} enrolled", f"{sum(record.present for record in workers)} here"]
    details += [f"{aside} set aside"] if aside else []
    details += [f"{cooling} leased again within {config.min_lease_s:.0f} s of losing a lease"] if cooling else []
    return Wait(subject=subject, reason=f"{ready} of {wanted} workers are waiting for a lease ({', '.join(details)})")


def _columns(state: EngineState, outlook: Outlook) -> list[Wait]:
    """One line for each group of columns that stand alike."""
    by_reason: dict[str, list[int]] = {}
    for standing in outlook.standings.columns:
        reason = _column_reason(state, outlook, standing)
        if reason:
            by_reason.setdefault(reason, []).append(standing.column)
    return [Wait(subject=_subject(columns), reason=reason) for reason, columns in by_reason.items()]


def _trunk(outlook: Outlook) -> list[Wait]:
    """One line while owners above half are still to report."""
    standings = outlook.standings
    votes, standby = standings.trunk, standings.standby
    if votes.due_count and not standings.is_trunk_settled():
        what = "" if 2 * votes.given_count <= votes.due_count else ", and not above half of the sequences"
        reason = f"{votes.given_count} of {votes.due_count} owners reported{what}; more than half must"
        return [Wait(subject="trunk", reason=f"{reason}, {votes.awaited} on the way")]
    if standby > votes.due_count:
        reason = f"{standby} owners lost their last leases, more than the {votes.due_count} others: they are waited for"
        return [Wait(subject="trunk", reason=reason)]
    return []


def _column_reason(state: EngineState, outlook: Outlook, standing: ColumnStanding) -> str:
    quorum_size = outlook.standings.quorum
    lost = f", {standing.gone} lost or refused" if standing.gone else ""
    late = f", {standing.in_flight - standing.in_time} not waited for" if standing.in_flight > standing.in_time else ""
    mute = f", {unheard} of them without weight" if (unheard := standing.accepted - standing.weighing) else ""
    reported = f"{standing.accepted} of {standing.leased} replicas reported{mute}{lost}{late}"
    if standing.leased == 0:
        return "nobody here holds it this round"
    if standing.in_time == 0 and (outlook.settled or standing.in_flight == 0):
        return _settled_reason(state, outlook, standing, reported)
    if standing.weighing < quorum_size:
        return f"{reported}, quorum {quorum_size}; {standing.in_flight} on the way"
    if not standing.majority:
        return f"{reported}, quorum {quorum_size} but not above half; {standing.in_time} on the way"
    until_s = state.round.grace_until_s
    if until_s is None:
        return f"{reported}, quorum reached; others are not there yet"
    return f"{reported}, {max(0.0, until_s - state.now_s):.0f} s of grace left"


def _settled_reason(state: EngineState, outlook: Outlook, standing: ColumnStanding, reported: str) -> str:
    quorum_size, wait_s = outlook.standings.quorum, state.round.spare_wait_until_s
    if standing.weighing >= quorum_size:
        return ""
    if not outlook.awaited and wait_s is not None and wait_s > state.now_s:
        return f"{reported}, quorum {quorum_size}: {wait_s - state.now_s:.1f} s left for a spare to be found"
    return f"{reported}, quorum {quorum_size} cannot be reached: nobody idle can serve it"


def _lease(state: EngineState, record: LeaseRecord) -> Wait:
    here = record.status is LeaseStatus.UPLOADED
    reason = f"{record.payload_bytes} bytes arrived; being screened" if here else _lease_reason(state, record)
    return Wait(subject=f"lease {record.lease.lease_id}", reason=reason)


def _audit(state: EngineState, record: LeaseRecord) -> Wait:
    """Who is computing a lease again whose submission hangs on it."""
    lease_id = record.lease.lease_id
    hands = [state.leases[shadow] for shadow in state.index.shadows_of(lease_id)]
    names = [state.called(shadow.lease.worker) for shadow in hands[-1:]]
    if audits.replay_id(lease_id) in state.pending:
        names = ["the coordinator"]
    doing = f"{names[0]} computes it again" if names else "a trusted worker is to compute it again"
    if record.residuals_missing and not record.audit_unpaid:
        doing = "its worker is to send what its encodings kept"
    return Wait(subject=f"audit of lease {lease_id}", reason=f"{doing}: until then its submission has no full weight")


def _lease_reason(state: EngineState, record: LeaseRecord) -> str:
    worker = state.workers[record.lease.worker]
    name = state.called(worker.worker)
    if record.committed_at_s is not None:
        doing = "is uploading" if worker.present else "fell silent; nothing else came, so it is waited for"
        return f"{name} committed {state.now_s - record.committed_at_s:.0f} s ago and {doing}"
    if record.overdue and record.overdue_at_s is not None:
        over_s = state.now_s - record.overdue_at_s
        return f"{name} is overdue by {over_s:.0f} s: it may still come, and is not waited for"
    held_s, left_s = state.now_s - record.lease.granted_at_s, record.lease.deadline_s - state.now_s
    return f"{name} trains {record.lease.inner_steps} steps since {held_s:.0f} s; {left_s:.0f} s to its deadline"


def _command(state: EngineState, command: SlowCommand) -> Wait:
    failure = state.failures.get(command.command_id)
    tried = f"; failed {failure.count} times so far ({failure.error}), to be tried again" if failure else ""
    return Wait(subject=command.command_id, reason=_doing(command) + tried)


def _doing(command: SlowCommand) -> str:
    if isinstance(command, AggregateRound):
        how = ", each block by what works for it" if command.cautious else ""
        how += f", {_REMEDIES[command.remedy]}" if command.remedy else ""
        return f"aggregating {len(command.contributions)} submissions into version {command.version}{how}"
    if isinstance(command, FindHarmful):
        return f"looking which of {len(command.suspects)} submissions made version {command.attempt.version} worse"
    if isinstance(command, TryContributions):
        tried = command.attempt
        return f"trying the {len(tried.contributions)} submissions of round {tried.round} one by one: not all aggregate"
    if isinstance(command, RebuildVersion):
        again = f"{len(command.steps)} outer steps again from version {command.from_version} on"
        return f"taking {again}, without banned workers, into version {command.version}"
    if isinstance(command, MeasureSubmission):
        if command.command_id == measuring.again_id(command.lease.lease_id):
            return f"measuring lease {command.lease.lease_id} again: a worker's word on it is not enough"
        return f"screening lease {command.lease.lease_id}"
    if isinstance(command, ReplayLease | CompareSubmissions):
        return f"auditing lease {command.lease.lease_id}"
    kind = "validating" if isinstance(command, ValidateVersion) else "exporting"
    return f"{kind} version {getattr(command, 'version', '?')}"


def _subject(columns: list[int]) -> str:
    """`column 5`, `columns 0-3, 7`."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][1] + 1:
            runs[-1][1] = column
        else:
            runs.append([column, column])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"column {text}" if len(columns) == 1 else f"columns {text}"
