"""`barnraise coordinator migrate`: brings a run of an earlier release to this one, with a copy kept as it was.

Decides where the copy goes unless told; `coordinator/` does the rest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json


def migrate(
    folder: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    backup: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the run is kept as it was; without it, beside the run's folder."),
    ] = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Keep no copy.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a run of an earlier release to this one. `coordinator run` does so, too, but keeps no copy.

    The copy is a run folder that the earlier release opens: serve one of the two, never both.
    """
    from coordinator.engine.version import ENGINE_VERSION
    from coordinator.run.folder import RunFolder
    from coordinator.run.migrate import migrate as bring
    from protocol.errors import ConfigError

    if no_backup and backup is not None:
        raise ConfigError("--no-backup keeps no copy, and --backup says where one goes: give one or the other")
    run = RunFolder.open(folder)
    kept = None if no_backup else backup or run.root.with_name(f"{run.root.name}-before-{ENGINE_VERSION}")
    told = bring(run, backup=kept, dry_run=dry_run)
    if as_json:
        print_json(dataclasses.asdict(told) | {"dry_run": dry_run})
        return
    what = f"run {told.run_id}, in round {told.round} at version {told.version}"
    if told.found == told.now:
        print(f"{what}, is of this release already (engine version {told.now}): nothing to do")
    elif dry_run:
        copy = "no copy is kept" if kept is None else f"a copy goes to {kept}"
        print(f"{what}, would go from engine version {told.found} to {told.now}; {copy}; nothing was changed")
    else:
        print(f"{what}, went from engine version {told.found} to {told.now}")
        if told.backup:
            print(f"as it was it is in {told.backup}; delete that once the run does well")
        print(f"serve it:   barnraise coordinator run {folder}")
