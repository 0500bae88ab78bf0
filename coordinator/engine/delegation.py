"""What follows from a measurement that a trusted worker made: taken, made again here, or found to be a lie.

Decides when a worker's word is enough: to accept a submission, as long as nobody is found to have lied; never to refuse
one. Holds always: nobody's submission is refused, at first or at the second look, on figures that the coordinator has
not measured itself; who was found to have said something else than the coordinator measures on the same sequences is
trusted no more, like an auditor that accused falsely, what was accepted on its word and has not counted is measured
again before its round closes, and what it said of versions is struck out (validating.py). What has counted stays: its
version was measured by the coordinator (trust_region.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from coordinator.engine import leases, measuring, pacing, reputation, residuals, screening, validating
from coordinator.engine.commands import AggregateRound, FindHarmful, Item, MeasureSubmission, TryContributions
from coordinator.engine.events import SubmissionMeasured, VersionValidated
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import HELDOUT_GAIN_TOO_SMALL, HELDOUT_LOSS_ROSE, Verdict
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, WorkerId

_BY_GAIN = frozenset({HELDOUT_GAIN_TOO_SMALL, HELDOUT_LOSS_ROSE})


def check_answers(command: Item, event: SubmissionMeasured | VersionValidated) -> None:
    """IllegalEvent where an event has workers' figures that its command did not ask for."""
    said = {answer.worker for answer in event.answers}
    taken = {event.measured_by} if event.measured_by is not None else set()
    if not (said or taken or event.false):
        return
    asked = command.delegate if taken else command.delegate or bool(command.answers)
    if not asked or not {*taken, *event.false} <= said or (taken and event.false):
        raise IllegalEvent(f"{event.command_id} was not for {sorted(said | taken | {*event.false})} to measure")


def is_to_be_confirmed(turn: Turn, command: MeasureSubmission, event: SubmissionMeasured, verdict: Verdict) -> bool:
    """Whether the verdict hangs on a worker's word that is not enough for it: then it is measured here."""
    if event.measured_by is None:
        return False
    worker = turn.state.workers.get(event.measured_by)
    is_worth = worker is not None and measuring.may_measure(worker)
    if is_worth and (verdict.accepted or verdict.key not in _BY_GAIN):
        return False
    measuring.measure_here(turn, command, event.answers)
    return True


def note_checked(state: EngineState, event: SubmissionMeasured) -> None:
    """Count what was measured by others, and how often twice."""
    totals, is_agreed = state.totals, len(event.answers) > 1
    state.totals = replace(
        totals,
        gains_delegated=totals.gains_delegated + (event.measured_by is not None),
        gains_checked=totals.gains_checked + (len(event.answers) if event.measured_by is None else is_agreed),
        gains_false=totals.gains_false + len(event.false),
    )


def caught(turn: Turn, liars: Iterable[WorkerId]) -> None:
    """These said something else than the coordinator measured."""
    state = turn.state
    people = {state.workers[worker].person for worker in liars}
    if not people:
        return
    for person in sorted(people):
        reputation.false_accusation(turn, person)
    validating.strike_out(turn, people)
    counting = _being_counted(state)
    for lease_id, record in list(state.leases.items()):
        on_their_word = record.measured_by is not None and state.workers[record.measured_by].person in people
        if on_their_word and _is_uncounted(record) and lease_id not in counting:
            measuring.measure_again(turn, record)


def on_measured_again(turn: Turn, event: SubmissionMeasured) -> None:
    """An accepted submission, measured by the coordinator: whether it stands."""
    state, record = turn.state, turn.state.leases.get(event.lease_id)
    turn.settle(event.command_id)
    if record is None or not _is_uncounted(record):
        return
    verdict = verdict_on(turn, record, event)
    note_measured(turn, event)
    if not verdict.accepted and event.lease_id not in _being_counted(state):
        leases.withdraw(turn, event.lease_id, verdict)


def note_measured(turn: Turn, event: SubmissionMeasured) -> None:
    """With the lease, for the second look."""
    state, record = turn.state, turn.state.leases[event.lease_id]
    state.update_lease(
        event.lease_id,
        norms=screening.scaled_norms(event, partial(residuals.norm_scale, state.config, record)),
        heldout_gain=event.heldout_gain,
        heldout_gain_se=event.heldout_gain_se,
        full_gain=event.full_gain,
        full_gain_se=event.full_gain_se,
        own_gain=event.own_gain,
        part_spread=event.part_spread,
        measured_by=event.measured_by,
    )


def give_up(turn: Turn, command: MeasureSubmission, verdict: Verdict) -> None:
    """It could not be measured: no fault of its worker's, and it counts nowhere."""
    lease_id = command.lease.lease_id
    if command.command_id == measuring.measure_id(lease_id):
        leases.reject(turn, lease_id, verdict)
    elif _is_uncounted(turn.state.leases[lease_id]):
        leases.withdraw(turn, lease_id, verdict)


def verdict_on(turn: Turn, record: LeaseRecord, event: SubmissionMeasured) -> Verdict:
    """What screening says of a submission by what was measured."""
    state, lease = turn.state, record.lease
    return screening.judge(
        state.config.screening,
        event,
        norms=screening.scaled_norms(event, partial(residuals.norm_scale, state.config, record)),
        person=state.index.person_place(lease.worker),
        medians=state.index.norms.medians(state.norm_history),
        gains_median=state.index.tally.gains_median(screening.MIN_GAINS),
        gain_spread=pacing.gain_spread(state, lease),
        steps_share=pacing.steps_share(state, lease),
    )


def _is_uncounted(record: LeaseRecord) -> bool:
    return record.status is LeaseStatus.ACCEPTED and record.counted_in is None


def _being_counted(state: EngineState) -> set[LeaseId]:
    """Submissions of an outer step that is being taken."""
    found: set[LeaseId] = set()
    for command in state.pending.values():
        attempt = command.attempt if isinstance(command, TryContributions | FindHarmful) else command
        if isinstance(attempt, AggregateRound):
            found.update(one.lease_id for one in attempt.contributions)
    return found
