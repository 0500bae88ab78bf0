"""Blocks that were downloaded, on disk by digest, so that a lease fetches only what changed.

Decides what stays: blocks of the present lease always, others until the cache is over its size, oldest use first. A
block is believed only under its digest: hashed when it arrives, and once more by each process that finds it on disk.
Touches its own folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from protocol.ids import Digest
from worker.disk import private_folder
from worker.outbox import file_digest

DEFAULT_CACHE_BYTES = 8 << 30


class BlockCache:
    """Content-addressed files, bounded in bytes."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._folder = private_folder(folder)
        self._max_bytes = max_bytes
        self._verified: set[Digest] = set()

    def path(self, digest: Digest) -> Path:
        """Where the block lies once it is whole."""
        return self._folder / digest

    def partial(self, digest: Digest) -> Path:
        """Where an unfinished download of the block lies, across restarts."""
        return self._folder / f"{digest}.part"

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

    def trim(self, keep: Collection[Digest]) -> None:
        """Delete the least recently used blocks until the cache fits its size; never one of `keep`."""
        files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._folder.iterdir()]
        total_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total_bytes <= self._max_bytes:
                return
            if path.name.removesuffix(".part") in keep:
                continue
            path.unlink(missing_ok=True)
            self._verified.discard(Digest(path.name))
            total_bytes -= size
