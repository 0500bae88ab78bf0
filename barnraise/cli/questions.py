"""What `barnraise coordinator init` asks somebody who gave it nothing: the model, the text, a name, and an address.

Decides when it asks, and in which words; an answer stands for the option beside it, and an empty one for what is shown.
Whatever was given as an option is not asked again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from barnraise.cli.options import one_of
from moe.presets import PRESETS

LOOPBACK = "127.0.0.1"


def can_ask() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def answered(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, a run's settings by their names, with answers for what is None there."""
    found = dict(given)
    _tell("A run trains one model. Press Enter for what stands in brackets; each can be given as an option, too.")
    model = _ask(f"Model: {one_of(PRESETS)} from scratch, or the folder of a Hugging Face checkpoint", "tiny")
    found["preset" if model in PRESETS else "checkpoint"] = model
    if found["data"] is None:
        data = _ask("Text to train on: a file, a folder, or stdlib (Python's own source)", "stdlib")
        while data != "stdlib" and ":" not in data and not Path(data).expanduser().exists():
            data = _ask(f"There is no {data}. A file, a folder, or stdlib", "stdlib")
        found["data"] = data
    if found["name"] is None:
        found["name"] = _ask("Name of the run, as volunteers see it", "barnraise run")
    if found["host"] is None and found["advertised_hosts"] is None:
        host = _ask("Name or address by which volunteers reach this machine; none: from this machine alone", "")
        if host:
            found["host"], found["advertised_hosts"] = "0.0.0.0", [host]  # noqa: S104  # that is what was asked
        else:
            found["host"] = LOOPBACK
    return found


def _ask(question: str, usual: str) -> str:
    return str(typer.prompt(question, default=usual, show_default=bool(usual), err=True)).strip()


def _tell(text: str) -> None:
    typer.echo(text, err=True)
