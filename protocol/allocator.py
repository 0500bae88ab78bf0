"""What the C library keeps of memory that was given back: little, whatever the number of threads.

Decides three of glibc's settings for the whole process (mallopt(3)), which by themselves follow the number of
processors and the largest piece that was ever given back. A coordinator has a dozen threads that each make and drop
pieces of megabytes: each thread's arena keeps what it once needed. A worker that drops gradients and moments would keep
their memory, and take as much again for what it sends: the planner counts on their going back. Touches nothing else;
where the C library is another one, nothing. What a coordinator takes is measured by `python -m benchmarks.billion`
(docs/performance.md), what a worker takes by `python -m benchmarks.ladder`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping

ARENAS = 2
"""The first thread's, and one that all others have in common. glibc takes eight for each processor."""
MAPPED_BYTES = 4 << 20
"""A piece of so many bytes or more goes back to the system as soon as it is dropped. By itself the bound rises to 32
MiB with the pieces that are dropped, and what lies below it stays: held-out sequences on their way through a model make
pieces of 8 to 32."""
SMALL_MAPPED_BYTES = 1 << 20
"""The same where memory counts more than time: activations are pieces of 1 to 4 MiB, whose places an arena keeps."""
KEPT_BYTES = 16 << 20
"""What an arena keeps at its end: granules of half a megabyte come and go by the thousand, and are not to be fetched
from the system each time. By itself it rises to 64 MiB."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""As malloc.h has them."""


def keep_little() -> bool:
    """Have the C library keep little; whether it is one that can. For a process's beginning: arenas that there are
    already stay.

    What whoever started the process says of it counts more.
    """
    asked = {
        "MALLOC_ARENA_MAX": (_M_ARENA_MAX, ARENAS),
        "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, MAPPED_BYTES),
        "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, KEPT_BYTES),
    }
    return _set(asked)


def give_back_small(*, on: bool) -> bool:
    """Whether pieces from `SMALL_MAPPED_BYTES` on go back at once, or from `MAPPED_BYTES`; from now on."""
    return _set({"MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, SMALL_MAPPED_BYTES if on else MAPPED_BYTES)})


def give_back_all() -> bool:
    """Give the system back what the C library keeps of memory that was given back to it: malloc_trim(3). Whether it
    did."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        if os.confstr("CS_GNU_LIBC_VERSION"):
            return bool(ctypes.CDLL(None).malloc_trim(0))
    return False


def _set(asked: Mapping[str, tuple[int, int]]) -> bool:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        if os.confstr("CS_GNU_LIBC_VERSION"):
            mallopt = ctypes.CDLL(None).mallopt
            return all(mallopt(*setting) for name, setting in asked.items() if name not in os.environ)
    return False
