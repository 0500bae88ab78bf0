"""One coordinator a run folder: two would each answer workers from a state of their own.

Decides who may write a run folder. Touches the lock file only.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from protocol.file_lock import FileLock, lock_file, number_in

LOCK_FILE = "coordinator.lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def folder_lock(folder: Path) -> FileLock:
    """The lock of one run folder."""
    return FileLock(
        folder / LOCK_FILE,
        lambda holder: (
            f"another coordinator (process {holder}) serves {folder}: stop that one first, or serve a run "
            "folder of its own"
        ),
    )


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
        return number_in(descriptor) if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    return None
