"""The operator's invitations: `barnraise coordinator invite`, and the links that founders get as a run is made.

Decides how links are asked for; `coordinator/` makes them, and `links.py` hands them over.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, RunArgument, number

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

MOST_HOURS = 8784
"""The longest life of an invite, a leap year (coordinator/edge/operator_service.py), in the unit of the option."""


def invite(
    folder: RunArgument,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many join links.")] = 1,
    uses: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000,
            help="Machines that each link is for: one link for everybody who reads a page. Ban such a link, and with "
            "it all who came by it, with `ban --invite`.",
        ),
    ] = 1,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Founders: full weight from the start, and may audit others.")
    ] = False,
    expires_in_h: Annotated[
        float,
        typer.Option(
            parser=number(above=0, most=MOST_HOURS),
            metavar="HOURS",
            help="Hours until an unused link expires; a year (8784) at most.",
        ),
    ] = 168.0,
    owner: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose machines these links are for: machines of one owner never check each other's work. "
            "Default: each machine is its own.",
        ),
    ] = "",
    to: Annotated[Path | None, typer.Option(help="Write them as files into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Make join links. They work while the run is served; it need not be now."""
    from barnraise.cli.links import give_links, require_writable
    from coordinator.edge.operator_client import create_invites
    from coordinator.run.folder import RunFolder
    from coordinator.run.inviting import InviteTerms
    from protocol.errors import ConfigError, MalformedMessage

    life_s = expires_in_h * 3600.0
    try:
        terms = InviteTerms.checked(count=count, trusted=trusted, life_s=life_s, owner=owner, uses=uses)
    except MalformedMessage as error:
        raise ConfigError(str(error)) from error
    run_folder = RunFolder.open(folder)
    if to is not None:
        require_writable(to)
    links, served = create_invites(run_folder, terms)
    give_links(links, to=to, as_json=as_json)
    if not served:
        note = f"the coordinator is not running: these work once it is (`barnraise coordinator run {folder}`)"
        print(note, file=sys.stderr)


def founders_links(run: RunFolder, count: int) -> list[str]:
    """Join links that work once the run is served, each for one machine of somebody who is trusted."""
    from coordinator.run.inviting import InviteTerms, make_links_while_stopped

    return make_links_while_stopped(run, InviteTerms(count=count, trusted=True)) if count else []
