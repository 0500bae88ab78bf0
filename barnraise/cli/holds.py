"""The operator's commands that hold a run, let it go on or end it, tell its volunteers something, and show who ordered
what.

Decides how they are told; `coordinator/` does the rest.
"""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept in the journal; volunteers who wait are told.")]

_NOW = {
    "paused": "paused: time stands, nothing is granted, and what is sent is taken",
    "draining": "draining: nothing is granted, and no round begins after the open one",
    "running": "going on",
}
_WORDS = {
    "RunHeld": "held",
    "HoldLifted": "let go on",
    "Announced": "told volunteers",
    "SettingChanged": "set",
    "RunStopped": "stopped",
    "WorkerBanned": "banned",
    "WorkerUnbanned": "unbanned",
    "WorkerPardoned": "pardoned",
    "OwnerBanned": "banned an owner",
    "OwnerUnbanned": "unbanned an owner",
    "InviteBanned": "banned an invite",
    "InviteUnbanned": "unbanned an invite",
    "InviteRevoked": "revoked an invite",
    "RollbackOrdered": "rolled back",
}
"""For people; programs get the events' names."""


def pause(folder: RunArgument, why: Why = "", as_json: Json = False) -> None:
    """Have time stand: no leases, no deadlines, nobody is late, uploads are taken. `resume` lets the run go on."""
    _hold("pause", folder, why, as_json)


def drain(folder: RunArgument, why: Why = "", as_json: Json = False) -> None:
    """Grant no more leases: the open round ends with those that are out, then the coordinator may be stopped."""
    _hold("drain", folder, why, as_json)


def resume(folder: RunArgument, as_json: Json = False) -> None:
    """Let a paused or drained run go on."""
    _hold("resume", folder, "", as_json)


def announce(
    folder: RunArgument,
    text: Annotated[str, typer.Argument(help="At most 200 characters; an empty one takes the last one back.")],
    as_json: Json = False,
) -> None:
    """Tell every volunteer something: at a worker's next sign of life, and whenever it waits for its next lease."""
    from coordinator.edge.operator_client import hold_run
    from coordinator.run.folder import RunFolder

    found = hold_run(RunFolder.open(folder), "announce", text)
    if as_json:
        print_json({**found, "announced": text})
    else:
        print("volunteers are told from now on" if text else "nothing is announced any more")
        _note_stopped(found, folder)


def _hold(verb: str, folder: Path, text: str, as_json: bool) -> None:
    from coordinator.edge.operator_client import hold_run
    from coordinator.run.folder import RunFolder

    found = hold_run(RunFolder.open(folder), verb, text)
    if as_json:
        print_json(found)
    else:
        already = " (as before)" if found["before"] == found["now"] else ""
        print(f"the run is {_NOW[found['now']]}{already}")
        _note_stopped(found, folder)


def _note_stopped(found: dict[str, Any], folder: Path) -> None:
    if not found.get("served", True):
        start = f"`barnraise coordinator run {folder}`"
        print(f"the coordinator is not running: this is noted, and counts once it is ({start})", file=sys.stderr)


def orders(folder: RunArgument, as_json: Json = False) -> None:
    """What was ordered of the run, when, and from which account, the newest last; served or not."""
    from coordinator.edge.stopped import orders_of_journal
    from coordinator.run.folder import RunFolder

    found = orders_of_journal(RunFolder.open(folder))
    if as_json:
        print_json([{**dataclasses.asdict(one), "wall_s": wall_s} for one, wall_s in found])
    elif not found:
        print("nothing was ordered yet")
    else:
        rows = [
            {
                "when": f"{one.at_s:.0f} s" if wall_s is None else f"{datetime.fromtimestamp(wall_s):%m-%d %H:%M:%S}",
                "who": one.actor,
                "what": _WORDS.get(one.kind, one.kind),
                "about": one.about,
                "detail": one.detail,
            }
            for one, wall_s in found
        ]
        print_table(("when", "who", "what", "about", "detail"), rows)


def stop(
    folder: RunArgument,
    reason: Annotated[str, typer.Option(help="What the workers are told.")] = "stopped by the operator",
    as_json: Json = False,
) -> None:
    """End the run for good: its last version is validated and exported, and the workers are told."""
    from coordinator.edge.operator_client import stop_run
    from coordinator.run.folder import RunFolder

    run = RunFolder.open(folder)
    stop_run(run, reason=reason)
    if as_json:
        print_json({"run_id": run.run_id, "ending": True, "reason": reason})
        return
    print("the run is ending: its last version is validated and exported first")
