"""A volunteer's disk, in memory: what its next process finds, with or without a power loss in between.

Decides what a crash undoes. Always: what `write` gave back from is there; a dead process writes nothing; what was
appended, renamed or removed since the last `sync` of its folder may or may not have happened, each file for itself, and
the end of a file that was being written may be zeros. A `worker.files.Files`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from simulator.deterministic.loop import Process
from worker.files import FileEntry, FileWriter


@dataclass(slots=True)
class VolunteerDisk:
    """Everything that a volunteer's machine keeps without its processes."""

    now: dict[Path, bytes] = field(default_factory=dict)
    synced: dict[Path, bytes] = field(default_factory=dict)
    """What a power loss leaves for sure."""
    used_ns: dict[Path, int] = field(default_factory=dict)

    def lose_power(self, draw: random.Random) -> None:
        """What was not synced may be lost, file by file."""
        for path in sorted(self.now.keys() | self.synced.keys()):
            before, after = self.synced.get(path), self.now.get(path)
            if before == after:
                continue
            found = draw.choice((before, after))
            if after is not None and found is after and draw.random() < 0.5:  # the length is there, the bytes are not
                kept = draw.randrange(len(after) + 1)
                found = after[:kept] + bytes(len(after) - kept)
            if found is None:
                self.now.pop(path, None)
            else:
                self.now[path] = found
        self.synced = dict(self.now)


class MemoryFiles:
    """One process's handle on the disk."""

    def __init__(self, disk: VolunteerDisk, process: Process) -> None:
        self._disk, self._process = disk, process
        self._uses = max(disk.used_ns.values(), default=0)

    def make_folder(self, folder: Path) -> None:
        """Every folder is there."""

    def write(self, path: Path, content: bytes) -> None:
        """Durable when this returns."""
        if self._process.alive:
            self._disk.now[path] = self._disk.synced[path] = bytes(content)
            self.touch(path)
            self.sync(path.parent)

    def writer(self, path: Path) -> FileWriter:
        """Nothing of it is on the disk before it is kept."""
        del path
        return _MemoryWriter(self)

    def append(self, path: Path, piece: bytes | memoryview) -> None:
        """Not durable."""
        if self._process.alive:
            self._disk.now[path] = self._disk.now.get(path, b"") + piece
            self.touch(path)

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        """A part of the file, or all of it."""
        content = self._disk.now.get(path)
        if content is None:
            raise FileNotFoundError(2, "No such file", str(path))
        return content[offset:] if length < 0 else content[offset : offset + length]

    def size(self, path: Path) -> int | None:
        """Bytes."""
        content = self._disk.now.get(path)
        return None if content is None else len(content)

    def rename(self, path: Path, to: Path) -> None:
        """The name is not durable; neither is the content, where it was not before."""
        if not self._process.alive:
            return
        if path not in self._disk.now:
            raise FileNotFoundError(2, "No such file", str(path))
        self._disk.now[to] = self._disk.now.pop(path)
        self.touch(to)

    def remove(self, path: Path) -> None:
        """Not durable."""
        if self._process.alive:
            self._disk.now.pop(path, None)

    def touch(self, path: Path) -> None:
        """Uses are counted; there is no clock."""
        if path not in self._disk.now:
            raise FileNotFoundError(2, "No such file", str(path))
        self._uses += 1
        self._disk.used_ns[path] = self._uses

    def entries(self, folder: Path) -> list[FileEntry]:
        """What is right in the folder."""
        return [
            FileEntry(path, len(content), self._disk.used_ns.get(path, 0))
            for path, content in self._disk.now.items()
            if path.parent == folder
        ]

    def used_bytes(self, folder: Path) -> int:
        """What is below the folder."""
        return sum(len(content) for path, content in self._disk.now.items() if folder in path.parents)

    def sync(self, folder: Path) -> None:
        """That names are gone is durable; bytes that were appended to are not."""
        if self._process.alive:
            gone = [path for path in self._disk.synced if path.parent == folder and path not in self._disk.now]
            for path in gone:
                del self._disk.synced[path]


class _MemoryWriter:
    def __init__(self, files: MemoryFiles) -> None:
        self._files, self._content = files, bytearray()

    def add(self, piece: bytes | memoryview) -> None:
        self._content += piece

    def keep(self, path: Path) -> None:
        self._files.write(path, bytes(self._content))

    def drop(self) -> None:
        self._content.clear()
