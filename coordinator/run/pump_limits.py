"""How often a pump snapshots, and how soon it tries again what failed: one frozen set, so that a test has its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpLimits:
    """One pump's."""

    snapshot_every: int = 2000
    """Events between snapshots: a replay of that many takes well under a second, a snapshot a few milliseconds."""
    snapshot_slice: int = 32
    """Records of a snapshot that are written without letting anything else happen: 1 to 2 ms."""
    stall_retry_s: float = 5.0
    """How soon a full disk is tried again where nobody asks: an operator who makes room sees it go on."""
    retry_first_s: float = 1.0
    """Before slow work that failed is tried again; each further failure doubles it."""
