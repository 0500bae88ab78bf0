"""A second GPU of the same machine: where experts may lie that the first has no room for. Data alone.

Loads no torch: an agent that trains in another process handles it, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondCard:
    """Another device of this machine, alike the one that trains, for experts that would else lie in main memory."""

    device: str
    memory_bytes: int
    """For nothing else."""
