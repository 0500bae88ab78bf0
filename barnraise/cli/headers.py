"""What a command looks at of a checkpoint that it only plans for: configuration and headers, and how much that was.

Decides nothing; `moe.export` says what can be trained on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from barnraise.cli.output import say_note
from protocol.text import human_bytes

if TYPE_CHECKING:
    from moe.export import CheckpointFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadersRead:
    """What of a checkpoint was looked at."""

    facts: CheckpointFacts
    seconds: float

    @property
    def in_figures(self) -> dict[str, object]:
        """Bytes that were read, and of how many, and how long it took."""
        return {
            "parameters": self.facts.model.num_parameters(),
            "read_bytes": self.facts.weights.header_bytes + self._config_bytes,
            "weights_bytes": self.facts.weights.payload_bytes,
            "seconds": round(self.seconds, 3),
            "remarks": list(self.facts.remarks),
        }

    @property
    def in_words(self) -> str:
        """The same for a person."""
        figures = self.in_figures
        parameters, read, weights = (int(str(figures[key])) for key in ("parameters", "read_bytes", "weights_bytes"))
        return (
            f"{parameters / 1e6:,.1f} million parameters in {self.facts.dtype}; read: {human_bytes(read)} of headers "
            f"and configuration in {self.seconds:.2f} s, none of {human_bytes(weights)} of weights"
        )

    @property
    def _config_bytes(self) -> int:
        return (self.facts.folder / "config.json").stat().st_size


def read_headers(checkpoint: Path) -> HeadersRead:
    """ConfigError where it could not be trained on, as far as configuration and headers tell."""
    from moe.export import inspect_checkpoint

    began_s = time.perf_counter()
    facts = inspect_checkpoint(checkpoint, only_headers=True)
    for remark in facts.remarks:
        say_note(remark)
    return HeadersRead(facts=facts, seconds=time.perf_counter() - began_s)
