"""What happened, for people and tools: one JSON line for each event and command, and a log line for those that matter.

A line says when by the calendar (`wall_s`, seconds since the epoch) and in run time (`at_s`, as all times in `data`).
Decides nothing and is never read back: the journal is the truth, this may lose its last lines with the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from coordinator.engine.commands import AnnounceVerdict, CancelLease, Command, EndRun, GrantLease, ShutOut
from coordinator.engine.events import (
    AuditAsked,
    CheckpointWritten,
    ClockStepped,
    CommandFailed,
    ContributionsTried,
    Event,
    HarmfulFound,
    InviteBanned,
    InviteUnbanned,
    LeaseReturned,
    OwnerBanned,
    OwnerUnbanned,
    RollbackOrdered,
    RoundAggregated,
    RunStopped,
    SettingChanged,
    VersionRebuilt,
    VersionValidated,
    WorkerBanned,
    WorkerEnrolled,
    WorkerLeft,
    WorkerPardoned,
    WorkerSilent,
    WorkerUnbanned,
)
from coordinator.engine.records import command_to_json, event_to_json
from coordinator.run.run_log import RunLog
from coordinator.work import substitutes

_log = structlog.get_logger("coordinator")

_TOLD: dict[type[Event], tuple[str, tuple[str, ...]]] = {
    WorkerEnrolled: ("worker_enrolled", ("worker", "trusted", "max_columns")),
    WorkerLeft: ("worker_left", ("worker",)),
    WorkerSilent: ("worker_silent", ("worker",)),
    LeaseReturned: ("lease_returned", ("worker", "lease_id", "reason")),
    RoundAggregated: ("round_aggregated", ("round", "version", "update_norm_l2")),
    HarmfulFound: ("harmful_found", ("round", "harmful", "suspected", "passes")),
    VersionValidated: ("version_validated", ("version", "val_loss", "val_loss_se")),
    CheckpointWritten: ("checkpoint_written", ("version", "path")),
    CommandFailed: ("command_failed", ("command_id", "trouble", "error")),
    RunStopped: ("run_stopped", ("reason",)),
    SettingChanged: ("setting_changed", ("key", "value")),
    AuditAsked: ("audit_asked", ("worker", "lease_id")),
    WorkerBanned: ("worker_banned", ("worker", "by", "why")),
    WorkerUnbanned: ("worker_unbanned", ("worker", "by", "why")),
    WorkerPardoned: ("worker_pardoned", ("worker", "by", "why")),
    OwnerBanned: ("owner_banned", ("owner", "by", "why")),
    OwnerUnbanned: ("owner_unbanned", ("owner", "by", "why")),
    InviteBanned: ("invite_banned", ("invite", "by", "why")),
    InviteUnbanned: ("invite_unbanned", ("invite", "by", "why")),
    RollbackOrdered: ("rollback_ordered", ("worker", "by", "why")),
    VersionRebuilt: ("version_rebuilt", ("version", "change_l2")),
    ClockStepped: ("clock_stepped", ("step_s",)),
}


class EventLog:
    """Appends to `events.jsonl`. One process, one thread."""

    def __init__(self, path: Path, wall_at_s: Callable[[float], float | None]) -> None:
        """`wall_at_s` tells the calendar time of a run time."""
        self._wall_at_s = wall_at_s
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._substituted: set[tuple[str, str, str]] = set()
        """How the latest round's blocks were made where not by the run's rule, as it was said."""

    def event(self, event: Event) -> None:
        """`event` was applied."""
        self._write("event", type(event).__name__, event.at_s, event_to_json(event))
        told = _TOLD.get(type(event))
        if told is not None:
            _log.info(told[0], **{name: getattr(event, name) for name in told[1]})
        if isinstance(event, RoundAggregated):
            self._tell_substitutes(event)
        elif isinstance(event, ContributionsTried):
            for one in event.failed:
                _log.warning(
                    "contribution_left_out", round=event.round, lease_id=one.lease_id, lost=one.lost, error=one.error
                )

    def command(self, command: Command, at_s: float) -> None:
        """`command` follows from an event."""
        self._write("command", type(command).__name__, at_s, command_to_json(command), **_words(command))
        match command:
            case GrantLease(lease=lease):
                _log.info(
                    "lease_granted", lease_id=lease.lease_id, worker=lease.worker, columns=list(lease.columns),
                    inner_steps=lease.inner_steps, spare=lease.spare,
                )  # fmt: skip
            case AnnounceVerdict():
                _log.info("verdict", lease_id=command.lease_id, accepted=command.accepted, reason=command.reason)
            case CancelLease():
                _log.info("lease_cancelled", lease_id=command.lease_id, reason=command.reason)
            case ShutOut():
                _log.warning("worker_shut_out", worker=command.worker, reason=command.reason)
            case EndRun():
                _log.info("run_over", reason=command.reason)
            case _:
                pass

    def _tell_substitutes(self, event: RoundAggregated) -> None:
        """In one line, and not again while rounds go the same way: with two workers they all do."""
        kinds = {(one.rule, one.in_force, one.error) for one in event.substitutes}
        if kinds - self._substituted:
            _log.warning(
                "rule_fell_back",
                round=event.round,
                blocks=sum(one.trunk + sum(s.last - s.first + 1 for s in one.columns) for one in event.substitutes),
                told=". ".join(map(substitutes.told, event.substitutes)),
            )
        elif self._substituted and not kinds:
            _log.info("rule_in_force_again", round=event.round)
        self._substituted = kinds

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)

    def _write(self, kind: str, name: str, at_s: float, record: str, **words: str) -> None:
        when = {"wall_s": self._wall_at_s(at_s), "at_s": at_s}
        line: dict[str, Any] = {**when, "kind": kind, "name": name, "data": _without_type(record)}
        line["data"] |= words
        with contextlib.suppress(OSError):  # a full disk costs lines of this file, never the run
            os.write(self._descriptor, (json.dumps(line, separators=(",", ":")) + "\n").encode())


def _words(command: Command) -> dict[str, str]:
    """The sentence that a command's figures stand for."""
    return {"reason": command.reason} if isinstance(command, AnnounceVerdict | CancelLease | ShutOut | EndRun) else {}


def _without_type(record: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(record)
    data.pop("type", None)  # the line says it as `name`
    return data


def configure_logging(kept: RunLog | None = None, *, as_json: bool = False) -> None:
    """Structured log lines, unless whoever embeds the coordinator has set logging up already.

    They go to standard error for people, or with `as_json` to standard output, and into `kept`, too.
    """
    if structlog.is_configured():
        return
    order = ["timestamp", "level", "event"]
    for_people = structlog.processors.LogfmtRenderer(key_order=order, bool_as_flag=False)
    told: Any = structlog.processors.JSONRenderer(default=str) if as_json else for_people
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *([] if kept is None else [kept]),
            told,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout if as_json else sys.stderr),
        cache_logger_on_first_use=False,
    )
