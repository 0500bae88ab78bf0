"""Rollback: a new version, as if a liar's submissions had never been taken; numbers never fall.

Decides when one is made, of which steps, and whether its outcome is published. Holds always: it begins when a round
ends and the next one opens after it; by itself there is at most one in `rollback_rounds`, however many are banned, so
that a banned Sybil a round costs the run next to nothing; a model that would change by less than
`rollback_least_change` of a usual round's update is left as it is. See docs/decisions/0026.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from coordinator.engine.commands import RebuildVersion
from coordinator.engine.events import RollbackOrdered
from coordinator.engine.history import remembered
from coordinator.engine.past import PastStep, PlannedRollback, RollbackRecord, from_first_of, involves
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import Reason
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import Version, WorkerId


def on_rollback_ordered(turn: Turn, event: RollbackOrdered) -> None:
    """By the operator: it begins when the round ends. Said twice it changes nothing."""
    state = turn.state
    if event.worker not in state.workers:
        raise IllegalEvent(f"worker {event.worker} is not enrolled in run {state.config.run_id}")
    if not any(involves(step, (event.worker,)) for step in state.past_steps):
        raise IllegalEvent(f"nothing of {event.worker} is in the {len(state.past_steps)} rounds that can be taken back")
    if any(isinstance(command, RebuildVersion) for command in state.pending.values()):
        raise IllegalEvent("a rollback is being made at this moment; order this one again when the next round is open")
    planned = state.planned_rollback
    if planned is None or event.worker not in planned.without:
        before = () if planned is None else planned.without
        state.planned_rollback = PlannedRollback(without=(*before, event.worker), by=event.by, why=event.why)


def after_ban(turn: Turn, worker: WorkerId, by: str) -> None:
    """The engine has banned somebody: plan one, unless there was one within the window."""
    state = turn.state
    window = state.config.rollback_rounds
    last = next((one.round for one in reversed(state.rollbacks) if one.by == by), None)
    if not window or state.planned_rollback is not None or (last is not None and state.round.round < last + window):
        return
    liars = [worker, *(one.worker for one in state.workers.values() if one.ban and one.ban.by == by)]
    found = tuple(dict.fromkeys(one for one in liars if any(involves(step, (one,)) for step in state.past_steps)))
    if found:
        state.planned_rollback = PlannedRollback(without=found, by=by, why="")


def begin(turn: Turn) -> bool:
    """Have the planned one made, if there is one and anything to make; the next round waits for it."""
    state = turn.state
    plan = state.planned_rollback
    if plan is None:
        return False
    steps = from_first_of(state.past_steps, plan.without)
    if not steps or state.stop_reason is not None:
        note(state, plan, steps)
        return False
    first = steps[0].attempt
    rest = tuple(without(step, plan.without).attempt for step in steps)
    if state.phase is not Phase.AGGREGATING:
        state.move_to(Phase.AGGREGATING)
    turn.emit(
        RebuildVersion(
            command_id=f"rebuild:r{state.round.round}:{len(state.rollbacks)}",
            round=state.round.round,
            version=Version(state.version + 1),
            parent_version=state.version,
            parent_manifest=state.manifest,
            from_version=first.parent_version,
            from_manifest=first.parent_manifest,
            steps=tuple(attempt for attempt in rest if attempt.contributions),
        )
    )
    return True


def without(step: PastStep, workers: tuple[WorkerId, ...]) -> PastStep:
    """The step as it would have been without them."""
    rest = tuple(one for one in step.attempt.contributions if one.worker not in workers)
    return replace(step, attempt=replace(step.attempt, contributions=rest))


def note(
    state: EngineState,
    plan: PlannedRollback,
    steps: tuple[PastStep, ...],
    *,
    version: Version | None = None,
    change_l2: float = 0.0,
    given_up: Reason | None = None,
) -> None:
    """The plan is done with; this is what came of it."""
    state.planned_rollback = None
    row = RollbackRecord(
        round=state.round.round,
        without=plan.without,
        by=plan.by,
        why=plan.why,
        from_version=steps[0].attempt.parent_version if steps else None,
        version=version,
        change_l2=change_l2,
        update_norm_l2=median(step.update_norm_l2 for step in steps) if steps else 0.0,
        given_up=given_up,
    )
    state.rollbacks = remembered(state.rollbacks, row)
