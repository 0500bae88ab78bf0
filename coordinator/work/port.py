"""Where slow commands are carried out: today by one thread of the coordinator, tomorrow also by trusted workers.

Decides nothing. Always: what comes of a command follows from the command and from the blobs that it names by their
digests, so anybody who has those can do it, and doing it twice is harmless.
"""

from __future__ import annotations

from typing import Protocol

from coordinator.engine.commands import SlowCommand
from coordinator.engine.events import Event


class Work(Protocol):
    """Measures, replays later, aggregates, validates, exports. Called by one thread at a time."""

    def execute(self, command: SlowCommand) -> Event:
        """Carry out `command`; the event that it ends in. Whatever it raises, nothing has happened, and it may be
        asked for again (`failures.trouble_of` says whose fault it was).
        """
