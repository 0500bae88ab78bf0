"""The operator's commands that hold a run, let it go on or end it, tell its volunteers something, and show who ordered
what.

Decides how they are told; `coordinator/` does the rest.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.elsewhere import At, run_meant
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept in the journal; volunteers who wait are told.")]

_NOW = {
    "paused": "paused: time stands, nothing is granted, and what is sent is taken",
    "draining": "draining: nothing is granted, and no round begins after the open one",
    "running": "going on",
}


def pause(folder: RunArgument, why: Why = "", at: At = "", as_json: Json = False) -> None:
    """Have time stand: no leases, no deadlines, nobody is late, uploads are taken. `resume` lets the run go on."""
    _hold("pause", folder, at, why, as_json)


def drain(folder: RunArgument, why: Why = "", at: At = "", as_json: Json = False) -> None:
    """Grant no more leases: the open round ends with those that are out, then the coordinator may be stopped."""
    _hold("drain", folder, at, why, as_json)


def resume(folder: RunArgument, at: At = "", as_json: Json = False) -> None:
    """Let a paused or drained run go on."""
    _hold("resume", folder, at, "", as_json)


def announce(
    folder: RunArgument,
    text: Annotated[str, typer.Argument(help="At most 200 characters; an empty one takes the last one back.")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Tell every volunteer something: at a worker's next sign of life, and whenever it waits for its next lease."""
    from coordinator.edge import operator_client

    served = operator_client.announce(run_meant(folder, at), text)
    if as_json:
        print_json({"announced": text, "served": served})
    else:
        print("volunteers are told from now on" if text else "nothing is announced any more")
        _note_stopped(served, folder)


def _hold(verb: str, folder: Path, at: str, text: str, as_json: bool) -> None:
    from coordinator.edge.operator_client import hold_run

    found = hold_run(run_meant(folder, at), verb, text)
    if as_json:
        print_json(found)
    else:
        already = " (as before)" if found["before"] == found["now"] else ""
        print(f"the run is {_NOW[found['now']]}{already}")
        _note_stopped(found["served"], folder)


def _note_stopped(served: bool, folder: Path) -> None:
    if not served:
        start = f"`barnraise coordinator run {folder}`"
        print(f"the coordinator is not running: this is noted, and counts once it is ({start})", file=sys.stderr)


def orders(folder: RunArgument, at: At = "", as_json: Json = False) -> None:
    """What was ordered of the run, when, and from which account, the newest last; served or not."""
    from coordinator.edge.operator_client import list_orders

    found = list_orders(run_meant(folder, at))
    if as_json:
        print_json(found)
    elif not found:
        print("nothing was ordered yet")
    else:
        rows = [
            {
                "when": f"{one['at_s']:.0f} s"
                if one["wall_s"] is None
                else f"{datetime.fromtimestamp(one['wall_s']):%m-%d %H:%M:%S}",
                "who": one["actor"],
                "what": one["what"],
                "about": one["about"],
                "detail": one["detail"],
            }
            for one in found
        ]
        print_table(("when", "who", "what", "about", "detail"), rows)


def stop(
    folder: RunArgument,
    reason: Annotated[str, typer.Option(help="What the workers are told.")] = "stopped by the operator",
    at: At = "",
    as_json: Json = False,
) -> None:
    """End the run for good: its last version is validated and exported, and the workers are told."""
    from coordinator.edge.operator_client import stop_run
    from coordinator.run.folder import RunFolder

    where = run_meant(folder, at)
    stop_run(where, reason=reason)
    if as_json:
        known = {"run_id": where.run_id} if isinstance(where, RunFolder) else {}
        print_json({**known, "ending": True, "reason": reason})
        return
    print("the run is ending: its last version is validated and exported first")
