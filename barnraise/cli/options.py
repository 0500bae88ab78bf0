"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any engine setting, as inner.schedule=linear or quorum=2; may be repeated. "
        "A wrong key is answered with those there are.",
    ),
]
