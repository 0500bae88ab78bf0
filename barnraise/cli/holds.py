"""The operator's commands that hold a run and let it go on, tell its volunteers something, and show who ordered what.

Decides how they are told; `coordinator/` does the rest.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.elsewhere import At, run_meant
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table

if TYPE_CHECKING:
    from coordinator.edge.elsewhere import Elsewhere
    from coordinator.run.folder import RunFolder

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept in the journal; volunteers who wait are told.")]

_NOW = {
    "paused": "paused: time stands, nothing is granted, and what is sent is taken",
    "draining": "draining: nothing is granted, and no round begins after the open one",
    "running": "going on",
}


def pause(folder: RunArgument, why: Why = "", at: At = "", as_json: Json = False) -> None:
    """Have time stand: no leases, no deadlines, nobody is late, uploads are taken. `resume` lets the run go on."""
    _hold("pause", run_meant(folder, at), why, as_json)


def drain(folder: RunArgument, why: Why = "", at: At = "", as_json: Json = False) -> None:
    """Grant no more leases: the open round ends with those that are out, then the coordinator may be stopped."""
    _hold("drain", run_meant(folder, at), why, as_json)


def resume(folder: RunArgument, at: At = "", as_json: Json = False) -> None:
    """Let a paused or drained run go on."""
    _hold("resume", run_meant(folder, at), "", as_json)


def announce(
    folder: RunArgument,
    text: Annotated[str, typer.Argument(help="At most 200 characters; an empty one takes the last one back.")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Tell every volunteer something: it stands beside the reason whenever a worker waits for its next lease."""
    from coordinator.edge import operator_client

    operator_client.announce(run_meant(folder, at), text)
    if as_json:
        print_json({"announced": text})
    else:
        print("volunteers who wait are told from now on" if text else "nothing is announced any more")


def _hold(verb: str, where: RunFolder | Elsewhere, text: str, as_json: bool) -> None:
    from coordinator.edge.operator_client import hold_run

    found = hold_run(where, verb, text)
    if as_json:
        print_json(found)
    else:
        already = " (as before)" if found["before"] == found["now"] else ""
        print(f"the run is {_NOW[found['now']]}{already}")


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
