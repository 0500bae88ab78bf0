"""The operator's two commands about settings: change one, list them all.

Decides how they are told; `coordinator/` does the rest.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.elsewhere import At, run_meant
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, say_note

if TYPE_CHECKING:
    from coordinator.run.changing import Change


def set_setting(
    folder: RunArgument,
    key: Annotated[str, typer.Argument(help="As quorum or inner.learning_rate; docs/settings.md lists them.")],
    value: Annotated[str, typer.Argument(help="As in TOML, or a bare word; none where a setting may be left out.")],
    at: At = "",
    as_json: Json = False,
) -> None:
    """Change a setting of the rounds, while the run is served or not. It counts from the next round on."""
    from coordinator.edge.operator_client import change_setting

    change, served = change_setting(run_meant(folder, at), key, value)
    if as_json:
        print_json({**dataclasses.asdict(change), "served": served})
    say_changed(folder, change, served=served, quiet=as_json)


def say_changed(folder: Path, change: Change, *, served: bool, quiet: bool) -> None:
    """What a change of a setting came to; `quiet`: only what standard error is for."""
    if quiet:
        pass
    elif change.value == change.before:
        print(f"{change.key} is {shown(change.value)} already")
    else:
        print(f"{change.key} was {shown(change.before)} and is {shown(change.value)} from round {change.from_round} on")
    if change.caution:
        say_note(change.caution)
    if change.file_trouble:
        print(f"settings.toml does not show it yet ({change.file_trouble}); the next start writes it", file=sys.stderr)
    if not served:
        print(f"the coordinator is not running: `barnraise coordinator run {folder}` goes on with it", file=sys.stderr)


def list_settings(folder: RunArgument, as_json: Json = False) -> None:
    """Every setting with its value, and when it counts: edited for this machine, fixed, or changed by `set`."""
    from coordinator.run.changing import setting_rows
    from coordinator.run.folder import RunFolder

    rows = setting_rows(RunFolder.open(folder))
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    for row in rows:
        then = "" if row.next_value == row.value else f", {shown(row.next_value)} from the next round on"
        print(f"{row.counts:<8} {row.key:<34} {shown(row.value)}{then}")


def shown(value: object) -> str:
    """A setting's value as `set` takes it."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
