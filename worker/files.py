"""The few things that a worker does with files, as a port: on disk here, in memory in the deterministic simulation.

Decides what "written" means. Always: what `write` gave back from is there whole after a crash, or the content before it
is; what was appended, renamed or removed may be undone by a power loss until `sync`. Content is private to the
volunteer from its first byte on. Both implementations pass `tests/worker/test_files_contract.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from protocol.folders import sync_folder
from protocol.ids import Digest
from protocol.private_files import PrivateWriter, write_private
from worker.disk import private_folder

CHUNK_BYTES = 1 << 20
"""Read at a time where a whole file is hashed, or a tensor is read."""


class FileEntry(NamedTuple):
    """One file of a folder."""

    path: Path
    size_bytes: int
    used_ns: int
    """When it was last used (`touch`) or written."""


class FileWriter(Protocol):
    """A file that comes in pieces and gets its name last."""

    def add(self, piece: bytes | memoryview) -> None:
        """At its end."""

    def keep(self, path: Path) -> None:
        """Replace `path` by it, atomically and durably."""

    def drop(self) -> None:
        """Nothing of it is left; fine where it was kept."""


class Files(Protocol):
    """A volunteer's disk. Whatever it refuses is an `OSError`, of `write` a `StorageTrouble` or `ConfigError`."""

    def make_folder(self, folder: Path) -> None:
        """A folder that only its owner may enter, with those above it; ConfigError where that is not possible."""

    def write(self, path: Path, content: bytes) -> None:
        """Replace `path` by `content`, atomically and durably."""

    def writer(self, path: Path) -> FileWriter:
        """A new file beside `path`, and named like it, until it is kept. It refuses as `write` does."""

    def append(self, path: Path, piece: bytes | memoryview) -> None:
        """Add to the end of `path`, which is made where it is missing. Not durable."""

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        """`length` bytes from `offset` on, fewer at the end; -1: all. FileNotFoundError where there is no file."""

    def size(self, path: Path) -> int | None:
        """Bytes of the file; None where there is none."""

    def rename(self, path: Path, to: Path) -> None:
        """Give the file another name in its folder, in place of what has that name."""

    def remove(self, path: Path) -> None:
        """Delete the file; fine where there is none."""

    def touch(self, path: Path) -> None:
        """It is used now."""

    def entries(self, folder: Path) -> list[FileEntry]:
        """The files right in `folder`, in no order."""

    def used_bytes(self, folder: Path) -> int:
        """Bytes of all files below `folder`."""

    def sync(self, folder: Path) -> None:
        """Names inside `folder`, and that names are gone, are durable from here on."""


class DiskFiles:
    """The real disk."""

    def make_folder(self, folder: Path) -> None:
        """As `private_folder`."""
        private_folder(folder)

    def write(self, path: Path, content: bytes) -> None:
        """As `write_private`."""
        write_private(path, content)

    def writer(self, path: Path) -> FileWriter:
        """As `write_private` writes."""
        return PrivateWriter(path)

    def append(self, path: Path, piece: bytes | memoryview) -> None:
        """Opened anew each time: a frame is half a megabyte."""
        with path.open("ab") as file:
            file.write(piece)

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        """Opened anew each time, likewise."""
        with path.open("rb") as file:
            if offset:
                file.seek(offset)
            return file.read(length)

    def size(self, path: Path) -> int | None:
        """None for a folder, too."""
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:  # gone between the two
            return None

    def rename(self, path: Path, to: Path) -> None:
        """Atomic; not durable before `sync`."""
        path.replace(to)

    def remove(self, path: Path) -> None:
        """Not durable before `sync`."""
        path.unlink(missing_ok=True)

    def touch(self, path: Path) -> None:
        """By its time of change, which every file system keeps."""
        os.utime(path)

    def entries(self, folder: Path) -> list[FileEntry]:
        """Without what goes away while it is listed."""
        return list(_entries(folder))

    def used_bytes(self, folder: Path) -> int:
        """Without what goes away while it is counted."""
        used = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                used += path.stat().st_size if path.is_file() else 0
        return used

    def sync(self, folder: Path) -> None:
        """As `sync_folder`."""
        sync_folder(folder)


DISK = DiskFiles()


def reading(path: Path, files: Files) -> BinaryIO:
    """A file to read from anywhere, as what decodes payloads wants it."""
    return io.BufferedReader(_ReadFile(path, files))


class _ReadFile(io.RawIOBase):
    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files
        self._at, self._end = 0, files.size(path) or 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """From the start, here, or the end."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer
        """As much as there is, but no more than a chunk: it is in memory twice."""
        content = self._files.read(self._path, self._at, min(len(buffer), CHUNK_BYTES))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def file_digest(path: Path, files: Files = DISK) -> Digest:
    """SHA-256 of a file, a megabyte at a time."""
    hasher, offset = hashlib.sha256(), 0
    while chunk := files.read(path, offset, CHUNK_BYTES):
        hasher.update(chunk)
        offset += len(chunk)
    return Digest(hasher.hexdigest())


def _entries(folder: Path) -> Iterator[FileEntry]:
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            yield FileEntry(path, status.st_size, status.st_mtime_ns)
