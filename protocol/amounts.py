"""Amounts as people write them: bytes, spans of time, and moments. Decides the units. Touches nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str) -> int:
    """`8GB`, `512MiB` or a plain number as bytes. GB and GiB both mean 1024^3: memory is sold so."""
    from protocol.errors import ConfigError

    compact = text.strip().lower().replace(" ", "")
    digits = compact.rstrip("ibkmgt")
    unit = compact[len(digits) :].replace("i", "").rstrip("b")
    try:
        amount = float(digits)
    except ValueError:
        amount = -1.0
    if unit not in _POWERS or not 0 < amount < 1e15:
        raise ConfigError(f"not an amount of memory: {text!r}; write for example 8GB or 512MB")
    return int(amount * 1024 ** _POWERS[unit])


def parse_span_s(text: str) -> float:
    """`90s`, `30min`, `2h`, `1d` as seconds."""
    from protocol.errors import ConfigError

    compact = text.strip().lower().replace(" ", "")
    digits = compact.rstrip("smhdin")
    try:
        amount = float(digits) * _SECONDS[compact[len(digits) :]]
    except (ValueError, KeyError):
        amount = -1.0
    if not 0 < amount < 1e9:
        raise ConfigError(f"not a span of time: {text!r}; write for example 30min, 2h or 1d")
    return amount


def parse_moment_s(text: str, now: datetime) -> float:
    """Seconds since 1970 of `18:00` (today's, or else tomorrow's), `2026-12-24` or `2026-12-24 18:00`, by the clock of
    `now`; ConfigError where it is no moment, or is over."""
    from protocol.errors import ConfigError

    hours, _, minutes = text.strip().partition(":")
    try:
        if hours.isdecimal() and len(hours) <= 2 and minutes.isdecimal() and len(minutes) == 2:
            moment = now.replace(hour=int(hours), minute=int(minutes), second=0, microsecond=0)
            moment = moment if moment > now else moment + timedelta(days=1)
        else:
            moment = datetime.fromisoformat(text.strip())
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)
    except ValueError:
        raise ConfigError(f"not a moment: {text!r}; write for example 18:00 or 2026-12-24 18:00") from None
    if moment.timestamp() <= now.timestamp():
        raise ConfigError(f"{text} is over already")
    return moment.timestamp()
