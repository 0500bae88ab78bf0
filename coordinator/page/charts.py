"""Charts as SVG: from figures to coordinates, ticks and paths. Pure functions; the template draws what they give.

Decides scales and ticks. Always: everything is inside the view box whatever the figures are, a figure that is not
finite is left out, and no chart is the only place where its figures stand: beside it is a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.page.view import LeaseBar, OpenRound

WIDTH, HEIGHT = 640.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 10.0, 30.0
ROW_HEIGHT = 22.0
NAMES_WIDTH = 132.0
TIMELINE_WIDTH = 1120.0
"""As wide as the page: its words are then as large as the page's."""
MOST_POINTS = 300
"""Of a longer line every n-th point is drawn, and the last: the table has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One figure."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """One line in a view box of `WIDTH` by `HEIGHT`."""

    path: str
    band: str
    """Around the line, one standard error to each side."""
    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One lease: its row, the part that was trained, what came after, and its deadline."""

    lease: LeaseBar
    y: float
    x: float
    trained: float
    sent: float
    """Widths, of training and of sending."""
    deadline_x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The open round's leases over time, in a view box of `TIMELINE_WIDTH` by `height`."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    now_x: float
    height: float


def ticks_of(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in [low, high], at most `most` and a few: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low] if math.isfinite(low) else []
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short_number(value: float) -> str:
    """As it stands on an axis: `1.5M`, `20k`, `0.05`."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


def line_chart(points: Sequence[tuple[float, float, float]], texts: Sequence[str]) -> LineChart | None:
    """A chart of (x, y, error) with one text for each; None where fewer than two of them can be drawn."""
    drawn = [
        (x, y, error if math.isfinite(error) else 0.0, text)
        for (x, y, error), text in zip(points, texts, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    if len(drawn) > MOST_POINTS:
        step = math.ceil(len(drawn) / MOST_POINTS)
        drawn = [*drawn[:-1:step], drawn[-1]]
    if len(drawn) < 2:
        return None
    x_low, x_high = min(x for x, *_ in drawn), max(x for x, *_ in drawn)
    y_low = min(y - error for _, y, error, _ in drawn)
    y_high = max(y + error for _, y, error, _ in drawn)
    pad = 0.06 * (y_high - y_low) if _differ(y_low, y_high) else max(0.5, abs(y_high) * 0.1)
    y_low, y_high = y_low - pad, y_high + pad
    x_high = x_high if _differ(x_low, x_high) else x_low + max(1.0, abs(x_low) * 0.1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    upper = [at(x, y + error) for x, y, error, _ in drawn]
    lower = [at(x, y - error) for x, y, error, _ in reversed(drawn)]
    middle = [at(x, y) for x, y, _, _ in drawn]
    return LineChart(
        path=_path(middle),
        band=_path([*upper, *lower]) + "Z",
        dots=tuple(Dot(x=x, y=y, text=one[3]) for (x, y), one in zip(middle, drawn, strict=True)),
        x_ticks=tuple(Tick(at=at(x, 0)[0], text=short_number(x)) for x in ticks_of(x_low, x_high, 6)),
        y_ticks=tuple(Tick(at=at(0, y)[1], text=short_number(y)) for y in ticks_of(y_low, y_high, 4)),
    )


def _differ(low: float, high: float) -> bool:
    """Whether there is room for a scale between the two, in fp64: neither neighbours, nor next to nothing."""
    return high - low > max(1e-9 * max(abs(low), abs(high)), 1e-300)


def timeline(current: OpenRound, now_s: float) -> Timeline | None:
    """The round's leases from the first grant until now, or until the last deadline of those under way."""
    bars = current.leases
    if not bars:
        return None
    first_s = min(bar.granted_at_s for bar in bars)
    running = [bar.deadline_at_s for bar in bars if bar.state == "granted"]
    # a deadline far away would press what has happened into a corner
    horizon_s = min(max(running, default=now_s), now_s + (now_s - first_s) + 10.0)
    last_s = max(now_s, horizon_s, first_s + 1.0)
    room = TIMELINE_WIDTH - NAMES_WIDTH - 2 * RIGHT

    def at(moment_s: float) -> float:
        return NAMES_WIDTH + min(1.0, max(0.0, (moment_s - first_s) / (last_s - first_s))) * room

    rows = []
    for number, bar in enumerate(bars):
        trained_to = bar.committed_at_s if bar.committed_at_s is not None else min(now_s, bar.deadline_at_s)
        sent_to = trained_to
        if bar.committed_at_s is not None:
            sent_to = bar.arrived_at_s if bar.arrived_at_s is not None else now_s
        start, middle, end = at(bar.granted_at_s), at(trained_to), at(sent_to)
        rows.append(
            Bar(
                lease=bar,
                y=number * ROW_HEIGHT,
                x=start,
                trained=max(2.0, middle - start),
                sent=max(0.0, end - middle),
                deadline_x=at(bar.deadline_at_s),
                label=_bar_label(bar),
            )
        )
    ticks = tuple(Tick(at=at(first_s + s), text=f"{short_number(s)} s") for s in ticks_of(0.0, last_s - first_s, 5))
    return Timeline(bars=tuple(rows), ticks=ticks, now_x=at(now_s), height=len(rows) * ROW_HEIGHT + BOTTOM)


def _bar_label(bar: LeaseBar) -> str:
    words = {"granted": "training", "committed": "sending", "uploaded": "being checked", "rejected": "refused"}
    done = f", {bar.done} of {bar.steps} steps" if bar.state == "granted" and bar.done else ""
    return f"{bar.worker}: {words.get(bar.state, bar.state)}{done}, {bar.columns} columns"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
