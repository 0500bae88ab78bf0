"""What is counted since the run began and in no state: bytes that went over the wire, as gRPC messages, and failures.

Decides nothing; counted in the event loop's thread, so it needs no lock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from coordinator.engine.commands import Command
from coordinator.engine.events import CommandFailed, Event

TRAFFIC = "traffic"
"""Where the counters lie in the journal's side table."""


@dataclass(slots=True)
class Traffic:
    """Counters of message bytes; TLS and HTTP/2 framing, some 1 to 2 %, come on top."""

    bytes_up: int = 0
    """From workers to the coordinator."""
    bytes_down: int = 0
    calls: int = 0
    refused_calls: int = 0
    failed_commands: int = 0
    """How often the coordinator's own work failed, whatever came of it when it was tried again."""

    def event(self, event: Event) -> None:
        """As an observer of the pump."""
        self.failed_commands += isinstance(event, CommandFailed)

    def command(self, command: Command, at_s: float) -> None:
        """Counts nothing."""

    def to_json(self) -> str:
        """For the journal's side table."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Traffic:
        """What an earlier process counted; zeros where there was none."""
        return cls(**json.loads(text)) if text else cls()
