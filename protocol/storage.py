"""What a disk that refuses means, in one sentence that says what to do.

Decides which system errors are the disk's (and not a bug of ours), and how they are told. Touches nothing.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import StorageTrouble

_REMEDIES = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up: make room, or have it raised",
    errno.EFBIG: "the file has reached the largest size allowed here: raise the limit",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EACCES: "this user may not write there: correct owner and permissions",
    errno.EPERM: "this user may not write there: correct owner and permissions",
    errno.EIO: "the disk reports an input/output error: check it, and restore from a backup if files are damaged",
}


SQLITE_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}
"""What SQLite's primary error codes mean in the system's words. Source: https://sqlite.org/rescode.html."""

_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) end a message that is the system's."""


def disk_error_number(error: BaseException | None) -> int | None:
    """The errno under which the disk refused, whichever library tells it; None where it was not the disk."""
    number: int | None = None
    if isinstance(error, OSError):
        number = error.errno
    elif isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        # Its shared memory could not grow: SQLite calls that an input/output error, and it is a lack of room.
        is_full = code == sqlite3.SQLITE_IOERR_SHMSIZE
        number = errno.ENOSPC if is_full else SQLITE_ERRNO.get(code & 0xFF)  # the low byte is the primary code
    elif found := _RUST.search(str(error)):
        number = int(found[1])
    return number if number in _REMEDIES else None


def is_storage_trouble(error: BaseException) -> bool:
    """Whether `error` says that the disk takes no writes."""
    return isinstance(error, StorageTrouble) or (isinstance(error, OSError) and error.errno in _REMEDIES)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that deleting something would help."""
    cause = error.__cause__ if isinstance(error, StorageTrouble) else error
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def storage_trouble(number: int, path: Path, doing: str = "write") -> StorageTrouble:
    """The error for errno `number` at `path`."""
    remedy = _REMEDIES.get(number, f"system error {number}")
    return StorageTrouble(f"cannot {doing} {path}: {remedy}; nothing was lost, and it goes on from here")


@contextlib.contextmanager
def telling_storage_trouble(path: Path, doing: str = "write") -> Iterator[None]:
    """Inside, an `OSError` of the disk becomes a `StorageTrouble` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise storage_trouble(error.errno, path, doing) from error
