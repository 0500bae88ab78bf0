"""How one process keeps others out: a lock on an open file, which the system takes back when its holder ends.

Decides the system call. The system lets go of a lock when its holder ends, however it ends, so a process that was
killed leaves nothing to clear away. Touches the file that it is given; the number in it is for the message.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import ConfigError
from protocol.storage import telling_storage_trouble

LOOKERS_TRIES = 4
LOOKERS_PAUSE_S = 0.05


class FileLock:
    """A lock that one process holds, from `acquire` to `release`."""

    def __init__(self, path: Path, taken: Callable[[str], str]) -> None:
        """`taken` puts in words that another process, whose number it is given, has the lock."""
        self._path = path
        self._taken = taken
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; ConfigError when another process has it."""
        with telling_storage_trouble(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_soon(descriptor)
        except OSError as error:
            holder = number_in(descriptor)
            os.close(descriptor)
            raise ConfigError(self._taken(holder)) from error
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.pwrite(descriptor, f"{os.getpid():<20d}".encode(), 0)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def number_in(descriptor: int) -> str:
    """The number of the process that locked an open file; `unknown` where it left none."""
    return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"


def _lock_soon(descriptor: int) -> None:
    """Lock now, or in a moment: somebody may just be looking whether it is taken."""
    for _ in range(LOOKERS_TRIES - 1):
        try:
            return lock_file(descriptor)
        except OSError:
            time.sleep(LOOKERS_PAUSE_S)
    return lock_file(descriptor)


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
