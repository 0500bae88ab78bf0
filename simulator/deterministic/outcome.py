"""What came of one simulated run, and the quiet in which it runs. Decides nothing."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import structlog


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one seed."""

    seed: int
    violation: str | None
    history: str
    """Digest of everything that was journalled: the same for the same seed, on every machine."""
    events: int
    acknowledged: int
    versions: int
    coordinator_kills: int
    worker_kills: int
    blocks_between_workers: int
    virtual_s: float
    trace: tuple[str, ...] = ()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, which a run under faults has many of, and no garbage collection while a seed runs."""
    kept, collecting = structlog.get_config(), gc.isenabled()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.disable()
    try:
        yield
    finally:
        structlog.configure(**kept)
        if collecting:
            gc.enable()
