"""Blocks that were downloaded, on disk by digest, so that a lease fetches only what changed.

Decides what stays: what the present lease needs, always; of the rest only blocks that the lease's version still names,
since a block that nobody trained goes into the next version as it is, and what no version names any more is never asked
for again. A block is believed only under its digest: hashed when it arrives, and once more by each process that finds
it on disk. Touches its own folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from protocol.ids import Digest
from worker.disk import private_folder
from worker.outbox import file_digest

_PARTIAL = ".part"


class BlockCache:
    """Content-addressed files, whole and partial."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._needed: frozenset[Digest] = frozenset()
        self._verified: set[Digest] = set()

    def path(self, digest: Digest) -> Path:
        """Where the block lies once it is whole."""
        return self._folder / digest

    def partial(self, digest: Digest) -> Path:
        """Where an unfinished download of the block lies, across restarts."""
        return self._folder / f"{digest}{_PARTIAL}"

    def has(self, digest: Digest, payload_bytes: int) -> bool:
        """Whether the whole block is here. A file that rotted is removed."""
        path = self.path(digest)
        if not path.is_file():
            return False
        if digest not in self._verified:
            if path.stat().st_size != payload_bytes or file_digest(path) != digest:
                path.unlink(missing_ok=True)
                return False
            self._verified.add(digest)
        os.utime(path)
        return True

    def adopt(self, digest: Digest) -> None:
        """A finished download, whose digest the download has checked, becomes a block."""
        self.partial(digest).replace(self.path(digest))
        self._verified.add(digest)

    def missing_bytes(self, digest: Digest, payload_bytes: int) -> int:
        """Bytes of the block that are still to come."""
        try:
            return max(0, payload_bytes - self.partial(digest).stat().st_size)
        except OSError:
            return payload_bytes

    def expect(self, needed: Collection[Digest], of_version: Collection[Digest]) -> None:
        """A lease begins that needs `needed`, of a version of the blocks `of_version`. What neither names goes."""
        self._needed = frozenset(needed)
        useful = self._needed | frozenset(of_version)
        for path in list(self._folder.iterdir()):
            if _digest_of(path) not in useful:
                self._remove(path)

    def trim(self, to_bytes: int) -> int:
        """Delete what the present lease does not need, oldest use first, down to `to_bytes`; returns bytes freed."""
        files = sorted(self._files())
        total_bytes = before_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total_bytes <= to_bytes:
                break
            if _digest_of(path) not in self._needed and self._remove(path):
                total_bytes -= size
        return before_bytes - total_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of everything here."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Last use, bytes and path of each file."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path

    def _remove(self, path: Path) -> bool:
        self._verified.discard(_digest_of(path))
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a read-only disk, say: what cannot be removed stays, and is no harm
            return False
        return True


def _digest_of(path: Path) -> Digest:
    return Digest(path.name.removesuffix(_PARTIAL))
