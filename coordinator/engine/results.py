"""Results of slow work, coming back as events: measured, aggregated, validated, exported, or failed.

Decides what a result means for its lease or round. Holds always: a result counts once, for a command that is pending;
a new version is taken only on top of its parent (compare-and-set); what we fail to measure is never held against a
worker.
"""

from __future__ import annotations

from typing import TypeVar

from coordinator.engine import (
    audits,
    closing,
    delegation,
    leases,
    measuring,
    opinions,
    rebuilt,
    rescue,
    trust_region,
    validating,
    withholding,
)
from coordinator.engine.commands import (
    AggregateRound,
    AnnounceVerdict,
    CompareSubmissions,
    FindHarmful,
    MeasureSubmission,
    RebuildVersion,
    ReplayLease,
    SlowCommand,
    TryContributions,
    ValidateVersion,
    WriteCheckpoint,
)
from coordinator.engine.events import (
    CheckpointWritten,
    CommandFailed,
    CommandTrouble,
    ContributionsTried,
    HarmfulFound,
    RoundAggregated,
    SubmissionMeasured,
    VersionValidated,
)
from coordinator.engine.history import Checkpoint, Failure, remembered
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import BANNED, LATE, UNMEASURABLE, Case, rejected
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent

C = TypeVar("C", bound=SlowCommand)

MOST_TRIES = 3
"""After so many failures a measurement is given up, and so is a validation or export. An aggregation is tried another
way after so many that were not the disk's or the memory's; those it waits out."""


def on_submission_measured(turn: Turn, event: SubmissionMeasured) -> None:
    """Judge the submission; a repeated measurement changes nothing."""
    state = turn.state
    record = state.leases.get(event.lease_id)
    if event.command_id == measuring.again_id(event.lease_id):
        if event.command_id in state.pending:
            delegation.on_measured_again(turn, event)
        return
    if record is None or event.command_id != measuring.measure_id(event.lease_id):
        raise IllegalEvent(f"{event.command_id} does not measure a known lease ({event.lease_id})")
    if record.status is not LeaseStatus.UPLOADED:
        if record.status in {LeaseStatus.ACCEPTED, LeaseStatus.REJECTED}:
            return  # judged, or given up, already
        raise IllegalEvent(f"lease {event.lease_id} is {record.status}: its submission was not to be measured")
    lease = record.lease
    missing = set(lease.blocks) ^ {norm.block for norm in event.norms}
    if not event.malformed and missing:
        raise IllegalEvent(f"{event.command_id} must give one norm for each leased block; differs in {sorted(missing)}")
    command = _pending(turn, event.command_id, MeasureSubmission)
    delegation.check_answers(command, event)
    turn.settle(event.command_id)
    delegation.caught(turn, event.false)
    staleness = state.staleness_of(lease)
    if staleness > state.config.max_staleness:
        leases.reject(turn, lease.lease_id, rejected(LATE, Case.JUDGED_ROUNDS_LATE, rounds=staleness))
        return
    verdict = delegation.verdict_on(turn, record, event)
    if delegation.is_to_be_confirmed(turn, command, event, verdict):
        return
    delegation.note_checked(state, event)
    delegation.note_measured(turn, event)
    if not verdict.accepted:
        leases.reject(turn, lease.lease_id, verdict)
        return
    leases.accept(turn, lease.lease_id, verdict)
    audits.draw(turn, lease.lease_id)


def on_round_aggregated(turn: Turn, event: RoundAggregated) -> None:
    """Publish, if this is the version that was asked for, on top of the one that is the run's; withhold a worse one."""
    command = _pending(turn, event.command_id, AggregateRound)
    expected = (command.round, command.version, turn.state.version)
    got = (event.round, event.version, event.parent_version)
    if got != expected:
        raise IllegalEvent(f"{event.command_id} must give (round, version, parent) {expected}, got {got}")
    asked = [one.version for one in command.compared_with]
    if asked != [one.version for one in event.compared]:
        raise IllegalEvent(f"{event.command_id} compares with versions {asked}, got {event.compared}")
    worse = trust_region.why_withheld(turn.state.config.region, event.compared)
    if worse is None:
        closing.publish(turn, event, command)
        return
    turn.settle(event.command_id)
    withholding.withhold(turn, command, worse)


def on_version_validated(turn: Turn, event: VersionValidated) -> None:
    """Note the held-out loss, and who lied of it."""
    command = _pending(turn, event.command_id, ValidateVersion)
    if command.version != event.version:
        raise IllegalEvent(f"{event.command_id} is about version {command.version}, got {event.version}")
    delegation.check_answers(command, event)
    turn.settle(event.command_id)
    if validating.is_to_be_confirmed(turn, command, event):
        return
    validating.note(turn.state, event)
    delegation.caught(turn, event.false)


def on_checkpoint_written(turn: Turn, event: CheckpointWritten) -> None:
    """Note where the export is."""
    command = _pending(turn, event.command_id, WriteCheckpoint)
    if command.version != event.version:
        raise IllegalEvent(f"{event.command_id} is about version {command.version}, got {event.version}")
    turn.settle(event.command_id)
    checkpoint = Checkpoint(version=event.version, path=event.path)
    turn.state.checkpoints = remembered(turn.state.checkpoints, checkpoint)


def on_command_failed(turn: Turn, event: CommandFailed) -> None:
    """It stays pending, to be tried again, until trying has no more point."""
    state = turn.state
    command = _pending(turn, event.command_id, SlowCommand)
    before = state.failures.get(event.command_id)
    failure = Failure(
        count=1 + (before.count if before else 0),
        error=event.error,
        of_content=(event.trouble is CommandTrouble.CONTENT) + (before.of_content if before else 0),
    )
    state.put_failure(event.command_id, failure)
    if failure.count < MOST_TRIES:
        return
    if isinstance(command, MeasureSubmission):
        turn.settle(event.command_id)
        verdict = rejected(UNMEASURABLE, Case.NOT_MEASURED, failure.error, tries=failure.count)
        delegation.give_up(turn, command, verdict)
    elif isinstance(command, ReplayLease | CompareSubmissions):
        turn.settle(event.command_id)
        opinions.on_unable(turn, command, failure.error, failure.count)
    elif not isinstance(command, AggregateRound | TryContributions | RebuildVersion | FindHarmful):
        turn.settle(event.command_id)
    elif state.stop_reason is not None and state.phase is Phase.AGGREGATING:
        turn.settle(event.command_id)
        closing.finish(turn)
    elif isinstance(command, AggregateRound) and failure.of_content >= MOST_TRIES:
        turn.settle(event.command_id)
        rescue.after_failures(turn, command, failure.error)
    elif isinstance(command, RebuildVersion) and failure.of_content >= MOST_TRIES:
        turn.settle(event.command_id)
        rebuilt.give_up(turn, failure.error)
    elif isinstance(command, FindHarmful) and failure.of_content >= MOST_TRIES:
        turn.settle(event.command_id)
        withholding.without_harmful(turn, command.attempt, (), ())


def on_contributions_tried(turn: Turn, event: ContributionsTried) -> None:
    """Go on without those that fail alone."""
    command = _pending(turn, event.command_id, TryContributions)
    asked = {one.lease_id for one in command.attempt.contributions}
    failed = {one.lease_id for one in event.failed}
    if event.round != command.attempt.round or not failed <= asked or len(failed) != len(event.failed):
        raise IllegalEvent(f"{event.command_id} tries {sorted(asked)} of round {command.attempt.round}, got {event}")
    turn.settle(event.command_id)
    rescue.without_those(turn, command.attempt, event.failed)


def on_harmful_found(turn: Turn, event: HarmfulFound) -> None:
    """Go on without them."""
    command = _pending(turn, event.command_id, FindHarmful)
    found = (*event.harmful, *event.suspected)
    if event.round != command.attempt.round or not set(found) <= set(command.suspects) or len(set(found)) < len(found):
        raise IllegalEvent(f"{event.command_id} is about {command.suspects} of its round, got {event}")
    turn.settle(event.command_id)
    withholding.without_harmful(turn, command.attempt, event.harmful, event.suspected)


def repeat_verdict(turn: Turn, record: LeaseRecord) -> None:
    """The worker asks again: the same answer, where there is one yet."""
    if record.verdict is not None:
        turn.emit(
            AnnounceVerdict(
                worker=record.lease.worker,
                lease_id=record.lease.lease_id,
                verdict=record.verdict,
            )
        )


def refuse_lost_upload(turn: Turn, record: LeaseRecord) -> None:
    """Bytes of a commit that has been given up meanwhile."""
    ended = record.ended
    assert ended is not None
    if ended.case is Case.WORKER_BANNED:
        leases.reject(turn, record.lease.lease_id, rejected(BANNED, Case.WORKER_BANNED))
        return
    case = Case.BYTES_AFTER_ITS_TIME if ended.case is Case.ROUND_WENT_ON else Case.BYTES_AFTER_THE_RUN
    leases.reject(turn, record.lease.lease_id, rejected(LATE, case, ended.about, **ended.figures))


def _pending(turn: Turn, command_id: str, kind: type[C]) -> C:
    command = turn.state.pending.get(command_id)
    if not isinstance(command, kind):
        raise IllegalEvent(f"{command_id} is not a pending {kind.__name__}")
    return command
