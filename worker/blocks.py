"""Blocks that were downloaded, on disk by digest, so that a lease fetches only what changed.

Decides what stays: what the present lease needs, always; of the rest only what its manifest still makes use of: blocks
that its version names, since a block that nobody trained goes into the next version as it is, and those of before that
a step to them starts from. A block is believed only under its digest, wherever it came from: hashed when it arrives,
and once more by each process that finds it on disk. Touches its own folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from protocol.causes import Cause
from protocol.errors import DigestMismatch, MalformedMessage, Unavailable
from protocol.ids import Digest
from worker.files import CHUNK_BYTES, DISK, FileEntry, Files, file_digest, reading

_PARTIAL = ".part"


class BlockCache:
    """Content-addressed files, whole and partial."""

    def __init__(self, folder: Path, files: Files = DISK) -> None:
        files.make_folder(folder)
        self._folder, self._files = folder, files
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
        size_bytes = self._files.size(path)
        if size_bytes is None:
            return False
        if digest not in self._verified:
            if size_bytes != payload_bytes or file_digest(path, self._files) != digest:
                self._files.remove(path)
                return False
            self._verified.add(digest)
        self._files.touch(path)
        return True

    @property
    def checked(self) -> frozenset[Digest]:
        """Whole blocks that this process has hashed itself."""
        return frozenset(self._verified)

    def is_here(self, digest: Digest) -> bool:
        """Whether a file of that name is here, whatever is in it."""
        return self._files.size(self.path(digest)) is not None

    def reading(self, digest: Digest) -> BinaryIO:
        """A block that is here, to read from anywhere."""
        return reading(self.path(digest), self._files)

    def forget(self, digest: Digest) -> None:
        """It is of no more use."""
        self._remove(self.path(digest))

    def begin(self, digest: Digest, payload_bytes: int) -> PartialBlock:
        """Go on with the block where an earlier download broke off."""
        return PartialBlock(self.partial(digest), self._files, digest, payload_bytes)

    def adopt(self, digest: Digest) -> None:
        """A finished download, whose digest has been checked, becomes a block."""
        self._files.rename(self.partial(digest), self.path(digest))
        self._verified.add(digest)

    def learn(self, digest: Digest) -> None:
        """A process that is believed (our own trainer) has put the block here, and checked its digest."""
        if self.is_here(digest):
            self._verified.add(digest)

    def missing_bytes(self, digest: Digest, payload_bytes: int) -> int:
        """Bytes of the block that are still to come."""
        return max(0, payload_bytes - (self._files.size(self.partial(digest)) or 0))

    def expect(self, needed: Collection[Digest], of_version: Collection[Digest]) -> None:
        """A lease begins that needs `needed`, of a version of the blocks `of_version`. What neither names goes."""
        self._needed = frozenset(needed)
        useful = self._needed | frozenset(of_version)
        for entry in self._files.entries(self._folder):
            if _digest_of(entry.path) not in useful:
                self._remove(entry.path)

    def need(self, needed: Collection[Digest]) -> None:
        """From here on the present lease needs `needed`; what else is here stays until room is wanted."""
        self._needed = frozenset(needed)

    def trim(self, to_bytes: int) -> int:
        """Delete what the present lease does not need, oldest use first, down to `to_bytes`; returns bytes freed."""
        files = self._files.entries(self._folder)
        total_bytes = before_bytes = sum(entry.size_bytes for entry in files)
        for entry in sorted(files, key=_oldest_use) if total_bytes > to_bytes else ():
            if total_bytes <= to_bytes:
                break
            if _digest_of(entry.path) not in self._needed and self._remove(entry.path):
                total_bytes -= entry.size_bytes
        return before_bytes - total_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of everything here."""
        return sum(entry.size_bytes for entry in self._files.entries(self._folder))

    def _remove(self, path: Path) -> bool:
        self._verified.discard(_digest_of(path))
        try:
            self._files.remove(path)
        except OSError:  # a read-only disk, say: what cannot be removed stays, and is no harm
            return False
        return True


class PartialBlock:
    """One block on its way here: what is on disk of it, and what comes."""

    def __init__(self, path: Path, files: Files, digest: Digest, payload_bytes: int) -> None:
        self._path, self._files, self._digest, self._payload_bytes = path, files, digest, payload_bytes
        self._hasher = hashlib.sha256()
        self.offset = 0
        """First byte that is missing."""
        self._take_up()

    def add(self, piece: bytes | memoryview) -> None:
        """The next bytes; MalformedMessage where they are more than the block has."""
        if self.offset + len(piece) > self._payload_bytes:
            raise MalformedMessage(f"block {self._digest[:12]}… came with more than its {self._payload_bytes} bytes")
        self._files.append(self._path, piece)
        self._hasher.update(piece)
        self.offset += len(piece)

    def finish(self) -> None:
        """Unavailable where bytes are missing; DigestMismatch, and all is forgotten, where they are not the block's."""
        if self.offset < self._payload_bytes:
            raise Unavailable(
                f"block {self._digest[:12]}… broke off at byte {self.offset} of {self._payload_bytes}",
                cause=Cause.BROKEN_OFF,
            )
        got = self._hasher.hexdigest()
        if got != self._digest:
            self.forget()
            raise DigestMismatch(f"block of {self._payload_bytes} bytes has digest {got}, expected {self._digest}")

    def forget(self) -> None:
        """Nothing that came is worth keeping."""
        self._files.remove(self._path)

    def _take_up(self) -> None:
        size_bytes = self._files.size(self._path)
        if size_bytes is None:
            return
        if size_bytes > self._payload_bytes:
            self.forget()
            return
        while chunk := self._files.read(self._path, self.offset, CHUNK_BYTES):
            self._hasher.update(chunk)
            self.offset += len(chunk)


def _oldest_use(entry: FileEntry) -> tuple[int, Path]:
    return entry.used_ns, entry.path


def _digest_of(path: Path) -> Digest:
    return Digest(path.name.removesuffix(_PARTIAL))
