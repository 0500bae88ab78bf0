"""`barnraise coordinator plan`: what a run will need and yield, before it starts.

Decides how it is told, each assumption beside it; coordinator/run/forecast.py reckons.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, RunArgument, number
from barnraise.cli.output import print_json, print_table
from protocol.text import duration, human_bytes

if TYPE_CHECKING:
    from coordinator.run.forecast import Forecast


def plan(
    folder: RunArgument,
    workers: Annotated[int, typer.Option(min=1, max=1_000_000, help="Workers that you expect.")] = 8,
    hours: Annotated[
        float, typer.Option(parser=number(above=0, most=24), metavar="HOURS", help="A day, that each takes part.")
    ] = 24.0,
    line: Annotated[
        str | None, typer.Option(metavar="UP/DOWN", help="Mbit/s of a volunteer; the run's setting unless said.")
    ] = None,
    price: Annotated[
        float, typer.Option(parser=number(least=0), metavar="MONEY", help="Of a kWh, in any currency.")
    ] = 0.30,
    tflops: Annotated[
        float | None,
        typer.Option(parser=number(above=0), metavar="NUMBER", help="TFLOP/s that a card sustains; else each class's."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(parser=number(above=0), metavar="NUMBER", help="That a machine draws in training; likewise."),
    ] = None,
    as_json: Json = False,
) -> int:
    """What the run will need and yield, before it starts: a row for each class of GPU, as if all workers had it.

    Reckoned from shapes and assumptions, not measured. Exit code 1: the model fits none of them.
    """
    from pydantic import ValidationError

    from coordinator.edge.stopped import engine_of_journal
    from coordinator.run.folder import RunFolder
    from coordinator.run.forecast import Assumed, forecast
    from coordinator.settings import RunSettings, describe
    from protocol.errors import ConfigError

    run = RunFolder.open(folder)
    settings, config = run.settings(), engine_of_journal(run)[0].state.chosen_config
    try:
        RunSettings.model_validate({"preset": "tiny", "line": line or settings.line})
    except ValidationError as error:
        raise ConfigError(f"--line: {describe(error)}") from error
    assumed = Assumed(
        workers=workers, hours_a_day=hours, line=line or settings.line, price_a_kwh=price, tflops=tflops, watts=watts
    )
    rows = forecast(settings, config, run.layout(), assumed)
    if as_json:
        print_json({"assumed": dataclasses.asdict(assumed), "classes": [dataclasses.asdict(row) for row in rows]})
        return int(not any(row.columns for row in rows))
    print(
        f"{config.inner.inner_steps} steps of {config.inner.batch_sequences} sequences of {settings.sequence_length} "
        f"tokens a lease, sent in {config.codec}; {run.layout().columns} columns in all\n"
    )
    print_table(tuple(_row(rows[0], 1)), [_row(row, run.layout().columns) for row in rows])
    print("\nReckoned, not measured. Assumed, and what says otherwise:")
    each = "each class's own, about 40 % of what such cards have in bf16" if tflops is None else f"{tflops:g} TFLOP/s"
    drawn = "each class's own, the machine included" if watts is None else f"{watts:g} W"
    for option, what in (
        ("--workers", f"{workers} workers, all of the row's class, none lost, no time between rounds"),
        ("--hours", f"{hours:g} hours a day"),
        ("--line", f"{assumed.line} Mbit/s up/down; a lease is fetched, trained and sent one after the other"),
        ("--tflops", f"sustained speed: {each}"),
        ("--watts", f"power in training: {drawn}"),
        ("--price", f"{price:g} a kWh; machines, lines and this coordinator cost nothing"),
    ):
        print(f"  {option:<10}{what}")
    return int(not any(row.columns for row in rows))


def _row(row: Forecast, columns: int) -> dict[str, object]:
    if not row.columns:
        nothing: dict[str, object] = dict.fromkeys(_NAMES, "-")
        return nothing | {"GPU": f"{row.memory_gib} GB", "columns": "does not fit"}
    to_go = "no end" if row.days is None else duration(86_400.0 * row.days)
    told = (
        f"{row.memory_gib} GB", f"{row.columns} of {columns}", human_bytes(row.up_bytes), human_bytes(row.down_bytes),
        human_bytes(row.first_bytes), _in_words(row.rounds_a_day), _in_words(row.tokens_a_day),
        f"{row.kwh_a_day:,.3g}", f"{row.money_a_day:,.3g}", to_go,
    )  # fmt: skip
    return dict(zip(_NAMES, told, strict=True))


_NAMES = (
    *("GPU", "columns", "up a round", "down a round", "first download", "rounds a day", "tokens a day"),
    *("kWh a day", "money a day", "to the end"),
)


def _in_words(count: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"
