"""Every event, the phases in which it is taken, and what applies it: one row each, and no other list.

Holds always: an event without a row, or in a phase that its row does not name, is illegal. `docs/engine.md` shows the
table as it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.engine import appeals, bans, changes, handlers, openings, opinions, orders, rebuilt, results, rollback
from coordinator.engine import events as ev
from coordinator.engine.phases import Phase
from coordinator.engine.turn import Turn
from protocol.errors import LocalError

_EVERYWHERE = frozenset(Phase)
_BEFORE_THE_END = _EVERYWHERE - {Phase.OVER}
_AGGREGATING = frozenset({Phase.AGGREGATING})
_NOWHERE: frozenset[Phase] = frozenset()


@dataclass(frozen=True, slots=True)
class EventRow:
    """One kind of event."""

    event: type[ev.Event]
    phases: frozenset[Phase]
    """In which it is taken."""
    apply: Callable[[Turn, Any], None]


def _of_the_engine(_: Turn, event: ev.Event) -> None:
    raise LocalError(f"{type(event).__name__} is for the engine itself: it changes nothing in a state")


ROWS = (
    EventRow(ev.RunCreated, _NOWHERE, _of_the_engine),  # makes an engine: `Engine.create`
    EventRow(ev.WorkerEnrolled, _EVERYWHERE, handlers.on_worker_enrolled),
    EventRow(ev.CapabilityChanged, _EVERYWHERE, handlers.on_capability_changed),
    EventRow(ev.WorkerSeen, _EVERYWHERE, _of_the_engine),  # a heartbeat, for presence.py alone
    EventRow(ev.WorkerSilent, _EVERYWHERE, handlers.on_worker_silent),
    EventRow(ev.WorkerLeft, _EVERYWHERE, handlers.on_worker_left),
    EventRow(ev.CoordinatorResumed, _EVERYWHERE, handlers.on_coordinator_resumed),
    EventRow(ev.ClockStepped, _EVERYWHERE, handlers.on_clock_stepped),
    EventRow(ev.LeaseRequested, _EVERYWHERE, handlers.on_lease_requested),
    EventRow(ev.LeaseReturned, _EVERYWHERE, handlers.on_lease_returned),
    EventRow(ev.SubmissionCommitted, _BEFORE_THE_END, handlers.on_submission_committed),
    EventRow(ev.SubmissionUploaded, _BEFORE_THE_END, handlers.on_submission_uploaded),
    EventRow(ev.ResidualOpened, _BEFORE_THE_END, openings.on_residual_opened),
    EventRow(ev.AuditAsked, _BEFORE_THE_END, appeals.on_audit_asked),
    EventRow(ev.SubmissionMeasured, _EVERYWHERE, results.on_submission_measured),
    EventRow(ev.RoundAggregated, _AGGREGATING, results.on_round_aggregated),
    EventRow(ev.ContributionsTried, _AGGREGATING, results.on_contributions_tried),
    EventRow(ev.LeaseReplayed, _BEFORE_THE_END, opinions.on_lease_replayed),
    EventRow(ev.HarmfulFound, _AGGREGATING, results.on_harmful_found),
    EventRow(ev.VersionValidated, _BEFORE_THE_END, results.on_version_validated),
    EventRow(ev.CheckpointWritten, _BEFORE_THE_END, results.on_checkpoint_written),
    EventRow(ev.CommandFailed, _BEFORE_THE_END, results.on_command_failed),
    EventRow(ev.Ticked, _EVERYWHERE, handlers.on_ticked),
    EventRow(ev.RunStopped, _BEFORE_THE_END, handlers.on_run_stopped),
    EventRow(ev.WorkerBanned, _EVERYWHERE, bans.on_worker_banned),
    EventRow(ev.WorkerUnbanned, _EVERYWHERE, bans.on_worker_unbanned),
    EventRow(ev.WorkerPardoned, _EVERYWHERE, bans.on_worker_pardoned),
    EventRow(ev.OwnerBanned, _EVERYWHERE, bans.on_owner_banned),
    EventRow(ev.OwnerUnbanned, _EVERYWHERE, bans.on_owner_unbanned),
    EventRow(ev.InviteBanned, _EVERYWHERE, bans.on_invite_banned),
    EventRow(ev.InviteUnbanned, _EVERYWHERE, bans.on_invite_unbanned),
    EventRow(ev.RollbackOrdered, _BEFORE_THE_END - {Phase.FINISHING}, rollback.on_rollback_ordered),
    EventRow(ev.VersionRebuilt, _AGGREGATING, rebuilt.on_version_rebuilt),
    EventRow(ev.SettingsFixed, _EVERYWHERE, changes.on_settings_fixed),
    EventRow(ev.RunHeld, _BEFORE_THE_END - {Phase.FINISHING}, orders.on_run_held),
    EventRow(ev.HoldLifted, _EVERYWHERE, orders.on_hold_lifted),
    EventRow(ev.Announced, _EVERYWHERE, orders.on_announced),
    EventRow(ev.InviteRevoked, _EVERYWHERE, orders.on_registry_changed),
    EventRow(ev.InvitesMade, _EVERYWHERE, orders.on_registry_changed),
    EventRow(ev.OperatorKeyAdded, _EVERYWHERE, orders.on_registry_changed),
    EventRow(ev.OperatorKeyRevoked, _EVERYWHERE, orders.on_registry_changed),
    EventRow(ev.SettingChanged, _BEFORE_THE_END - {Phase.FINISHING}, changes.on_setting_changed),
)

EVENT_TABLE: Mapping[type[ev.Event], EventRow] = {row.event: row for row in ROWS}
