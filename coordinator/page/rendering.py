"""A picture of the run as HTML: panels, each a fragment with an id of its own, and the two pages made of them.

Decides words and order. Always: everything from outside is escaped (templates escape by themselves, and an unknown name
in one is an error), no style or script is inline, and a panel whose picture is the same is the same text, so that
viewers are sent what has changed and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from coordinator.page import charts
from coordinator.page.view import LossPoint, RunView
from protocol.text import duration, human_bytes

WORKERS_ON_OVERVIEW = 25
CHUNK = 50
"""Workers in one fragment of their page: what changes is sent, and drawn, so many rows at a time."""

_PANELS = ("headline", "round", "loss", "columns", "workers", "verdicts", "credit", "bytes", "energy", "rounds", "card")
_AXES: Final = (("round", "rounds"), ("tokens", "tokens"), ("hours", "hours"))


class Sheet(StrEnum):
    """The pages there are."""

    OVERVIEW = "overview"
    WORKERS = "workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """One page at one moment."""

    number: int
    fragments: Mapping[str, str]
    """Id to what is inside the element with this id."""
    document: bytes


def render(sheet: Sheet, view: RunView, number: int, *, operators: bool = False) -> Rendering:
    """`view` as a page; `number` tells renderings apart. `operators`: whether there is a door for them."""
    fragments = _overview(view) if sheet is Sheet.OVERVIEW else _workers(view)
    document = template(f"{sheet}.html").render(view=view, fragments=fragments, number=number, operators=operators)
    return Rendering(number=number, fragments=fragments, document=document.encode())


def changed(before: Rendering, after: Rendering) -> dict[str, str]:
    """Fragments of `after` that are not as in `before`. One that is gone is empty."""
    gone = dict.fromkeys(before.fragments.keys() - after.fragments.keys(), "")
    return gone | {name: text for name, text in after.fragments.items() if before.fragments.get(name) != text}


def _overview(view: RunView) -> dict[str, str]:
    facts = {
        "view": view,
        "charts": [(name, label, _loss_chart(view.losses, name)) for name, label in _AXES],
        "timeline": charts.timeline(view.open_round, view.at_s),
        "shown_workers": view.workers[:WORKERS_ON_OVERVIEW],
    }
    return {name: _panel(name).render(facts) for name in _PANELS}


def _workers(view: RunView) -> dict[str, str]:
    fragments = {name: _panel(name).render(view=view) for name in ("headline", "counts")}
    chunk = _panel("chunk")
    for first in range(0, max(1, len(view.workers)), CHUNK):
        fragments[f"rows-{first // CHUNK}"] = chunk.render(
            workers=view.workers[first : first + CHUNK], first=first == 0
        )
    return fragments


def _loss_chart(losses: tuple[LossPoint, ...], axis: str) -> charts.LineChart | None:
    points = [(float(getattr(one, axis)), one.loss, one.standard_error) for one in losses]
    texts = [f"version {one.version}, round {one.round}: {one.loss:.4f} nats a token" for one in losses]
    return charts.line_chart(points, texts)


def loss(value: float | None) -> str:
    """Nats a token, as in a table."""
    return "–" if value is None else f"{value:.4f}" if math.isfinite(value) else "not finite"


def grouped(value: float | None) -> str:
    """`12 345`: thousands apart, by a thin space that does not break."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def moment(at_s: float) -> str:
    """By the calendar, in UTC: a page is read everywhere."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def large(value: float) -> str:
    """`6.92 billion`, `450 thousand`."""
    for limit, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= limit:
            return f"{value / limit:.3g} {word}"
    return f"{value:.0f}"


def energy(kwh: float) -> str:
    """`340 Wh`, `12.4 kWh`, `3.10 MWh`: three digits, of an estimate."""
    for limit, unit in ((1e3, "MWh"), (1.0, "kWh")):
        if kwh >= limit:
            return f"{float(f'{kwh / limit:.3g}'):g} {unit}"
    return f"{float(f'{1e3 * kwh:.2g}'):g} Wh"


def reason_words(key: str) -> str:
    """A kind of refusal, for reading."""
    return key.replace("_", " ")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("coordinator.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "loss": loss,
        "grouped": grouped,
        "moment": moment,
        "bytes": human_bytes,
        "energy": energy,
        "large": large,
        "reason": reason_words,
    }
    environment.globals |= {"width": charts.WIDTH, "plot_height": charts.HEIGHT, "left": charts.LEFT,
                            "right": charts.WIDTH - charts.RIGHT, "bottom": charts.HEIGHT - charts.BOTTOM,
                            "timeline_width": charts.TIMELINE_WIDTH,}  # fmt: skip
    return environment


def template(name: str) -> Template:
    """One of `templates/`."""
    return _environment().get_template(name)


def _panel(name: str) -> Template:
    return template(f"panels/{name}.html")
