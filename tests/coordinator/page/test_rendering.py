"""What a page says is what the picture says, whatever stands in it; and nothing in it is anybody's code but ours."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.page import charts
from coordinator.page.rendering import CHUNK, Sheet, changed, grouped, large, loss, render
from coordinator.page.view import Headline, OpenReason, RunView, Tone
from protocol.text import duration
from tests.coordinator.page.pictures import NOW_S, card, open_round, picture, workers

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
STATES: tuple[dict[str, int], ...] = ({}, {"people": 0, "versions": 0, "leases": 0}, {"versions": 1}, {"people": 1000})


def hostile() -> RunView:
    """Everything that somebody else may have written, written by somebody who means harm."""
    rows = tuple(row.model_copy(update={"name": HOSTILE, "why": HOSTILE}) for row in workers(3))
    current = open_round(3)
    bars = tuple(bar.model_copy(update={"worker": HOSTILE}) for bar in current.leases)
    reasons = (OpenReason(subject=HOSTILE, text=HOSTILE),)
    whole = picture(people=3)
    return whole.model_copy(
        update={
            "card": card(name=HOSTILE, data=HOSTILE, model=HOSTILE),
            "headline": Headline(tone=Tone.TROUBLE, text=HOSTILE, advice=HOSTILE),
            "workers": rows,
            "open_round": current.model_copy(update={"leases": bars, "reasons": reasons}),
            "credit": tuple(one.model_copy(update={"name": HOSTILE, "team": HOSTILE}) for one in whole.credit),
            "columns": tuple(one.model_copy(update={"missing": (HOSTILE,)}) for one in whole.columns),
            "closed": tuple(one.model_copy(update={"why": HOSTILE}) for one in whole.closed),
            "judged": whole.judged.model_copy(update={"refused": {HOSTILE: 3}}),
        }
    )


@pytest.mark.parametrize("sheet", list(Sheet))
def test_what_people_write_is_text_and_nothing_else(sheet: Sheet) -> None:
    document = render(sheet, hostile(), 1).document.decode()
    assert "&lt;script&gt;alert(1)" in document
    assert "<script>alert" not in document
    assert "<img" not in document
    assert "onerror=alert(2)>" not in document.replace("&gt;", "")


@pytest.mark.parametrize("sheet", list(Sheet))
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(sheet: Sheet, state: dict[str, int]) -> None:
    document = render(sheet, picture(**state), 1).document.decode()
    assert not re.search(r"<[^>]*\s(style|on\w+)=", document)
    assert re.findall(r"<script[^>]*>(.*?)</script>", document) == [""]
    linked = re.findall(r"(?:href|src)=\"([^\"]*)\"", document)
    assert linked
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in linked)


def test_a_run_without_anything_says_so_in_each_panel() -> None:
    fragments = render(Sheet.OVERVIEW, picture(people=0, versions=0, leases=0), 1).fragments
    for name in ("round", "loss", "workers", "verdicts", "credit", "rounds"):
        assert 'class="empty"' in fragments[name], name


def test_only_what_changed_is_told() -> None:
    before = render(Sheet.OVERVIEW, picture(), 1)
    assert changed(before, render(Sheet.OVERVIEW, picture(), 2)) == {}
    other = Headline(tone=Tone.WAITING, text="waits")
    told = changed(before, render(Sheet.OVERVIEW, picture(headline=other), 2))
    assert list(told) == ["headline"]
    assert "waits" in told["headline"]


def test_workers_who_are_gone_leave_no_rows_behind() -> None:
    before, after = (render(Sheet.WORKERS, picture(people=count), 1) for count in (2 * CHUNK + 1, CHUNK))
    told = changed(before, after)
    assert told["rows-2"] == ""
    assert told["rows-1"] == ""
    assert "rows-0" not in told


def test_every_worker_is_in_the_table_once() -> None:
    document = render(Sheet.WORKERS, picture(people=120), 1).document.decode()
    assert [int(number) for number in re.findall(r"<th scope=\"row\">brave-otter-(\d+)</th>", document)] == list(
        range(120)
    )


def test_words_for_figures() -> None:
    assert [duration(one) for one in (None, math.inf, 0.4, 59.6, 3725, 90_061)] == [
        "–", "–", "0 s", "1 min", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip
    assert [loss(one) for one in (None, math.nan, 3.14159)] == ["–", "not finite", "3.1416"]
    assert grouped(1234567.0) == "1\u202f234\u202f567"
    assert [large(one) for one in (6.919e9, 450_000, 12)] == ["6.92 billion", "450 thousand", "12"]


FIGURE = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=60, deadline=None)
@example(points=[(2.0**53, 0.0, 0.0)] * 2)
@example(points=[(0.0, 2.0**52, 0.0)] * 2)
@given(st.lists(st.tuples(FIGURE, FIGURE, FIGURE.map(abs)), max_size=12))
@example([(0.0, 1e30, 0.0), (1.0, 1e30, 0.0)])
@example([(1e30, 2.0, 0.0), (1e30, 2.0, 0.0)])
@example([(5e-324, 5e-324, 0.0), (0.0, 0.0, 0.0)])
def test_a_line_stays_in_its_box(points: list[tuple[float, float, float]]) -> None:
    chart = charts.line_chart(points, ["x"] * len(points))
    if chart is None:
        return
    assert all(0 <= dot.x <= charts.WIDTH + 1 and 0 <= dot.y <= charts.HEIGHT + 1 for dot in chart.dots)
    assert "nan" not in chart.path + chart.band
    assert "inf" not in chart.path + chart.band


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    points = [(float(number), float(number), 0.0) for number in range(5000)]
    chart = charts.line_chart(points, [str(number) for number in range(5000)])
    assert chart is not None
    assert len(chart.dots) <= charts.MOST_POINTS + 1
    assert chart.dots[-1].text == "4999"


def test_leases_lie_where_their_times_are() -> None:
    shown = charts.timeline(open_round(8), NOW_S)
    assert shown is not None
    by_state = {bar.lease.state: bar for bar in shown.bars}
    assert by_state["committed"].sent > 0, "it is still being sent"
    assert by_state["granted"].sent == 0
    assert by_state["granted"].x + by_state["granted"].trained == pytest.approx(shown.now_x, abs=0.1)
    assert all(charts.NAMES_WIDTH <= bar.x <= charts.TIMELINE_WIDTH for bar in shown.bars)
    assert charts.timeline(open_round(0), NOW_S) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 10.0, [0, 2, 4, 6, 8, 10]), (3.1, 3.45, [3.1, 3.2, 3.3, 3.4]), (2.0, 2.0, [2.0])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks_of(low, high) == pytest.approx(expected)
