"""Shows a running swarm: a rich table that redraws itself on a terminal, one plain line for each change elsewhere.

Decides how it looks; touches only the given console. `Display.show` may be called as often as one likes.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simulator.processes.view import SwarmView

_SPARKS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Where a simulation tells what is going on."""

    def show(self, view: SwarmView) -> None:
        """The swarm as it is now."""

    def say(self, line: str) -> None:
        """One thing that happened."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""


class LiveDisplay:
    """A table that redraws itself in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: SwarmView) -> None:
        """Redraw."""
        self._live.update(render(view))

    def say(self, line: str) -> None:
        """Print above the table."""
        self._live.console.print(line, highlight=False, markup=False)


class PlainDisplay:
    """Lines for logs and pipes: one whenever the stage or the round changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._rounds_shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, view: SwarmView) -> None:
        """Print what is new since the last time."""
        if view.stage != self._stage:
            self._stage = view.stage
            self.say(f"{_clock(view.elapsed_s)} {view.stage}")
        for record in view.history[self._rounds_shown :]:
            if record.val_loss is None and record is view.history[-1] and view.stage == self._stage == "training":
                return
            loss = "not validated" if record.val_loss is None else f"held-out loss {record.val_loss:.3f}"
            fates = f"{record.accepted} accepted, {record.rejected} rejected, {record.expired} dropped out"
            self.say(f"{_clock(view.elapsed_s)} round {record.round}/{view.rounds} closed: {loss}, {fates}")
            self._rounds_shown += 1

    def say(self, line: str) -> None:
        """Print one line, never wrapped."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class SilentDisplay:
    """Says nothing: for `--json`, whose output is for machines."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, view: SwarmView) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def display_for(console: Console, *, quiet: bool) -> Display:
    """The display that suits where `console` goes."""
    if quiet:
        return SilentDisplay()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def render(view: SwarmView) -> Group:
    """The whole picture: headline, losses, workers, waits."""
    headline = Text.assemble(
        (view.stage, "bold"),
        f"   round {view.round}/{view.rounds}   {view.phase}   {_clock(view.elapsed_s)}",
    )
    losses = Text("held-out loss  ")
    if view.val_loss:
        losses.append(sparkline(view.val_loss), style="blue")
        losses.append(f"  {view.val_loss[0]:.3f} → {view.val_loss[-1]:.3f} nats a token")
    else:
        losses.append("not measured yet", style="dim")
    waits = [Text(f"waiting: {wait}", style="dim") for wait in view.waits[:3]]
    return Group(headline, losses, _worker_table(view), *waits)


def _worker_table(view: SwarmView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("worker", "", "state"):
        table.add_column(name)
    for name in ("accepted", "rejected", "dropped"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="ellipsis", no_wrap=True, max_width=70)
    for worker in view.workers:
        style = "" if worker.alive else "dim"
        kind = Text("liar", style="red") if worker.byzantine else Text("")
        cells = (str(worker.accepted), str(worker.rejected or ""), str(worker.dropouts or ""), worker.why)
        table.add_row(worker.name, kind, worker.state, *cells, style=style)
    return table


def sparkline(values: tuple[float, ...], width: int = 40) -> str:
    """`values` as a row of bars, the last `width` of them."""
    shown = [value for value in values[-width:] if math.isfinite(value)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int((value - low) / span * len(_SPARKS)))] for value in shown)


def _clock(elapsed_s: float) -> str:
    minutes, seconds = divmod(int(elapsed_s), 60)
    return f"{minutes:d}:{seconds:02d}"
