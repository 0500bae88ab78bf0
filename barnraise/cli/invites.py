"""The operator's invitations: `barnraise coordinator invite`, `invites`, and the links of founders as a run is made.

Decides how links are asked for; `coordinator/` makes them, and `links.py` hands them over.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.elsewhere import At, AtCommand, run_meant
from barnraise.cli.options import Json, RunArgument, number
from barnraise.cli.output import print_json, print_table

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

app = typer.Typer(no_args_is_help=True, help="The invites that were given out: look, take one back.")

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
    at: At = "",
    as_json: Json = False,
) -> None:
    """Make join links. They work while the run is served; it need not be now."""
    from barnraise.cli.links import give_links, require_writable
    from coordinator.edge.operator_client import create_invites
    from coordinator.run.inviting import InviteTerms
    from protocol.errors import ConfigError, MalformedMessage

    life_s = expires_in_h * 3600.0
    try:
        terms = InviteTerms.checked(count=count, trusted=trusted, life_s=life_s, owner=owner, uses=uses)
    except MalformedMessage as error:
        raise ConfigError(str(error)) from error
    where = run_meant(folder, at)
    if to is not None:
        require_writable(to)
    links, served = create_invites(where, terms)
    give_links(links, to=to, as_json=as_json)
    if folder is not None and not at:
        _say_names_that_lead_nowhere(folder)
    if not served:
        note = f"the coordinator is not running: these work once it is (`barnraise coordinator run {folder}`)"
        print(note, file=sys.stderr)


def _say_names_that_lead_nowhere(folder: Path) -> None:
    from coordinator.run.doctor import leading_nowhere
    from coordinator.run.folder import RunFolder

    for name in leading_nowhere(RunFolder.open(folder).settings()):
        note = f"{name} leads nowhere from this machine: `barnraise coordinator doctor {folder}` says what to do"
        print(f"note: {note}", file=sys.stderr)


@app.command("list", cls=AtCommand)
def list_invites(
    folder: RunArgument,
    every: Annotated[bool, typer.Option("--all", help="Also those that let nobody in any more.")] = False,
    at: At = "",
    as_json: Json = False,
) -> None:
    """The invites that were given out, by their digests: the links themselves nobody can look up."""
    from coordinator.edge import operator_client

    found = operator_client.list_invites(run_meant(folder, at))
    shown = [one for one in found if every or one["state"] == "open"]
    if as_json:
        print_json(found)
        return
    rows = [
        {
            "invite": one["invite"],
            "state": one["state"],
            "came": f"{one['used']} of {one['uses']}",
            "whose": one["owner"] + (" (founder)" if one["trusted"] else ""),
            "until": f"{datetime.fromtimestamp(one['expires_at_s']):%Y-%m-%d %H:%M}",
        }
        for one in shown
    ]
    if rows:
        print_table(("invite", "state", "came", "whose", "until"), rows)
    if len(shown) < len(found):
        print(f"{len(found) - len(shown)} that let nobody in any more: --all shows them", file=sys.stderr)
    elif not found:
        print("nobody has been invited yet")


@app.command("revoke", cls=AtCommand)
def revoke_invite(
    folder: RunArgument,
    invite: Annotated[str, typer.Argument(help="The join link, or the digest that `invites list` shows.")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Take an invite back: nobody else comes in by it. Whoever did stays; `ban --invite` shuts them out."""
    from coordinator.edge import operator_client
    from protocol.errors import ConfigError, MalformedMessage

    try:
        digest, changed = operator_client.revoke_invite(run_meant(folder, at), invite)
    except MalformedMessage as error:
        raise ConfigError(str(error)) from error
    if as_json:
        print_json({"invite": digest, "changed": changed})
    else:
        print(f"{digest}: {'nobody else comes in by it' if changed else 'it was taken back before'}")


def founders_links(run: RunFolder, count: int) -> list[str]:
    """Join links that work once the run is served, each for one machine of somebody who is trusted."""
    from coordinator.run.inviting import InviteTerms, make_links_while_stopped

    return make_links_while_stopped(run, InviteTerms(count=count, trusted=True)) if count else []
