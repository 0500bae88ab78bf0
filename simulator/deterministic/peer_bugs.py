"""Bugs between workers that give blocks to one another, planted on purpose: small changes to the real code."""

from __future__ import annotations

from contextlib import AbstractContextManager

from peering.tracker import Tracker
from simulator.deterministic.planting import replaced
from worker import swarm


class _NeverRaised(Exception):
    """In place of an error that would be told from others."""


def busy_holder_blamed() -> AbstractContextManager[None]:
    """A holder whose upload slots are taken is taken for one that fails."""
    return replaced(swarm, "RateLimited", _NeverRaised)


def grants_not_counted() -> AbstractContextManager[None]:
    """Everybody who shares may take every block from the coordinator, whoever takes it already."""
    return replaced(Tracker, "_supply", lambda _tracker, _digest: 0)
