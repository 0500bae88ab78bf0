"""A weekly schedule: what an entry means, and when it changes next, over the ends of weeks and of summer time."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from protocol.errors import ConfigError
from worker.rules.week import is_open, next_change_s, spans_of

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    """In the week of Monday, 2 November 2026: `tue 08:30`."""
    day, clock = text.split()
    hours, minutes = clock.split(":")
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
    return datetime(2026, 11, 2, tzinfo=BERLIN) + timedelta(days=days, hours=int(hours), minutes=int(minutes))


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("mon-fri 19:00-08:00", ["mon 19:00", "tue 07:59", "sat 07:59"], ["mon 18:59", "tue 08:00", "sat 19:00"]),
        ("sat,sun", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("sat sun", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("fri-mon 12:00-13:00", ["fri 12:00", "mon 12:59", "sun 12:30"], ["tue 12:00", "thu 12:00"]),
        ("22:00-24:00", ["wed 23:59"], ["thu 00:00", "wed 21:59"]),
        ("sunday 23:00-01:00", ["sun 23:30", "mon 00:30"], ["tue 00:30", "mon 01:00"]),
        ("daily 1:00-2:00", ["mon 01:00"], ["mon 02:00"]),
    ],
)
def test_an_entry_names_days_and_a_span_of_each(entry: str, inside: list[str], outside: list[str]) -> None:
    spans = spans_of([entry])
    assert [text for text in inside if not is_open(spans, at(text))] == []
    assert [text for text in outside if is_open(spans, at(text))] == []


def test_without_an_entry_it_is_always_open_and_never_changes() -> None:
    assert is_open((), at("mon 00:00"))
    assert next_change_s((), 1e9, BERLIN) is None


@pytest.mark.parametrize(
    "entry",
    ["", "someday", "mon 25:00-26:00", "mon 08:00", "08:00-08:00", "mon 08:60-09:00", "8:00-9:00 mon", "1:00-2:00 3:0"],
)
def test_what_says_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="write days, times or both"):
        spans_of([entry])


@pytest.mark.parametrize(
    ("entries", "now", "then"),
    [
        (["mon-fri 19:00-08:00"], "mon 12:00", "mon 19:00"),
        (["mon-fri 19:00-08:00"], "mon 20:00", "tue 08:00"),
        (["mon 08:00-09:00"], "sun 12:00", "sun 32:00"),  # of the week that follows
        (["mon-sun 00:00-12:00", "mon-sun 12:00-13:00"], "wed 06:00", "wed 13:00"),  # spans that touch are one
        (["mon 08:00-09:00"], "mon 08:00", "mon 09:00"),
    ],
)
def test_the_next_change_is_known(entries: list[str], now: str, then: str) -> None:
    assert next_change_s(spans_of(entries), at(now).timestamp(), BERLIN) == at(then).timestamp()


def test_all_week_long_never_changes() -> None:
    assert next_change_s(spans_of(["daily"]), 1e9, BERLIN) is None


def test_on_the_night_of_the_change_the_wall_clock_counts() -> None:
    """Clocks go back on 25 October 2026 at 3:00: from Saturday 22:00 to Sunday 8:00 are eleven hours."""
    now = datetime(2026, 10, 24, 22, 0, tzinfo=BERLIN)
    until_s = next_change_s(spans_of(["22:00-08:00"]), now.timestamp(), BERLIN)
    assert until_s is not None
    assert until_s - now.timestamp() == 11 * 3600
