"""The coordinator's disk, in memory: what survives a crash, and what only seemed to be written.

Decides what a restart finds. Always: the disk outlives processes, and a dead process cannot write to it any more; an
append is durable when it returns, whole or not at all; bytes of an upload that were not synced may be lost with the
power. `MemoryJournal` is an `EventStore` and `MemoryBlobs` a `BlobStore`; uploads are as `ArtifactStore` has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from coordinator.engine.version import ENGINE_VERSION
from coordinator.store.ports import BlobStore, EventStore, Snapshot, Upload, require_digest
from protocol.errors import LocalError, Unavailable
from protocol.ids import BlockId, Digest, LeaseId, digest_of
from protocol.lease import Lease
from simulator.deterministic.loop import Process

OnAppend = Callable[[int, bool, Sequence[str]], None]
"""Called around a commit with its last position, whether it is durable by now, and its records."""


def stretched(text: str, size_bytes: int) -> bytes:
    """`size_bytes` bytes that depend on all of `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return (digest * (size_bytes // len(digest) + 1))[:size_bytes]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One block's content: what it was made of, in place of tensors."""

    parent: Digest | None
    cause: str
    size_bytes: int = 32

    @property
    def payload(self) -> bytes:
        """The bytes that workers fetch."""
        return stretched(f"{self.parent}\x1f{self.cause}", self.size_bytes)

    @property
    def digest(self) -> Digest:
        """Its content address."""
        return digest_of(self.payload)


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version: its manifest, and the command that it was made by."""

    manifest: Digest
    cause: str


@dataclass(slots=True)
class Disk:
    """Everything that a machine keeps without its processes."""

    records: list[tuple[int, str]] = field(default_factory=list)
    unsynced_records: list[tuple[int, str]] = field(default_factory=list)
    """Appended by a journal that does not sync: gone with the power. The real journal leaves none."""
    last_position: int = 0
    epoch: int = 0
    """Of the process that has the journal."""
    snapshot: Snapshot | None = None
    payloads: dict[Digest, bytes] = field(default_factory=dict)
    unsynced_payloads: dict[Digest, bytes] = field(default_factory=dict)
    uploads: dict[tuple[LeaseId, Digest], bytearray] = field(default_factory=dict)
    synced_bytes: dict[tuple[LeaseId, Digest], int] = field(default_factory=dict)
    block_payloads: dict[Digest, bytes] = field(default_factory=dict)
    """Blocks as bytes, where a run has any."""
    blocks: dict[Digest, StoredBlock] = field(default_factory=dict)
    manifests: dict[Digest, dict[BlockId, Digest]] = field(default_factory=dict)
    frozen: dict[int, dict[BlockId, Digest]] = field(default_factory=dict)
    """By version, its columns as those have them that do not hold them."""
    versions: dict[int, VersionEntry] = field(default_factory=dict)
    appended: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Over every record that ever became durable: two runs with the same digest had the same history."""

    def leased(self, lease: Lease, signed: Mapping[BlockId, Digest]) -> Mapping[BlockId, Digest | None]:
        """What `lease` is to be trained from, where `signed` are the blocks of its base version."""
        if not lease.frozen.codec:
            return signed
        return {**self.frozen.get(lease.frozen.version, {}), **{block: signed.get(block) for block in lease.own}}

    def lose_power(self, keep_share: float) -> None:
        """What was not synced is lost; of an upload, `keep_share` of the unsynced bytes happen to be there."""
        self.records = [entry for entry in self.records if entry not in self.unsynced_records]
        self.unsynced_records.clear()
        self.last_position = self.records[-1][0] if self.records else (self.snapshot.position if self.snapshot else 0)
        for digest in self.unsynced_payloads:
            self.payloads.pop(digest, None)
        self.unsynced_payloads.clear()
        for key, content in self.uploads.items():
            synced = min(self.synced_bytes.get(key, 0), len(content))
            del content[synced + int((len(content) - synced) * keep_share) :]


class MemoryJournal(EventStore):
    """One process's handle on the journal, an `EventStore`."""

    def __init__(self, disk: Disk, process: Process, on_append: OnAppend) -> None:
        self._disk = disk
        self._process = process
        self._on_append = on_append
        self._epoch = disk.epoch

    @property
    def engine_version(self) -> int:
        """This program's: a simulated run is never another release's."""
        return ENGINE_VERSION

    @property
    def last_position(self) -> int:
        """Position of the newest event."""
        return self._disk.last_position

    def append(self, records: Sequence[str]) -> int:
        """One durable commit. The process may die just before or just after it reaches the disk."""
        disk = self._disk
        if not records or not self._process.alive:
            return disk.last_position
        self._require_epoch()
        last = disk.last_position + len(records)
        self._on_append(last, False, records)
        if self._process.alive:
            self._write(records)
            self._on_append(last, True, records)
        return disk.last_position

    def _write(self, records: Sequence[str]) -> None:
        disk = self._disk
        disk.records += enumerate(records, start=disk.last_position + 1)
        disk.last_position += len(records)
        for record in records:
            disk.appended.update(record.encode())

    def read(self, after: int = 0) -> Iterator[tuple[int, str]]:
        """Events above `after`."""
        return iter([entry for entry in self._disk.records if entry[0] > after])

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it, and cut what it covers."""
        if not self._process.alive:
            return
        self._require_epoch()
        if snapshot.position > self._disk.last_position:
            raise LocalError(f"snapshot at {snapshot.position} is ahead of {self._disk.last_position}")
        self._disk.snapshot = snapshot
        self._disk.records = [entry for entry in self._disk.records if entry[0] > snapshot.position]

    def latest_snapshot(self) -> Snapshot | None:
        """The newest."""
        return self._disk.snapshot

    def fence(self) -> None:
        """A process that thinks itself alive, and is not alone any more, writes nothing from now on."""
        self._disk.epoch += 1
        self._epoch = self._disk.epoch

    def _require_epoch(self) -> None:
        if self._epoch != self._disk.epoch:
            raise LocalError(f"the journal was taken over by another process than {self._process.name}")


class MemoryBlobs(BlobStore):
    """A `BlobStore` over one table of a disk."""

    def __init__(self, kept: dict[Digest, bytes]) -> None:
        self._kept = kept

    def put(self, content: bytes) -> Digest:
        """Durable when this returns."""
        digest = digest_of(content)
        self.keep(digest, content)
        return digest

    def keep(self, digest: Digest, content: bytes) -> None:
        """As `put`, where the caller has checked the digest."""
        self._kept[digest] = content

    def open(self, digest: Digest) -> BinaryIO:
        """A file in memory."""
        if not self.has(digest):
            raise LocalError(f"{self.place(digest)} is not here")
        return io.BytesIO(self._kept[digest])

    def stat(self, digest: Digest) -> int | None:
        """Its bytes."""
        content = self._kept.get(require_digest(digest))
        return None if content is None else len(content)

    def drop(self, digest: Digest) -> None:
        """Forget it."""
        self._kept.pop(require_digest(digest), None)

    def digests(self) -> Iterator[Digest]:
        """All of them."""
        return iter(list(self._kept))

    @contextlib.contextmanager
    def pin(self, digests: Iterable[Digest]) -> Iterator[Callable[[Digest], BinaryIO]]:
        """By keeping the bytes."""
        pinned = {digest: self.open(digest) for digest in digests}
        yield pinned.__getitem__

    def place(self, digest: Digest) -> str:
        """In memory."""
        return f"blob {require_digest(digest)}"


class MemoryPayloads(MemoryBlobs):
    """Whole submissions."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.payloads)
        self._disk = disk

    def keep(self, digest: Digest, content: bytes) -> None:
        """Synced with it: a planted bug leaves that out."""
        super().keep(digest, content)


class MemoryUpload:
    """One upload's bytes so far."""

    def __init__(self, disk: Disk, process: Process, key: tuple[LeaseId, Digest], received_bytes: int) -> None:
        self._disk, self._process, self._key = disk, process, key
        self._closed = False
        self.received_bytes = received_bytes

    def prefix(self) -> Iterator[bytes]:
        """The bytes that are here already."""
        if self.received_bytes:
            yield bytes(self._disk.uploads[self._key][: self.received_bytes])

    def write(self, piece: bytes | memoryview) -> None:
        """Append; not durable until `sync`."""
        if self._closed:  # a cancelled call closes while its last write may still be on its way
            raise LocalError(f"the upload for {self._key[0]} was closed")
        if self._process.alive:
            content = self._disk.uploads.setdefault(self._key, bytearray())
            content[self.received_bytes : self.received_bytes + len(piece)] = piece
            self.received_bytes += len(piece)

    def sync(self) -> None:
        """Durable."""
        if self._process.alive:
            self._disk.synced_bytes[self._key] = self.received_bytes

    def close(self) -> None:
        """No more writes."""
        self._closed = True


class MemoryStore:
    """One process's handle on the artifacts."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk, self._process = disk, process
        self.payloads, self.blocks = MemoryPayloads(disk), MemoryBlobs(disk.block_payloads)

    def upload_offset(self, lease_id: LeaseId, digest: Digest) -> int:
        """Bytes of this submission that are here but not whole."""
        return len(self._disk.uploads.get((lease_id, digest), b""))

    def open_upload(self, lease_id: LeaseId, digest: Digest, offset: int) -> MemoryUpload:
        """Go on at `offset`; more than what is here is refused."""
        key = (lease_id, digest)
        content = self._disk.uploads.setdefault(key, bytearray())
        if offset > len(content):
            raise Unavailable(f"upload for lease {lease_id} begins at byte {offset}, have {len(content)}")
        if self._process.alive:
            del content[offset:]
            self._disk.synced_bytes[key] = min(self._disk.synced_bytes.get(key, 0), offset)
        return MemoryUpload(self._disk, self._process, key, offset)

    def finish_upload(self, lease_id: LeaseId, upload: Upload, digest: Digest) -> None:
        """Sync, then name it as whole."""
        upload.sync()
        if self._process.alive:
            content = self._disk.uploads.pop((lease_id, digest))
            self._disk.synced_bytes.pop((lease_id, digest), None)
            self.payloads.keep(digest, bytes(content))

    def drop_upload(self, lease_id: LeaseId, digest: Digest) -> None:
        """Forget a partial upload."""
        if self._process.alive:
            self._disk.uploads.pop((lease_id, digest), None)
            self._disk.synced_bytes.pop((lease_id, digest), None)

    def drop_payload(self, digest: Digest) -> None:
        """Forget a submission, whole or in part."""
        if self._process.alive:
            self._disk.payloads.pop(digest, None)
            self._disk.unsynced_payloads.pop(digest, None)
            for key in [key for key in self._disk.uploads if key[1] == digest]:
                del self._disk.uploads[key]
                self._disk.synced_bytes.pop(key, None)

    def keep_submissions(self, wanted: Iterable[tuple[LeaseId, Digest]]) -> None:
        """Drop all others; what the server does at its start."""
        pairs = set(wanted)
        digests = {digest for _, digest in pairs}
        for digest in [digest for digest in self._disk.payloads if digest not in digests]:
            del self._disk.payloads[digest]
        for key in [key for key in self._disk.uploads if key not in pairs]:
            del self._disk.uploads[key]
            self._disk.synced_bytes.pop(key, None)
