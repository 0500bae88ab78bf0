"""How one process keeps others out: a lock on an open file, which the system takes back when its holder ends.

Decides the system call. Touches the descriptor that it is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def lock_file(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file for this process alone, without waiting; OSError when another process has it.

    `shared` lets other sharers in beside this one: for whoever only looks whether the file is locked.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def is_open_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the file that was opened: its former holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
