"""How many of torch's threads a piece of slow work takes.

Decides nothing. What goes over spans that fit a cache is too short for torch to divide, but for a sum here and there;
the threads that had a part of that then wait for the next one by spinning, for milliseconds, and burn as much of the
processor as the work itself. Touches torch's setting for the process, while it lasts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
