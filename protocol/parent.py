"""A process that ends with the one that started it.

Decides that the one which starts tells its number, since whoever asks the system for it may ask too late; and that a
process which was told nothing outlives everybody. Linux alone can be asked to; elsewhere, the end of a pipe tells.
Holds always: the number is told to one process, and not to those that it starts. Touches the environment.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_PARENT_PID: Final = "BARNRAISE_PARENT_PID"
_PR_SET_PDEATHSIG: Final = 1
KILL: Final = 9
"""Which Windows does not name."""


def as_parent() -> dict[str, str]:
    """For the environment of a process that is to end with this one; with the thread that starts it, to be exact."""
    return {_PARENT_PID: str(os.getpid())}


def end_with_parent(number: int = KILL) -> None:
    """In that process, before anything else: signal `number` is its parent's end. Without `as_parent`, nothing is."""
    parent = os.environ.pop(_PARENT_PID, "")
    if parent.isdecimal():
        end_with(int(parent), number)


def end_with(parent: int, number: int = KILL) -> None:
    """Have the system send `number` to this process when `parent`, which started it, ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(0)  # it went before it could be asked for
