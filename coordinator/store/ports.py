"""What a run's two stores must do, whatever they are made of: `EventStore` for what happened, `BlobStore` for tensors.

Decides nothing; docs/decisions/0019 says why these two. Every implementation passes the contract suites in
`tests/coordinator/test_event_store_contract.py` and `test_blob_store_contract.py`: SQLite (`journal.py`), files
(`artifacts.py`), memory (`simulator/deterministic/disk.py`). Always: what has returned is durable; what raised did not
happen. No method takes or gives a path: where bytes lie is the store's own business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from protocol.errors import LocalError, MalformedMessage
from protocol.ids import Digest, LeaseId, digest_of, stream_digest

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
PutParts = Callable[[Iterable[bytes | memoryview]], Digest]
"""Keeps what these make together; its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine's state after the event at `position`."""

    position: int
    engine_version: int
    state: str


class EventStore(Protocol):
    """One run's events, in order, and the latest snapshot of what came of them. Used by one thread at a time."""

    @property
    def engine_version(self) -> int:
        """Version of the engine that wrote this: another one may decide differently on replay."""

    @property
    def last_position(self) -> int:
        """Position of the newest event; 0 where there is none. Never used twice, not even after a cut."""

    def append(self, records: Sequence[str]) -> int:
        """Write all `records` at once, durably, and return the last position.

        StorageTrouble when nothing can be written: then none of them is here, and it may be tried again. LocalError
        when somebody else has fenced this store.
        """

    def read(self, after: int = 0) -> Iterator[tuple[int, str]]:
        """Events with a position above `after`, in order; ConfigError where they are not what was written."""

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep `snapshot` and cut the events that it covers, at once and durably. Raises as `append` does."""

    def latest_snapshot(self) -> Snapshot | None:
        """The newest snapshot, if there is one; ConfigError where it is not what was written."""

    def fence(self) -> None:
        """Keep everybody out who opened this store before: their writes raise LocalError from now on."""


def require_digest(digest: Digest) -> Digest:
    """`digest`, or MalformedMessage where it is not one: asked by every store before it looks anything up."""
    if _DIGEST.match(digest) is None:
        raise MalformedMessage(f"not a SHA-256 digest: {digest[:80]!r}")
    return digest


class BlobStore(Protocol):
    """Whole contents under their SHA-256. MalformedMessage for a name that is not a digest, whatever is asked."""

    def put(self, content: bytes) -> Digest:
        """Keep `content`; durable when this returns. Putting it again is cheap. StorageTrouble when it cannot be."""

    def open(self, digest: Digest) -> BinaryIO:
        """The content, to read from anywhere; the caller closes it. LocalError where it is not here."""

    def stat(self, digest: Digest) -> int | None:
        """Bytes of the content; None where it is not here."""

    def drop(self, digest: Digest) -> None:
        """Forget the content; fine when it is not here."""

    def digests(self) -> Iterator[Digest]:
        """Everything that is kept, in any order."""

    def pin(self, digests: Iterable[Digest]) -> AbstractContextManager[Callable[[Digest], BinaryIO]]:
        """Inside, what this gives opens each of `digests`, whoever drops it meanwhile. LocalError where one is gone."""

    def place(self, digest: Digest) -> str:
        """Where the content is, or would be: for a sentence to a person, never to be opened."""

    def put_parts(self, parts: Iterable[bytes | memoryview]) -> Digest:
        """Keep what `parts` make together, as `put`; what raises on the way leaves nothing behind."""
        return self.put(b"".join(parts))

    @contextmanager
    def keeping(self) -> Iterator[PutParts]:
        """Inside, what this gives keeps contents as `put_parts` does, but they are here, and durable, only when the
        block has ended: then all of them. Where it does not end well some may be.
        """
        yield self.put_parts

    def view(self, digest: Digest) -> memoryview:
        """The content in place, for as long as the view or anything made of it lives, whoever drops it meanwhile.

        Writable, since tensors over memory that is not are refused; what is written there never reaches the store.
        Not checked against its name. LocalError where it is not here.
        """
        with self.open(digest) as file:
            return memoryview(bytearray(file.read()))

    def has(self, digest: Digest) -> bool:
        """Whether the whole content is here."""
        return self.stat(digest) is not None

    def check(self, digest: Digest) -> None:
        """LocalError where the content is not here or not what its name says; reads it once, a piece at a time."""
        with self.open(digest) as file:
            found = stream_digest(file)
        if found != digest:
            raise LocalError(self._changed(digest))

    def read(self, digest: Digest) -> bytes:
        """The content, checked against its name: a disk that lies is found here and not in a model."""
        with self.open(digest) as file:
            content = file.read()
        if digest_of(content) != digest:
            raise LocalError(self._changed(digest))
        return content

    def _changed(self, digest: Digest) -> str:
        return f"{self.place(digest)} no longer has the digest it is named by; the disk or a person changed it"


class Upload(Protocol):
    """The bytes of one submission so far."""

    received_bytes: int

    def prefix(self) -> Iterator[bytes]:
        """The bytes that are here already, in pieces: a resumed upload hashes them first."""

    def write(self, piece: bytes | memoryview) -> None:
        """Append; not durable until `sync`."""

    def sync(self) -> None:
        """Make what was written durable."""

    def close(self) -> None:
        """No more writes; its bytes stay for the next attempt."""


class Artifacts(Protocol):
    """What the coordinator's edge asks of a run's stores: blobs, and submissions that are still on their way."""

    @property
    def blocks(self) -> BlobStore:
        """Blocks, momenta and manifests."""

    @property
    def payloads(self) -> BlobStore:
        """Whole submissions."""

    def upload_offset(self, lease_id: LeaseId, digest: Digest) -> int:
        """Bytes of this submission that are here but not whole."""

    def open_upload(self, lease_id: LeaseId, digest: Digest, offset: int) -> Upload:
        """Go on at `offset`, which may be less than what is here (the rest is cut off); Unavailable above that."""

    def finish_upload(self, lease_id: LeaseId, upload: Upload, digest: Digest) -> None:
        """The caller has checked the digest: make the payload durable under its name."""

    def drop_upload(self, lease_id: LeaseId, digest: Digest) -> None:
        """Forget a partial upload whose bytes are not what was promised."""
