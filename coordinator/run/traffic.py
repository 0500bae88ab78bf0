"""Bytes that went over the wire, as gRPC messages, since the run began.

Decides nothing; counted in the event loop's thread, so it needs no lock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

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

    def to_json(self) -> str:
        """For the journal's side table."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Traffic:
        """What an earlier process counted; zeros where there was none."""
        return cls(**json.loads(text)) if text else cls()
