"""The operator's commands for a second machine: a link for it, following, promotion, whether answers wait, the witness.

Decides how they are asked for and told; `coordinator/` does the rest. Giving up on a machine is asked for in words that
nobody types by accident.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import Json, RunArgument, number
from barnraise.cli.output import print_json, print_pairs

FollowerArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The follower's folder.")]
MachineIsOff = Annotated[
    bool,
    typer.Option(
        "--other-machine-is-off",
        help="You looked: the other machine is off, and stays off until this is done. If it is not, two machines go on "
        "with one run, and what one of them accepts is lost.",
    ),
]


def standby_link(folder: RunArgument, as_json: Json = False) -> None:
    """Make the link by which one other machine may follow this run, and take its place one day.

    Whoever has it gets all of the run, its secret keys included: send it as you would send a password. It is for
    one machine, lives a day, and takes the place of an earlier one.
    """
    from coordinator.edge.standby_desk import standby_link as make
    from coordinator.run.folder import RunFolder

    link = make(RunFolder.open(folder))
    if as_json:
        print_json({"standby_link": link})
        return
    print(link)
    print(f"\non the other machine:   barnraise coordinator follow '{link}' DIR", file=sys.stderr)


def follow(
    link: Annotated[str, typer.Argument(help="What `standby-link` printed; - goes on with the one that DIR has.")],
    folder: FollowerArgument,
    take_over: Annotated[
        float | None,
        typer.Option(
            parser=number(least=5, most=86_400),
            metavar="SECONDS",
            help="After so much silence of the leader, ask the witness to lead, and serve the run from here. It says "
            "yes only where the leader waited for this machine (sync).",
        ),
    ] = None,
) -> int:
    """Keep a copy of a run that follows every step of it, until Ctrl-C; `promote` makes it lead."""
    import asyncio

    from barnraise.cli.standby_runs import keep_following

    return asyncio.run(keep_following(link, folder, take_over))


def promote(folder: FollowerArgument, other_machine_is_off: MachineIsOff = False, as_json: Json = False) -> None:
    """Have a follower lead the run from now on; then serve it with `barnraise coordinator run`.

    Where the leader waited for this machine (sync) and there is a witness, its word is enough, and nothing is lost.
    Else you have to say that the other machine is off; what it acknowledged and this one had not got is lost then.
    """
    from barnraise.cli.standby_runs import promoted

    epoch = promoted(folder, confirmed=other_machine_is_off)
    if as_json:
        print_json({"folder": str(folder), "epoch": epoch})
        return
    print(f"{folder} leads the run from now on, in epoch {epoch}")
    print(f"serve it:   barnraise coordinator run {folder}")


def standby(
    folder: RunArgument,
    mode: Annotated[
        str,
        typer.Option(
            metavar="async|sync",
            help="sync: every answer waits until the follower has it, and nothing is lost with this machine; without "
            "the follower the run stands still. async: answers do not wait.",
        ),
    ] = "",
    witness: Annotated[
        str, typer.Option(metavar="LINK", help="Ask this witness who leads: what `witness` printed.")
    ] = "",
    other_machine_is_off: MachineIsOff = False,
    as_json: Json = False,
) -> None:
    """Show whether another machine follows this one, and say whether answers wait for it."""
    from barnraise.cli.standby_runs import change_standby
    from protocol.errors import ConfigError

    if mode not in {"", "async", "sync"}:
        raise ConfigError(f"--mode is async or sync, not {mode!r}")
    found = change_standby(folder, mode=mode, witness=witness, confirmed=other_machine_is_off)
    if as_json:
        print_json(found)
        return
    follower = found["follower"]
    there = "is there" if found["attached"] else "is not there"
    print_pairs(
        (
            ("epoch", found["epoch"]),
            ("mode", MODES.get(str(found["mode"]), str(found["mode"]))),
            ("follower", f"{follower} {there}, {found['behind']} records behind" if follower else "none"),
            *((("trouble", found["trouble"]),) if found["trouble"] else ()),
        )
    )


MODES = {
    "async": "async: answers do not wait for the follower",
    "entering": "sync, as soon as the follower has caught up and the witness knows; answers wait already",
    "sync": "sync: every answer waits until the follower has it",
    "leaving": "async, as soon as the witness knows; answers still wait",
}


def witness(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The witness's own folder; made when it is not there.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = 7468,
) -> int:
    """Keep who leads which run, on a third machine, until Ctrl-C: a few hundred bytes a run, and hardly any work."""
    import asyncio

    from barnraise.cli.standby_runs import keep_witnessing

    return asyncio.run(keep_witnessing(folder, host, port))
