"""What waits for the pump, and how it is told that nothing comes of it.

Decides which words a caller hears: an illegal event's, those to come again, or that the coordinator stopped. Always: an
error may find nobody, since callers go away, and is then nobody's. Touches nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coordinator.engine.commands import Command
from coordinator.engine.events import Event
from protocol.errors import IllegalEvent, LocalError, Unavailable


@dataclass(slots=True)
class QueuedEvent:
    """One event on its way into the journal."""

    event: Event
    done: asyncio.Future[list[Command]] | None
    """Whoever submitted it waits for that; None: the pump did so itself."""


def refuse(batch: Iterable[QueuedEvent], error: BaseException) -> None:
    """Tell whoever waits: go elsewhere (a fenced leader), come again, or this failed here."""
    told = error if isinstance(error, IllegalEvent | Unavailable) else LocalError(f"the coordinator stopped: {error!r}")
    for queued in batch:
        if queued.done is not None:
            end_with(queued.done, told)


def end_with(waited: asyncio.Future[Any], error: BaseException) -> None:
    """Whoever waits gets the error; where nobody does any more, asyncio does not log it as one that was forgotten."""
    if not waited.done():
        waited.set_exception(error)
        waited.exception()
