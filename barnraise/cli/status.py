"""`barnraise status`, and how it tells a run's state: where it stands, why it waits, who is there.

Decides the words only, and how many workers a person is shown unasked; the reasons are the engine's own.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.elsewhere import At, run_meant
from barnraise.cli.options import Json, RunArgument, number
from barnraise.cli.output import print_json, print_pairs, print_table
from protocol.errors import ConfigError
from protocol.text import duration, human_bytes

if TYPE_CHECKING:
    from coordinator.edge.status import RunStatus, StandbyStatus, WorkerState, WorkerStatus
    from coordinator.engine.history import RoundRecord

WORKERS_SHOWN = 20
"""Of more workers only so many are shown, unless all are asked for."""


def status(
    folder: RunArgument,
    watch: Annotated[
        float | None,
        typer.Option(
            parser=number(least=0.2, most=86_400), metavar="SECONDS", help="Show it again every so many seconds."
        ),
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Show every worker, not only the first 20.")] = False,
    state: Annotated[
        str, typer.Option(metavar="STATE", help="Show the workers in this state only, e.g. `quarantined`.")
    ] = "",
    rounds: Annotated[bool, typer.Option("--rounds", help="Show every closed round that is remembered.")] = False,
    at: At = "",
    as_json: Json = False,
) -> int:
    """What the run is doing, and why the round is not closed; from its journal while no coordinator answers.

    Of many workers, 20 are shown: those first that are set aside, refused or idle. JSON holds everything. Exit code 0:
    the coordinator answered, or the run is over. 1: nobody answered; what is shown is the journal's end.
    """
    from coordinator.edge.operator_client import fetch_status
    from coordinator.edge.pages import EVERYTHING, Wanted

    states = _states(state)
    most = None if workers or states else WORKERS_SHOWN
    wanted = EVERYTHING if as_json else Wanted(workers=most, states=states, rounds=rounds, rest=False)
    where = run_meant(folder, at)
    while True:
        found = fetch_status(where, wanted)
        if as_json:
            print_json(json.loads(found.model_dump_json()))
        else:
            print_status(found)
            if most is not None:
                say_how_many_more(found, f"--at {at}" if at else str(folder))
        if watch is None or found.over:
            return 0 if found.answering or found.over else 1
        sleep(watch)
        print()


def _states(name: str) -> frozenset[WorkerState]:
    from coordinator.edge.status import WorkerState

    if not name:
        return frozenset()
    try:
        return frozenset({WorkerState(name)})
    except ValueError as error:
        raise ConfigError(f"{name!r} is not a worker's state: expected one of {', '.join(WorkerState)}") from error


def print_status(status: RunStatus) -> None:
    """For people."""
    if not status.answering and not status.over:  # nobody need start what is over
        print(f"{_sentence(status.trouble or 'no coordinator answers')} {_as_of(status.last_record_s)}\n")
    if status.sentence:
        print(f"{status.sentence}\n")
    losses = [f"{one.val_loss:.3f}" for one in status.latest_validations]
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(status.submissions_rejected.items()))
    states = ", ".join(f"{count} {state}" for state, count in status.worker_states.items())
    print_pairs(
        (
            ("run", f"{status.name} ({status.run_id})"),
            ("round", f"{status.round} of {status.max_rounds}, {status.phase}, version {status.version}"),
            *((("to go", f"about {duration(status.left_s)} at the pace of the latest"),) if status.left_s else ()),
            ("held-out loss", " → ".join(losses) if losses else "not measured yet"),
            (
                "workers",
                f"{status.enrolled} enrolled, {status.connected} connected" + (f": {states}" if states else ""),
            ),
            ("leases", f"{status.leases_granted} granted, {status.leases_expired} expired"),
            *((("lease length", status.lease_length),) if status.lease_length else ()),
            ("submissions", f"{status.submissions_accepted} accepted, {rejected or 'none rejected'}"),
            ("audits", status.audit_plan),
            *((("gains", status.gains),) if status.gains else ()),
            *((("rollback", status.rollback),) if status.rollback else ()),
            *((("standby", _standby(status.standby)),) if status.standby else ()),
            *((("held elsewhere", status.elsewhere.told),) if status.elsewhere else ()),
            ("traffic", f"{human_bytes(status.bytes_up)} up, {human_bytes(status.bytes_down)} down"),
        )
    )
    if status.screened_in_public:
        print("\nSubmissions are measured on the public held-out part; a new run keeps text of its own for that.")
    _print_reasons(status)
    for caution in status.cautions:
        print(f"\n{_sentence(caution)}")
    notes = [
        f"round {one.round}: {one.close_reason}" for one in status.latest_rounds if one.version is None or one.withheld
    ]
    notes += [
        *status.rolled_back,
        *status.left_out,
        *(f"version {status.version}: {one}" for one in status.substitutes),
    ]
    for title, lines in (("Of the latest rounds", notes), ("Of audits", status.audits)):
        if lines:
            print(f"\n{title}:")
            for line in lines:
                print(f"  {line}")
    if status.history:
        print()
        facts = ("round", "version", "lasted", "accepted", "rejected", "expired", "loss", "closed because")
        print_table(facts, [_round_row(one) for one in status.history])
    if status.workers:
        print()
        columns = ("worker", "state", "columns", "accepted", "rejected", "weight", "why")
        print_table(columns, [_worker_row(one) for one in status.workers])


def _standby(found: StandbyStatus) -> str:
    there = "" if found.attached else ", not there"
    behind = f"{found.behind:,} records behind: what is lost at most if this machine is"
    return f"{found.mode}, epoch {found.epoch}, follower {found.follower or 'none'}{there}, {behind}"


def say_how_many_more(status: RunStatus, folder: Path | str) -> None:
    """Where not all workers are in the table: how many there are besides, and how to see them."""
    more = status.enrolled - len(status.workers)
    if more > 0:
        print(f"and {more} more: `barnraise status {folder} --workers` shows all, `--state STATE` those in one state")


def _print_reasons(status: RunStatus) -> None:
    """Why the round is not closed, and what is being done."""
    if status.over:
        print(f"\nThe run is over: {status.end_reason}")
    elif status.waits:
        print(f"\nWhy the round {'is' if status.answering else 'was'} not closed:")
        for wait in status.waits:
            print(f"  {wait.subject}: {wait.reason}")
        if status.more_waits:
            print(f"  and {status.more_waits} more")
    for work in status.working_on:
        print(f"  {'working on' if status.answering else 'goes on with'} {work}")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _as_of(last_record_s: float | None) -> str:
    if last_record_s is None:
        return "This is the run as its journal has it:"
    moment = datetime.fromtimestamp(last_record_s).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"Nothing has been recorded since {moment}; this is the run as it was then:"


def _round_row(one: RoundRecord) -> dict[str, object]:
    return {
        "round": one.round,
        "version": one.version,
        "lasted": f"{one.lasted_s:.0f} s",
        "accepted": one.accepted,
        "rejected": one.rejected,
        "expired": one.expired,
        "loss": None if one.val_loss is None else f"{one.val_loss:.3f}",
        "closed because": one.close_reason,
    }


_SHOWN_BY_STATE = ("founder", "trusted in full", "rising", "set aside", "banned by the operator", "banned by engine")
"""Standings that the state, or the weight, says already."""


def _worker_row(worker: WorkerStatus) -> dict[str, object]:
    return {
        "worker": (worker.name or worker.worker[:8]) + (f" ({worker.owner}'s)" if worker.owner else ""),
        "state": worker.state,
        "columns": len(worker.columns) or None,
        "accepted": worker.accepted,
        "rejected": sum(worker.rejected.values()),
        "weight": f"{worker.weight:.2f}",
        "why": worker.why if worker.standing in _SHOWN_BY_STATE else f"{worker.standing}; {worker.why}",
    }
