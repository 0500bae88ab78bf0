"""What comes of a rollback: its version is published, or not, and the next round opens.

Decides whether leaving somebody out makes a difference worth another version. Holds always: the new version stands on
top of the one it was compared with; leases on versions that are abandoned expire; what is behind afterwards is without
those who were left out. It is not held against the trust region (docs/decisions/0026), which begins anew with it.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from coordinator.engine import closing, credit, leases, rollback
from coordinator.engine.commands import RebuildVersion
from coordinator.engine.events import VersionRebuilt
from coordinator.engine.past import PastStep, PlannedRollback, from_first_of
from coordinator.engine.phases import LeaseStatus
from coordinator.engine.reasons import Case, reason
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent


def on_version_rebuilt(turn: Turn, event: VersionRebuilt) -> None:
    """Publish it, where it makes a difference, on top of the version that it was compared with; then go on."""
    state, plan = turn.state, turn.state.planned_rollback
    command = state.pending.get(event.command_id)
    if not isinstance(command, RebuildVersion) or plan is None:
        raise IllegalEvent(f"{event.command_id} is not a pending RebuildVersion")
    if (event.version, event.parent_version) != (command.version, state.version):
        raise IllegalEvent(f"{event.command_id} must give version {command.version} on top of {state.version}")
    turn.settle(event.command_id)
    steps = from_first_of(state.past_steps, plan.without)
    usual = median(step.update_norm_l2 for step in steps)
    counts = event.change_l2 >= state.config.rollback_least_change * usual
    rollback.note(state, plan, steps, version=event.version if counts else None, change_l2=event.change_l2)
    if counts:
        _publish(turn, event, plan, steps)
    closing.next_round_or_finish(turn)


def give_up(turn: Turn, error: str) -> None:
    """It cannot be made: the run goes on as it was."""
    state, plan = turn.state, turn.state.planned_rollback
    if plan is not None:
        rollback.note(state, plan, (), given_up=reason(Case.AS_TOLD, error))
    closing.next_round_or_finish(turn)


def _publish(turn: Turn, event: VersionRebuilt, plan: PlannedRollback, steps: tuple[PastStep, ...]) -> None:
    state = turn.state
    abandoned = range(steps[0].attempt.version, state.version + 1)
    state.version, state.manifest, state.substitutes = event.version, event.manifest, ()
    state.frozen = event.frozen
    state.standings = ()  # what was measured is abandoned: nothing of it is to be compared with any more
    untouched = state.past_steps[: len(state.past_steps) - len(steps)]
    undone = (one for step in steps for one in step.attempt.contributions if one.worker in plan.without)
    for one in undone:
        credit.take_back(turn, one.lease_id, reason(Case.ROLLED_BACK))
    again = [rollback.without(step, plan.without) for step in steps]
    left = [replace(step, has_start=index == 0) for index, step in enumerate(again)]
    # a step of nothing stays, if it is the first: it is where the others start
    leases.drop_behind(turn, (*untouched, *(step for step in left if step.attempt.contributions or step.has_start)))
    for lease_id, record in list(state.leases.items()):
        if record.lease.base_version in abandoned and record.status in {LeaseStatus.GRANTED, LeaseStatus.COMMITTED}:
            why = reason(Case.VERSION_ABANDONED, version=record.lease.base_version)
            leases.expire(turn, lease_id, why)
    closing.look_at_version(turn)
