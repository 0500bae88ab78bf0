"""A weekly schedule: on which days and at which times of the local clock a machine may work.

Decides what an entry means: days (`mon-fri`, `sat,sun`, or none: every day), then a span of the day (`19:00-08:00`, or
none: all of it). A span that ends before it begins runs into the next day. Times are the wall clock's: on the night on
which clocks are changed a span is an hour shorter or longer. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Final

from protocol.errors import ConfigError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN: Final = 24 * 60
_WEEK_MIN: Final = 7 * _DAY_MIN
_SPAN: Final = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)
_EXAMPLE: Final = "write days, times or both, as 'mon-fri 19:00-08:00', 'sat,sun' or '22:00-06:00'"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeekSpan:
    """Minutes since Monday, 0:00; `end` may lie in the week that follows."""

    begin: int
    end: int


def spans_of(entries: Sequence[str]) -> tuple[WeekSpan, ...]:
    """What the entries say; ConfigError where one of them says nothing."""
    return tuple(span for entry in entries for span in _spans(entry))


def is_open(spans: Sequence[WeekSpan], now: datetime) -> bool:
    """Whether `now`, of the local clock, lies within one of them. No span at all: always."""
    return not spans or any(_within(span, _minute_of(now)) for span in spans)


def next_change_s(spans: Sequence[WeekSpan], wall_s: float, zone: tzinfo | None = None) -> float | None:
    """Seconds since 1970 at which `is_open` changes next; None: never."""
    now = datetime.fromtimestamp(wall_s, zone)
    before = is_open(spans, now)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None) - timedelta(days=now.weekday())
    edges = {(edge % _WEEK_MIN) + week for span in spans for edge in (span.begin, span.end) for week in (0, _WEEK_MIN)}
    for edge in sorted(edges):
        at = midnight + timedelta(minutes=edge)
        if at > now.replace(tzinfo=None) and is_open(spans, at) != before:
            return at.replace(tzinfo=zone).timestamp()  # local: whichever offset counts on that day
    return None


def _within(span: WeekSpan, minute: int) -> bool:
    return span.begin <= minute < span.end or span.begin <= minute + _WEEK_MIN < span.end


def _minute_of(now: datetime) -> int:
    return now.weekday() * _DAY_MIN + now.hour * 60 + now.minute


def _spans(entry: str) -> Iterator[WeekSpan]:
    words = entry.lower().split()
    times = [word for word in words if word[:1].isdigit()]
    if not words or len(times) > 1 or (times and words[-1] != times[0]):
        raise ConfigError(f"{entry!r} is not understood; {_EXAMPLE}")
    begin, end = _times(times[0], entry) if times else (0, _DAY_MIN)
    for day in _days(words[: len(words) - len(times)], entry):
        yield WeekSpan(begin=day * _DAY_MIN + begin, end=day * _DAY_MIN + end)


def _times(word: str, entry: str) -> tuple[int, int]:
    match = _SPAN.fullmatch(word)
    if match is None:
        raise ConfigError(f"{word!r} in {entry!r} is no span of a day; {_EXAMPLE}")
    hours = [int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])]
    if any(minutes > _DAY_MIN for minutes in hours) or int(match[2]) > 59 or int(match[4]) > 59:
        raise ConfigError(f"{word!r} in {entry!r} has a time that no clock shows; {_EXAMPLE}")
    begin, end = hours
    if begin == end:
        raise ConfigError(f"{word!r} in {entry!r} begins when it ends; {_EXAMPLE}")
    return begin, end if end > begin else end + _DAY_MIN


def _days(words: Sequence[str], entry: str) -> list[int]:
    if not words or words == ["daily"]:
        return list(range(7))
    days: list[int] = []
    for part in ",".join(words).split(","):
        first, _, last = part.partition("-")
        try:
            begin, end = DAYS.index(first[:3]), DAYS.index((last or first)[:3])
        except ValueError:
            raise ConfigError(f"{part!r} in {entry!r} is no day of the week; {_EXAMPLE}") from None
        days += [(begin + offset) % 7 for offset in range((end - begin) % 7 + 1)]
    return sorted(set(days))
