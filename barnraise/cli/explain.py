"""`barnraise coordinator explain`: everything about one round, one worker or one lease.

Decides how it is told; coordinator/edge/accounts.py says what.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated

import typer

from barnraise.cli.audit_log import print_lines
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json


def explain(
    folder: RunArgument,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ROUND|LEASE|WORKER", help="A round as 3, a lease as r3.9, a worker's name or the start of its id."
        ),
    ],
    as_json: Json = False,
) -> int:
    """What something is, why, and what was judged of it, from the journal. Exit code 1: nobody serves the run."""
    from coordinator.edge.accounts import explained
    from coordinator.run.folder import RunFolder

    found = explained(RunFolder.open(folder), subject)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        if not found.served:
            moment = datetime.fromtimestamp(found.as_of_s).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
            print(f"No coordinator is running; this is as of {moment}, when something was last recorded.\n")
        print("\n".join(found.lines))
        if found.judgements:
            print()
            print_lines(found.judgements)
    return 0 if found.served else 1
