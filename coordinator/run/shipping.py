"""What a follower has still to get: the latest records, and the files that they name, held until it has them.

Decides how much is held for a follower that is slow or away, and which files a record needs. Always: a file that a
record in here names can be opened, though the run itself needs it no more (by a hard link beside it), until the
follower has acknowledged that record. Touches the artifacts' pins, and reads the registry.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from coordinator.run.base import OfferedFile
from coordinator.run.found_again import PEERS_FILE, RECORD_FILE, SHARERS_FILE
from coordinator.run.seats import WITNESS_FILE
from coordinator.store.artifacts import ArtifactStore, ContentStore, blob_name
from coordinator.store.versions import Versions
from protocol.errors import LocalError
from protocol.ids import Digest, digest_of

MOST_HELD = 50_000
"""Records held for a follower: some 30 MB. One that is further behind begins anew from where the journal is."""
MOST_AT_ONCE = 2000
"""Records in one batch: a few hundred kilobytes."""
_NAMED = re.compile(r'"([0-9a-f]{64})"')
REGISTRY = "registry.sqlite"
BESIDE = (WITNESS_FILE, RECORD_FILE, SHARERS_FILE, PEERS_FILE)
"""Which witness is asked, and what makes the run found again: after a promotion, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRecords:
    """One commit's records, and what they need."""

    first: int
    """Position of the first of them."""
    records: tuple[str, ...]
    chain: bytes
    """After the last of them."""
    files: tuple[OfferedFile, ...]
    pins: contextlib.ExitStack

    @property
    def last(self) -> int:
        """Position of the last of them."""
        return self.first + len(self.records) - 1


class Shipment:
    """For one run, from `begin` until `end`."""

    def __init__(self, root: Path, store: ArtifactStore, versions: Versions) -> None:
        self._root, self._store, self._versions = root, store, versions
        self._held: deque[HeldRecords] = deque()
        self._count = 0
        self.begun_at: int | None = None
        """Everything after this position is here; None: nothing is held."""

    def begin(self, position: int) -> None:
        """Hold everything that comes after `position`."""
        self.end()
        self.begun_at = position

    def end(self) -> None:
        """Hold nothing more."""
        for one in self._held:
            one.pins.close()
        self._held.clear()
        self._count, self.begun_at = 0, None

    def hold(self, first: int, records: Sequence[str], chain: bytes) -> HeldRecords:
        """Pin what `records` need; blocks. To be given to `add`, in the order of commits. OSError: nothing is."""
        with contextlib.ExitStack() as pins:
            files: list[OfferedFile] = []
            for record in records:
                files += self._files_of(record, pins)
            return HeldRecords(
                first=first, records=tuple(records), chain=chain, files=tuple(files), pins=pins.pop_all()
            )

    def add(self, held: HeldRecords, *, before: bool = False) -> None:
        """One commit more; or, `before`, what lies in the journal before all that is here."""
        if self.begun_at is None:
            held.pins.close()
            return
        if before:
            self._held.appendleft(held)
            self.begun_at = held.first - 1
        else:
            self._held.append(held)
        self._count += len(held.records)
        if self._count > MOST_HELD:
            self.end()

    def acknowledged(self, position: int) -> None:
        """Let go of what the follower has."""
        while self._held and self._held[0].last <= position:
            one = self._held.popleft()
            one.pins.close()
            self._count -= len(one.records)
            self.begun_at = one.last

    def after(self, position: int) -> list[HeldRecords] | None:
        """The next commits after `position`, whole; None where they are not here any more."""
        if self.begun_at is None or position < self.begun_at:
            return None
        found: list[HeldRecords] = []
        count = 0
        for one in self._held:
            if one.last <= position:
                continue
            if found and count + len(one.records) > MOST_AT_ONCE:
                break
            found.append(one)
            count += len(one.records)
        return found

    def find(self, name: str, digest: Digest) -> OfferedFile | None:
        """A file that was offered with the records that are held."""
        for one in self._held:
            for file in one.files:
                if file.name == name and file.digest == digest:
                    return file
        return None

    def _files_of(self, record: str, pins: contextlib.ExitStack) -> list[OfferedFile]:
        found = [Digest(one) for one in dict.fromkeys(_NAMED.findall(record))]
        if not found:
            return []
        files: list[OfferedFile] = []
        manifest = json.loads(record).get("manifest")
        for digest in found:
            if digest == manifest:
                files += self._version(digest, int(json.loads(record)["version"]), pins)
            else:
                files += self._pinned(self._store.payloads, "payloads", [digest], pins)
        return files

    def _version(self, manifest: Digest, version: int, pins: contextlib.ExitStack) -> list[OfferedFile]:
        try:
            index = (self._root / "versions" / f"{version:08d}.json").read_bytes()
            named = list(dict.fromkeys((manifest, *self._versions.named_by(manifest))))
        except (FileNotFoundError, LocalError):
            return []  # overtaken by later versions, and swept: the run does not need it
        entry = OfferedFile(
            name=f"versions/{version:08d}.json",
            digest=digest_of(index),
            size_bytes=len(index),
            open=partial(io.BytesIO, index),
        )
        return [*self._pinned(self._store.blocks, "blocks", named, pins), entry]

    def _pinned(
        self, store: ContentStore, folder: str, digests: Sequence[Digest], pins: contextlib.ExitStack
    ) -> list[OfferedFile]:
        sizes = {digest: size for digest in digests if (size := store.stat(digest)) is not None}
        try:
            opened = pins.enter_context(store.pin(sizes)) if sizes else None
        except LocalError:
            return []  # dropped just now: a later record says so
        return [
            OfferedFile(
                name=f"artifacts/{folder}/{blob_name(digest)}",
                digest=digest,
                size_bytes=size,
                open=partial(_opened, opened, digest),
            )
            for digest, size in sizes.items()
        ]


def _opened(opened: Callable[[Digest], BinaryIO] | None, digest: Digest) -> BinaryIO:
    if opened is None:
        raise LocalError(f"{digest} was never pinned")
    return opened(digest)


def files_beside(root: Path) -> list[OfferedFile]:
    """Small files that change while the run is served, and that no record names; those that are there."""
    found: list[OfferedFile] = []
    for name in BESIDE:
        with contextlib.suppress(OSError):
            content = (root / name).read_bytes()
            found.append(
                OfferedFile(
                    name=name, digest=digest_of(content), size_bytes=len(content), open=partial(io.BytesIO, content)
                )
            )
    return found


class RegistryWatch:
    """Whether members or invites have changed, and a copy of them. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._seen = -1

    def copy_if_changed(self) -> OfferedFile | None:
        """What is in there now, if it is not what it was at the last call."""
        (seen,) = self._connection.execute("PRAGMA data_version").fetchone()
        if seen == self._seen:
            return None
        memory = sqlite3.connect(":memory:")
        try:
            self._connection.backup(memory)
            content = memory.serialize()
        finally:
            memory.close()
        self._seen = seen
        return OfferedFile(
            name=REGISTRY, digest=digest_of(content), size_bytes=len(content), open=partial(io.BytesIO, content)
        )

    def close(self) -> None:
        """Release the file."""
        self._connection.close()
