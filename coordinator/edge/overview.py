"""A run in short, in a size that does not grow with it.

Decides of how many things that may be many the first or the latest are told. Only counting looks at every worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from coordinator.edge.standing import count_states
from coordinator.edge.status import CheckpointStatus, RunSummary, ValidationStatus, WaitStatus, by_calendar
from coordinator.engine import explain
from coordinator.engine.audit_notes import audit_notes
from coordinator.engine.engine import Engine
from coordinator.engine.history import RoundRecord
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import told
from coordinator.engine.state import EngineState
from coordinator.engine.sureness import gains_told
from coordinator.run.traffic import Traffic
from coordinator.work import substitutes
from protocol.ids import RunId, WorkerId

LATEST = 5
"""Rounds and validations that are told of."""
LINES = 20
"""Reasons, pending commands and notes that are told of, each."""
_MOST_CHARACTERS = 400
"""Of one line: an error's words may be of any length."""


def summary_of(
    engine: Engine,
    *,
    run_id: RunId,
    name: str,
    now_s: float,
    wall_s: float,
    traffic: Traffic,
    connected: Callable[[WorkerId], bool],
    lease_length: Callable[[EngineState], str],
) -> RunSummary:
    """The run as of run time `now_s`, which is `wall_s` by the calendar."""
    state = engine.state
    totals = state.totals
    waits, more_waits = explain.first_waits(state, now_s, most=LINES)
    began_s = state.history[0].opened_at_s if state.history else state.round.opened_at_s
    began_wall_s = state.wall_at_s(began_s)
    latest, notes = state.history[-LATEST:], audit_notes(state)
    return RunSummary(
        run_id=run_id,
        name=name,
        at_s=wall_s,
        started_at_s=began_s if began_wall_s is None else began_wall_s,
        round=state.round.round,
        max_rounds=state.config.max_rounds,
        version=state.version,
        phase=state.phase,
        over=state.phase is Phase.OVER,
        end_reason=state.end_reason,
        waits=tuple(WaitStatus(subject=_short(wait.subject), reason=_short(wait.reason)) for wait in waits),
        more_waits=more_waits,
        enrolled=len(state.workers),
        connected=sum(map(connected, state.index.present)),
        worker_states=count_states(state),
        rounds_closed=int(state.history[-1].round) if state.history else 0,
        left_s=_left_s(state),
        latest_rounds=tuple(by_calendar(replace(record, left_out=()), state.wall_at_s) for record in latest),
        latest_validations=tuple(
            ValidationStatus(version=v.version, val_loss=v.val_loss, val_loss_se=v.val_loss_se)
            for v in state.validations[-LATEST:]
        ),
        latest_checkpoint=next(
            (CheckpointStatus(version=c.version, path=c.path) for c in reversed(state.checkpoints)), None
        ),
        left_out=_first(_left_out(state, latest), sum(len(record.left_out) for record in latest)),
        lease_length=lease_length(state),
        audit_plan=explain.audit_plan(state),
        gains=gains_told(state),
        rollback=_reach(state),
        rolled_back=_first(_rolled_back(state), min(len(state.rollbacks), LATEST)),
        substitutes=_first(map(substitutes.told, state.substitutes), len(state.substitutes)),
        audits=_first(notes, len(notes)),
        cautions=tuple(map(_short, explain.cautions(state))),
        screened_in_public=not json.loads(state.fixed_settings.get("screening_share", "null")),
        working_on=_first(_pending(engine), len(state.pending)),
        leases_granted=totals.leases_granted,
        leases_expired=totals.leases_expired,
        leases_returned=totals.leases_returned,
        submissions_accepted=totals.submissions_accepted,
        submissions_rejected=dict(totals.submissions_rejected),
        bytes_up=traffic.bytes_up,
        bytes_down=traffic.bytes_down,
        calls=traffic.calls,
        refused_calls=traffic.refused_calls,
        failed_commands=traffic.failed_commands,
    )


def _left_s(state: EngineState) -> float | None:
    latest, left = state.history[-LATEST:], state.config.max_rounds - int(state.round.round) + 1
    if not latest or left <= 0 or state.phase is Phase.OVER:
        return None
    each_s = (latest[-1].closed_at_s - latest[0].opened_at_s) / len(latest)
    return left * each_s


def _first(lines: Iterable[str], count: int) -> tuple[str, ...]:
    """The first of `count` lines, and where that is not all, how many more there are."""
    shown = tuple(map(_short, islice(lines, LINES)))
    return shown if count <= LINES else (*shown, f"and {count - LINES} more")


def _short(line: str) -> str:
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"


def _left_out(state: EngineState, records: Iterable[RoundRecord]) -> Iterator[str]:
    for record in records:
        for one in record.left_out:
            yield f"round {record.round}: {state.called(one.worker)}'s {one.lease_id}: {told(one.why)}"


def _reach(state: EngineState) -> str:
    steps = state.past_steps
    if not steps:
        return "from the next round on" if state.config.rollback_rounds else ""
    first = steps[0].attempt
    return f"back to version {first.parent_version}, before round {first.round}"


def _rolled_back(state: EngineState) -> Iterator[str]:
    for one in state.rollbacks[-LATEST:]:
        names = ", ".join(map(state.called, one.without))
        if one.given_up is not None:
            outcome = f"could not be made ({told(one.given_up)})"
        elif one.version is None:
            share = one.change_l2 / one.update_norm_l2 if one.update_norm_l2 else 0.0
            outcome = f"makes no difference that can be measured ({share:.0%} of a round's update)"
        else:
            outcome = f"is version {one.version}, made again from version {one.from_version} on"
        yield f"round {one.round}: a model without {names} (by {one.by}) {outcome}"


def _pending(engine: Engine) -> Iterator[str]:
    failures = engine.state.failures
    for command_id in engine.state.pending:
        failure = failures.get(command_id)
        yield command_id + (f" (failed {failure.count} times: {failure.error})" if failure else "")
