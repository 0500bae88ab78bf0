"""What the run's operator tells every volunteer, said once each time it changes: a worker in training hears it, too.

Decides when it is said. Touches the reporter alone.
"""

from __future__ import annotations

from protocol.text import printable
from worker.progress import Reporter

MOST_CHARACTERS = 200
"""As many as a coordinator takes from its operator."""


class Announcements:
    """One run's; a heartbeat's answer brings the line that stands."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._standing = ""

    def heard(self, text: str) -> None:
        """`text` stands now; empty: nothing does."""
        text = printable(text[:MOST_CHARACTERS])
        if text and text != self._standing:
            self._reporter.say("announcement", f"The run's operator says: {text}", announcement=text)
        self._standing = text
