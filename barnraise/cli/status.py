"""How `barnraise status` tells a run's state: where it stands, why it waits, who is there.

Decides the words only; the reasons are the engine's own.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from barnraise.cli.output import print_pairs, print_table
from protocol.text import human_bytes

if TYPE_CHECKING:
    from coordinator.edge.status import RunStatus, WorkerStatus

_LAST_ROUNDS = 5


def print_status(status: RunStatus) -> None:
    """For people."""
    if not status.answering and not status.over:  # nobody need start what is over
        print(f"{_sentence(status.trouble or 'no coordinator answers')} {_as_of(status.last_record_s)}\n")
    losses = [f"{one.val_loss:.3f}" for one in status.validations[-_LAST_ROUNDS:]]
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(status.submissions_rejected.items()))
    print_pairs(
        (
            ("run", f"{status.name} ({status.run_id})"),
            ("round", f"{status.round} of {status.max_rounds}, {status.phase}, version {status.version}"),
            ("held-out loss", " → ".join(losses) if losses else "not measured yet"),
            ("leases", f"{status.leases_granted} granted, {status.leases_expired} expired"),
            ("submissions", f"{status.submissions_accepted} accepted, {rejected or 'none rejected'}"),
            ("traffic", f"{human_bytes(status.bytes_up)} up, {human_bytes(status.bytes_down)} down"),
        )
    )
    if status.over:
        print(f"\nThe run is over: {status.end_reason}")
    elif status.waits:
        print(f"\nWhy the round {'is' if status.answering else 'was'} not closed:")
        for wait in status.waits:
            print(f"  {wait.subject}: {wait.reason}")
    for work in status.working_on:
        print(f"  {'working on' if status.answering else 'goes on with'} {work}")
    notes = _notes(status)
    if notes:
        print("\nOf the latest rounds:")
        for note in notes:
            print(f"  {note}")
    if status.workers:
        print()
        print_table(
            ("worker", "state", "columns", "accepted", "rejected", "why"), [_row(one) for one in status.workers]
        )


def _notes(status: RunStatus) -> list[str]:
    """Which rounds published nothing, who was left out of them, and what other rules made of the latest version."""
    latest = status.history[-_LAST_ROUNDS:]
    notes = [f"round {one.round}: {one.close_reason}" for one in latest if one.version is None]
    notes += [f"round {one.round}: {left_out}" for one in latest for left_out in one.left_out]
    return notes + [f"version {status.version}: {substitute}" for substitute in status.substitutes]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _as_of(last_record_s: float | None) -> str:
    if last_record_s is None:
        return "This is the run as its journal has it:"
    moment = datetime.fromtimestamp(last_record_s).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"Nothing has been recorded since {moment}; this is the run as it was then:"


def _row(worker: WorkerStatus) -> dict[str, object]:
    return {
        "worker": (worker.name or worker.worker[:8]) + (f" ({worker.owner}'s)" if worker.owner else ""),
        "state": worker.state,
        "columns": len(worker.columns) or None,
        "accepted": worker.accepted,
        "rejected": sum(worker.rejected.values()),
        "why": worker.why,
    }
