"""Options that several commands share, and what a number must be to be taken.

Decides ranges in people's units; what is not a number, or not finite, is refused here and not in the middle of work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

MOST_SEED = 2**63 - 1

RunArgument = Annotated[Path, typer.Argument(help="The run's folder.")]

Json = Annotated[bool, typer.Option("--json", help="For machines.")]

WorkerHome = Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")]
WhichRun = Annotated[
    str, typer.Option("--run", help="The coordinator's HOST:PORT, where this machine is in several runs.")
]

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any engine setting, as inner.schedule=linear or quorum=2; may be repeated. "
        "A wrong key is answered with those there are.",
    ),
]


def one_of(names: Iterable[str]) -> str:
    """The names that an option may have, for its help."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Callable[[str | float], float]:
    """A parser for an option's number: finite, and within the limits that are given."""
    limits = ((least, "at least {:g}"), (above, "above {:g}"), (most, "at most {:g}"), (below, "below {:g}"))
    told = " and ".join(words.format(limit) for limit, words in limits if limit is not None)

    def parse(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = (
            math.isfinite(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not fits:
            raise typer.BadParameter(f"{text} is not a number {told}")
        return value

    return parse
