"""The operator's commands about who takes part: ban, unban, pardon, rollback.

Decides how they are told; `coordinator/` does the rest.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.elsewhere import At, run_meant
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json

if TYPE_CHECKING:
    from coordinator.run.standings import StandingChange

Worker = Annotated[str, typer.Argument(metavar="[WORKER]", help="A worker's name, its id, or the start of its id.")]
Owner = Annotated[str, typer.Option(metavar="NAME", help="All machines of this owner, those to come included.")]
Invite = Annotated[
    str, typer.Option(metavar="LINK", help="All keys of this invite: the join link, or the digest that `status` shows.")
]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Kept in the journal.")]
WhyBanned = Annotated[str, typer.Option(metavar="TEXT", help="Kept in the journal; whoever is banned is told.")]

_DONE = {
    "ban": "banned",
    "unban": "unbanned, on probation",
    "pardon": "pardoned: nothing is held against it any more",
    "rollback": "a version without it will be made",
}
_ALREADY = {
    "ban": "is banned already",
    "unban": "is not banned",
    "pardon": "has nothing held against it",
    "rollback": "is being left out already",
}


def ban(
    folder: RunArgument,
    worker: Worker = "",
    owner: Owner = "",
    invite: Invite = "",
    why: WhyBanned = "",
    at: At = "",
    as_json: Json = False,
) -> None:
    """Shut out a worker, an owner or an invite: leases are cancelled, and what has not counted yet will not."""
    _change("ban", folder, at, worker, owner, invite, why, as_json)


def unban(
    folder: RunArgument,
    worker: Worker = "",
    owner: Owner = "",
    invite: Invite = "",
    why: Why = "",
    at: At = "",
    as_json: Json = False,
) -> None:
    """Take a ban back. The worker comes back on probation: it weighs nothing until it has sent valid work."""
    _change("unban", folder, at, worker, owner, invite, why, as_json)


def pardon(folder: RunArgument, worker: Worker, why: Why = "", at: At = "", as_json: Json = False) -> None:
    """Take back everything that is held against a worker, its ban included: it was wronged."""
    _change("pardon", folder, at, worker, "", "", why, as_json)


def rollback(
    folder: RunArgument,
    without: Annotated[str, typer.Option(metavar="WORKER", help="A worker's name, its id, or the start of its id.")],
    why: Why = "",
    at: At = "",
    as_json: Json = False,
) -> None:
    """Have a version made as if a worker had never taken part, as far back as `rollback_rounds` keeps what it needs."""
    _change("rollback", folder, at, without, "", "", why, as_json)


def _change(act: str, folder: Path, at: str, worker: str, owner: str, invite: str, why: str, as_json: bool) -> None:
    from coordinator.edge.operator_client import change_standing
    from coordinator.run.standings import Act, StandingOrder
    from protocol.errors import ConfigError, MalformedMessage

    try:
        order = StandingOrder.checked(act=Act(act), worker=worker, owner=owner, invite=invite, why=why)
    except MalformedMessage as error:
        raise ConfigError(str(error)) from error
    change, served = change_standing(run_meant(folder, at), order)
    if as_json:
        print_json({**dataclasses.asdict(change), "served": served})
    else:
        print(_told(change))
    if change.note:
        print(change.note, file=sys.stderr)
    if not served:
        print(f"the coordinator is not running: `barnraise coordinator run {folder}` goes on with it", file=sys.stderr)


def _told(change: StandingChange) -> str:
    whom = change.workers[0] if change.of == "key" else f"{change.of} {change.name}"
    if not change.changed:
        return f"{whom} {_ALREADY[change.act]}"
    known = f" ({len(change.workers)} enrolled: {', '.join(change.workers[:8])})" if change.of != "key" else ""
    return f"{whom}{known}: {_DONE[change.act]}"
