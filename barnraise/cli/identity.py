"""`barnraise worker identity`: this machine's keys, taken along, replaced, given up.

Decides how they are told; `worker/` does the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, WhichRun, WorkerHome
from barnraise.cli.output import print_json, print_table, say_error, say_note
from barnraise.cli.passphrases import Descriptor, passphrase

if TYPE_CHECKING:
    from worker.identity import KeyOfRun, KeyOutcome

app = typer.Typer(no_args_is_help=True, help="This machine's keys: one for each run that it takes part in.")

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
_COLUMNS = ("run", "name", "gpu", "worker", "public_key")


@app.command()
def show(home: WorkerHome = None, as_json: Json = False) -> None:
    """The public keys of this machine, and which run knows each."""
    from worker.identity import keys

    _tell(keys(home), as_json)


@app.command("export")
def export_keys(
    file: Annotated[Path, typer.Argument(help="Where to write them; must not be there yet.")],
    run: WhichRun = "",
    home: WorkerHome = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Write this machine's keys to a file that a passphrase opens: for a new machine, or the day this disk fails."""
    from protocol.errors import ConfigError
    from protocol.private_files import write_private
    from worker.identity import exported

    if file.exists():
        raise ConfigError(f"{file} is there already: it may be the only copy of a key; choose another name")
    content, found = exported(home, passphrase(passphrase_fd, twice=True), run)
    write_private(file, content)
    _tell(found, as_json)
    say_note(f"whoever has {file} and the passphrase is this machine to those runs; keep them apart")


@app.command("import")
def import_keys(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    home: WorkerHome = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Put keys from such a file into place. The machine that they came from must not run with them any more."""
    from protocol.private_files import read_private
    from worker.identity import imported

    content = read_private(file)
    _tell(imported(content, passphrase(passphrase_fd), home), as_json)


@app.command()
def rotate(run: WhichRun = "", home: WorkerHome = None, as_json: Json = False) -> int:
    """Replace this machine's keys in a run by new ones: a copy of an old one is worth nothing then. Stop the worker
    first. Interrupted, it is finished by the same command."""
    import asyncio

    from worker.identity import rotated

    return _tell_outcomes(asyncio.run(rotated(home, run)), as_json)


@app.command()
def revoke(run: WhichRun = "", home: WorkerHome = None, yes: Yes = False, as_json: Json = False) -> int:
    """Have a run never take this machine's keys again, whoever has them. What they earned stays. No way leads back."""
    import asyncio

    from worker.identity import left

    _confirm("No key of this machine will ever be taken again in that run. Go on?", yes=yes)
    return _tell_outcomes(asyncio.run(left(home, run, revoke=True)), as_json)


@app.command()
def forget(run: WhichRun = "", home: WorkerHome = None, yes: Yes = False, as_json: Json = False) -> int:
    """Leave a run and have it erase this machine's name, team, owner and address. What it earned stays, under two words
    that follow from each key. Its keys here stay; another invite lets it in again, as who it was."""
    import asyncio

    from worker.identity import left

    _confirm("This machine leaves that run, which forgets what it is called. Go on?", yes=yes)
    return _tell_outcomes(asyncio.run(left(home, run, forget=True)), as_json)


def _tell(found: list[KeyOfRun], as_json: bool) -> None:
    from worker.identity import plain

    if as_json:
        print_json(plain(found))
        return
    rows = [
        dict(zip(_COLUMNS, (one.run_id, one.run_name, one.gpu or "first", one.worker, one.public_key), strict=True))
        for one in found
    ]
    if rows:
        several = any(one.gpu for one in found)
        print_table([one for one in _COLUMNS if several or one != "gpu"], rows)
    else:
        print("this machine is enrolled in no run yet")


def _tell_outcomes(outcomes: list[KeyOutcome], as_json: bool) -> int:
    """What became of each key. Exit code 1: of some nothing did."""
    from worker.identity import plain

    failed = [one for one in outcomes if one.error is not None]
    if len(outcomes) == 1 and failed and failed[0].error is not None:
        raise failed[0].error
    if as_json:
        print_json(
            [
                row | {"trouble": one.trouble}
                for row, one in zip(plain([one.key for one in outcomes]), outcomes, strict=True)
            ]
        )
        return 1 if failed else 0
    if done := [one.key for one in outcomes if one.error is None]:
        _tell(done, as_json=False)
    for one in failed:
        say_error(
            f"not done for {one.key.gpu or 'the first GPU'}: {one.trouble.rstrip('.')}; the same command tries again"
        )
    return 1 if failed else 0


def _confirm(question: str, *, yes: bool) -> None:
    from protocol.errors import ConfigError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked whether this is meant: give --yes")
    typer.confirm(question, abort=True, err=True)
