"""One coordinator a run folder: two would each answer workers from a state of their own.

Decides who may write a run folder. The system lets go of the lock when the process ends, however it ends, so a killed
coordinator leaves nothing to clear away. Touches the lock file only; the number in it is for the message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from protocol.errors import ConfigError
from protocol.file_lock import lock_file
from protocol.storage import telling_storage_trouble

LOCK_FILE = "coordinator.lock"
LOOKERS_TRIES = 4
LOOKERS_PAUSE_S = 0.05
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """The lock of one run folder. Held by one process, from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; ConfigError when another process has it."""
        with telling_storage_trouble(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_soon(descriptor)
        except OSError as error:
            holder = _number_in(descriptor)
            os.close(descriptor)
            raise ConfigError(
                f"another coordinator (process {holder}) serves {self._path.parent}: stop that one first, or serve a "
                "run folder of its own"
            ) from error
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.pwrite(descriptor, f"{os.getpid():<20d}".encode(), 0)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_holder(folder: Path) -> str | None:
    """The number of the process that has the lock of `folder`, `unknown` where it left none; None: nobody has it.

    Reads only: a read-only file system will do. Looking shares the lock for an instant, which `acquire` sits out.
    """
    flags = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    try:
        descriptor = os.open(folder / LOCK_FILE, flags)
    except FileNotFoundError:
        return None
    try:
        lock_file(descriptor, shared=True)
    except OSError as error:
        # Where the file system knows no locks, nobody can hold one.
        return _number_in(descriptor) if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    return None


def _number_in(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"


def _lock_soon(descriptor: int) -> None:
    """Lock now, or in a moment: somebody may just be looking whether it is taken."""
    for _ in range(LOOKERS_TRIES - 1):
        try:
            return lock_file(descriptor)
        except OSError:
            time.sleep(LOOKERS_PAUSE_S)
    return lock_file(descriptor)
