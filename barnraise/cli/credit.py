"""`barnraise coordinator credit`: who has earned what, and what was taken back.

Decides how it is shown; `coordinator/engine/credit.py` decides what stands. Reads the journal, whether the run is
served or not, and of the registry names and teams.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table, say_note

_COLUMNS = ("rank", "name", "workers", "tokens", "leases", "rounds", "taken_back")


def credit(
    folder: RunArgument,
    by: Annotated[str, typer.Option(help="worker, owner or team.")] = "worker",
    most: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="The first so many.")] = 100,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, everybody.")] = False,
    revocations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the signed list of what was taken back, to be published."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Validated tokens and rounds, by worker, owner or team, the most first; served or not."""
    from coordinator.engine.credit import CreditOf
    from coordinator.run.credit import credit_of, write_revocations
    from coordinator.run.folder import RunFolder
    from protocol.errors import ConfigError

    if by not in set(CreditOf):
        raise ConfigError(f"--by {by}: expected worker, owner or team")
    if as_csv and as_json:
        raise ConfigError("give --csv or --json, and only one of them")
    run = RunFolder.open(folder)
    rows = credit_of(run, CreditOf(by))
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    elif as_csv:
        names = [one.name for one in dataclasses.fields(rows[0])] if rows else []
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_harmless(getattr(row, name)) for name in names] for row in rows)
    elif rows:
        shown = [
            {**{name: getattr(row, name, None) for name in _COLUMNS}, "taken_back": row.lost_tokens}
            for row in rows[:most]
        ]
        print_table(_COLUMNS, shown)
        if len(rows) > most:
            print(f"and {len(rows) - most} more: --limit")
    else:
        print("nobody is in a team yet" if by == "team" else "nothing was accepted yet")
    if revocations is not None:
        count = write_revocations(run, revocations)
        say_note(f"{revocations} names {count} lease{'' if count == 1 else 's'} whose receipts do not stand")


def _harmless(value: object) -> object:
    """A name that a spreadsheet would take for a formula is quoted; people chose it themselves."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t" else value
