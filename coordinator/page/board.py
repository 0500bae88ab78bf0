"""The latest picture, rendered at most once for everybody, and who is told of the next.

Decides what a viewer is sent: after a page, only the panels that changed since. Always: used by the page's thread
alone; nothing is rendered that nobody asks for; a viewer that does not take what it is sent keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import islice

from coordinator.page.metrics import metrics_text
from coordinator.page.rendering import Rendering, Sheet, changed, render
from coordinator.page.view import RunView

WAKE_AT_ONCE = 10
WAKE_PAUSE_S = 0.004
"""So many viewers are woken before whoever asks for a page, and the coordinator's own thread, have a turn of so long: a
thousand are told within half a second instead of at once."""
KEPT_RENDERINGS = 4
"""Of each page: whoever has one of these is sent what changed since, everybody else every panel."""


class NothingYet(LookupError):
    """No picture of the run has been made yet."""


class Viewer:
    """One viewer of one page, that wants to know what changes."""

    def __init__(self, sheet: Sheet, number: int) -> None:
        self.sheet = sheet
        self.number = number
        """Of the rendering that it has."""
        self.news = asyncio.Event()


class Board:
    """What hangs out for all to see. Lives in the page's event loop."""

    def __init__(self, wall_s: Callable[[], float], *, operators: bool = False) -> None:
        """`operators`: whether pages lead to a door for them."""
        self._wall_s = wall_s
        self._operators = operators
        self._view: RunView | None = None
        self._number = 0
        self._kept: dict[Sheet, dict[int, Rendering]] = {sheet: {} for sheet in Sheet}
        self._news: dict[tuple[Sheet, int], bytes] = {}
        """By page and the number that a viewer has: what it is sent of the latest picture."""
        self._json: dict[str, bytes] = {}
        self._metrics: bytes | None = None
        self._watchers: dict[Viewer, None] = {}
        self._fresh = asyncio.Event()
        self.dropped = 0
        """Viewers that did not take what they were sent."""
        self.closed = False

    @property
    def view(self) -> RunView:
        """The latest picture. NothingYet."""
        if self._view is None:
            raise NothingYet("the coordinator has not made a picture of the run yet")
        return self._view

    @property
    def watching(self) -> int:
        """Viewers that are told of news."""
        return len(self._watchers)

    def publish(self, view: RunView) -> None:
        """A newer picture; whoever watches hears of it soon."""
        self._view = view
        self._number += 1
        self._news.clear()
        self._json.clear()
        self._metrics = None
        self._fresh.set()

    def close(self) -> None:
        """Nothing more comes: those who watch are let go."""
        self.closed = True
        for watcher in self._watchers:
            watcher.news.set()

    def age_s(self) -> float:
        """Since the latest picture; infinite where there was none."""
        return float("inf") if self._view is None else max(0.0, self._wall_s() - self._view.at_s)

    def page(self, sheet: Sheet) -> Rendering:
        """The page as of the latest picture. NothingYet."""
        kept, view = self._kept[sheet], self.view
        if self._number not in kept:
            kept[self._number] = render(sheet, view, self._number, operators=self._operators)
            for number in list(kept)[:-KEPT_RENDERINGS]:
                del kept[number]
        return kept[self._number]

    def json(self, part: str = "") -> bytes:
        """The latest picture, or the part of it with this name. NothingYet; KeyError where it has no such part."""
        if part not in self._json:
            whole = self.view.model_dump_json()
            self._json[part] = json.dumps(json.loads(whole)[part]).encode() if part else whole.encode()
        return self._json[part]

    def metrics(self) -> bytes:
        """The latest picture in Prometheus's text format. NothingYet."""
        if self._metrics is None:
            self._metrics = metrics_text(self.view, watching=self.watching, dropped=self.dropped)
        return self._metrics

    def watch(self, sheet: Sheet, number: int) -> Viewer:
        """Somebody has rendering `number` of a page and wants what comes after it."""
        watcher = Viewer(sheet, number)
        self._watchers[watcher] = None
        if number != self._number and self._view is not None:
            watcher.news.set()
        return watcher

    def leave(self, watcher: Viewer) -> None:
        """A viewer has gone."""
        self._watchers.pop(watcher, None)

    def news_for(self, watcher: Viewer) -> bytes:
        """What the watcher is to be sent now, as one server-sent event; empty where nothing that it has has changed."""
        now, before = self.page(watcher.sheet), self._kept[watcher.sheet].get(watcher.number)
        watcher.number = now.number
        key = (watcher.sheet, before.number if before else -1)
        if key not in self._news:
            panels = changed(before, now) if before else dict(now.fragments)
            self._news[key] = _event(now.number, panels) if panels else b""
        return self._news[key]

    async def tell_for_ever(self) -> None:
        """Wake those who watch at each new picture, a few at a time, until cancelled."""
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            waking = iter(list(self._watchers))
            while some := list(islice(waking, WAKE_AT_ONCE)):
                for watcher in some:
                    watcher.news.set()
                await asyncio.sleep(WAKE_PAUSE_S)


def _event(number: int, panels: dict[str, str]) -> bytes:
    return f"event: panels\nid: {number}\ndata: {json.dumps(panels)}\n\n".encode()
