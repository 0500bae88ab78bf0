"""What all events have in common. The events themselves are in events.py, result_events.py and standing_events.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events; `at_s` is run time, in seconds: no setting of a clock moves it; suspend counts."""

    at_s: float
