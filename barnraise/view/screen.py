"""The full-screen view: a worker's status, once a second, and four keys.

Decides how the panels stand on the screen, for a narrow terminal and a wide one, in the terminal's own colours, so that
light and dark ones, and none, are as their owners chose them. Holds always: the view asks and orders over the local
socket alone, so that closing it, or losing its terminal, leaves the worker running. Touches the terminal.
"""

from __future__ import annotations

import locale
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Static

from barnraise.view.facts import (
    Panel,
    Status,
    heading,
    lease_panel,
    loss_panel,
    machine_panel,
    rules_line,
    state_words,
    verdict_panel,
    work_panel,
)

EVERY_S: Final = 1.0
WIDE: Final = 100
"""Columns from which panels stand beside one another."""
NOBODY: Final = "No worker is running here just now. `barnraise worker run` starts one; q closes this view."

Ask = Callable[[str], Awaitable[list[Status]]]
"""A verb to every worker of this home; their answers."""


class VolunteerScreen(App[None]):
    """The screen."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "order('pause')", "pause"),
        Binding("r", "order('resume')", "resume"),
        Binding("f", "order('finish')", "finish, then leave"),
        Binding("tab", "next", "next run", show=False, priority=True),
        Binding("q", "quit", "close (the worker goes on)"),
        Binding("ctrl+c", "quit", "close", show=False, priority=True),
    ]
    CSS = """
    Screen { background: ansi_default; color: ansi_default; layout: vertical; }
    #head { height: 1; text-style: bold; padding: 0 1; }
    #state { height: auto; max-height: 3; padding: 0 1; margin-bottom: 1; }
    .row { height: auto; layout: vertical; }
    .row.wide { layout: horizontal; }
    .panel { height: auto; padding: 0 1; background: ansi_default; color: ansi_default; }
    .row.wide .panel { width: 1fr; margin-bottom: 1; }
    #body { height: 1fr; background: ansi_default; scrollbar-size: 1 1; }
    Footer { background: ansi_default; color: ansi_default; }
    FooterKey { background: ansi_default; color: ansi_default; }
    FooterKey .footer-key--key { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    FooterKey .footer-key--description { background: ansi_default; color: ansi_default; }
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__(ansi_color=True)
        self._ask = ask
        self._found: list[Status] = []
        self._at = 0
        self._plain = "utf" not in locale.getpreferredencoding(False).lower()

    def compose(self) -> ComposeResult:
        """Head, state, panels, keys."""
        yield Static("Barnraise", id="head", markup=False)
        yield Static("asking the worker …", id="state", markup=False)
        with VerticalScroll(id="body", can_focus=True):
            for row in (("lease", "machine"), ("work", "loss"), ("verdicts",)):
                with Horizontal(classes="row") if len(row) > 1 else Vertical(classes="row"):
                    for name in row:
                        yield Static("", id=name, classes="panel", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        """Begin to ask."""
        self.set_interval(EVERY_S, self.refresh_status)
        self._lay_out()
        await self.refresh_status()

    def on_resize(self) -> None:
        """The panels stand as there is room."""
        self._lay_out()
        if self._found:
            self._show()

    async def refresh_status(self) -> None:
        """Ask once."""
        self._found = await self._ask("status")
        self._show()

    async def action_order(self, verb: str) -> None:
        """Tell every worker of this home."""
        self._found = await self._ask(verb)
        self._show()

    def action_next(self) -> None:
        """The next run's worker, where there are several."""
        self._at += 1
        self._show()

    def _lay_out(self) -> None:
        for row in self.query(".row"):
            row.set_class(self.size.width >= WIDE, "wide")

    def _show(self) -> None:
        if not self._found:
            self._put("state", Text(NOBODY))
            return
        self._at %= len(self._found)
        status = self._found[self._at]
        several = f" ({self._at + 1} of {len(self._found)}, Tab shows the next)" if len(self._found) > 1 else ""
        self._put("head", Text(f"Barnraise · {heading(status)}{several}", no_wrap=True, overflow="ellipsis"))
        word, rest = state_words(status)
        self._put("state", Text.assemble((f" {word} ", "bold reverse"), f" {rest}"))
        for panel in self._panels(status):
            self._put(panel.name, _drawn(panel))

    def _panels(self, status: Status) -> list[Panel]:
        width = self.size.width // 2 if self.size.width >= WIDE else self.size.width
        verdicts, trouble = verdict_panel(status), rules_line(status)
        if trouble:
            verdicts = Panel(name="verdicts", title=verdicts.title, lines=(trouble, *verdicts.lines))
        loss = loss_panel(status, width - 4, plain=self._plain)
        return [lease_panel(status, width), machine_panel(status), work_panel(status), loss, verdicts]

    def _put(self, name: str, text: Text) -> None:
        for place in self.query(f"#{name}").results(Static):  # none while the screen comes and goes
            place.update(text)


def _drawn(panel: Panel) -> Text:
    drawn = Text(panel.title, style="bold underline")
    for line in panel.lines:
        drawn.append("\n" + line, style="not bold not underline")
    return drawn


def show(ask: Ask) -> Any:
    """The view, until it is closed."""
    return VolunteerScreen(ask).run()
