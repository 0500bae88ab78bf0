"""`barnraise coordinator logs`: what a run's coordinator said, also before its last start.

Decides formats and the exit code; `coordinator/run/` keeps the lines and has the words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from barnraise.cli.options import Json, RunArgument

FOLLOW_EVERY_S = 0.3
_MARKS = {"warning": "!  ", "error": "!! ", "critical": "!! "}


def logs(
    folder: RunArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the newest lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    troubles: Annotated[bool, typer.Option("--troubles", help="Warnings and errors alone.")] = False,
    as_json: Json = False,
) -> int:
    """What happened, a line each: in words, or with `--json` as it was written down. Exit code 1: nothing was yet."""
    from coordinator.run.folder import RunFolder
    from coordinator.run.run_log import LogTail, last_lines

    run = RunFolder.open(folder)
    following = LogTail(run.log_path) if follow else None
    kept = 100_000 if troubles else lines
    found = [entry for entry in last_lines(run.log_path, kept) if not troubles or entry.get("level") in _MARKS]
    name_of = _names(run.registry_path)
    for entry in found[-lines:]:
        _print(entry, name_of, as_json=as_json)
    if following is None:
        if not found and not as_json:
            what = "no warning or error" if troubles else "nothing"
            print(f"{what} is in the log of {folder} yet; `barnraise coordinator run {folder}` writes it")
        return 0 if found else 1
    try:
        while True:
            for entry in following.news():
                if not troubles or entry.get("level") in _MARKS:
                    _print(entry, name_of, as_json=as_json)
            time.sleep(FOLLOW_EVERY_S)
    finally:
        following.close()


def _print(entry: dict[str, Any], name_of: Callable[[str], str], *, as_json: bool) -> None:
    from coordinator.run.log_words import in_words

    if as_json:
        print(json.dumps(entry), flush=True)
        return
    level = str(entry.get("level", ""))
    print(f"{_when(entry)} {_MARKS.get(level, '   ')}{in_words(entry, name_of)}", flush=True)


def _when(entry: dict[str, Any]) -> str:
    try:
        at = datetime.fromisoformat(str(entry.get("timestamp", "")))
    except ValueError:
        return " " * 14
    return f"{at.astimezone():%m-%d %H:%M:%S}"


def _names(registry: Path) -> Callable[[str], str]:
    """A worker's name by its id, looked up anew where somebody is new; the start of the id for whoever has none."""
    from coordinator.store.people import said_in
    from protocol.ids import WorkerId

    known: dict[WorkerId, str] = {}

    def name_of(worker: str) -> str:
        if WorkerId(worker) not in known and registry.is_file():
            known.update(said_in(registry).names)
            known.setdefault(WorkerId(worker), "")
        return known.get(WorkerId(worker), "") or worker[:12]

    return name_of
