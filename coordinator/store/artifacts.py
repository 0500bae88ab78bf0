"""Files by their content: blocks, manifests and submissions of one run, and uploads that are not whole yet.

Decides where bytes lie and when they count as kept. Touches only its own folder. Always: a digest is answered for only
when its file is complete and durable (temporary name, fsync, rename, fsync of the folder), so an event may name it.
Two stores of the same make: `blocks/` is what manifests name, swept by `Versions.keep_from`; `payloads/` is what
workers sent, dropped one by one when the engine says so. `uploads/LEASE.DIGEST.part` grows until its digest holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from coordinator.store.ports import BlobStore, PutParts, Upload, require_digest
from protocol.errors import LocalError, MalformedMessage, Unavailable
from protocol.folders import sync_folder
from protocol.ids import Digest, LeaseId, digest_of
from protocol.storage import is_storage_trouble, telling_storage_trouble

_log = structlog.get_logger(__name__)

_LEASE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_DIGEST_PREFIX = 16
_PINS = ".pins-"
_COPY_BYTES = 1 << 20
"""Bytes hashed at a time when a partial upload is resumed: large enough that the loop costs nothing beside SHA-256."""


SYNCED_AT_ONCE = 4
"""Files of one version: more would only wait for the same disk."""
Later = Callable[[Callable[[], None]], object]
"""Does what it is given at a time of its own, or now."""


class _Written(NamedTuple):
    """A content that is not durable yet."""

    digest: Digest
    temporary: Path
    file: io.FileIO


def _write_whole(file: io.FileIO, part: bytes | memoryview) -> None:
    view = memoryview(part).cast("B")
    while view:
        view = view[file.write(view) :]


def _now(work: Callable[[], None]) -> None:
    work()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def blob_name(digest: Digest) -> str:
    """The name of a content's file in a folder of them, spread over 256 subfolders."""
    return f"{digest[:2]}/{require_digest(digest)}"


class ContentStore(BlobStore):
    """A `BlobStore` of files in one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def place(self, digest: Digest) -> str:
        """The file's path."""
        return str(self._path(digest))

    def stat(self, digest: Digest) -> int | None:
        """Bytes of the content; None where it is not here."""
        path = self._path(digest)
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: Digest) -> BinaryIO:
        """The file; LocalError where it is not here."""
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError:
            raise LocalError(f"artifact {digest} is not in {self._root}") from None

    def put(self, content: bytes) -> Digest:
        """Keep `content`; durable when this returns. Putting it again costs one hash."""
        digest = digest_of(content)
        return digest if self.stat(digest) == len(content) else self.put_parts((content,))

    def put_parts(self, parts: Iterable[bytes | memoryview]) -> Digest:
        """See `BlobStore`: written as they come, so that no more than one of them is in memory."""
        written = self._written(parts)
        self._keep(written)
        return written.digest

    @contextlib.contextmanager
    def keeping(self) -> Iterator[PutParts]:
        """See `BlobStore`: the disk is waited for beside what is done inside, and for several files at once, which a
        file system that writes a log of its own commits together.
        """
        with ThreadPoolExecutor(SYNCED_AT_ONCE, "sync") as threads:
            kept: list[Future[None]] = []

            def keep(parts: Iterable[bytes | memoryview]) -> Digest:
                written = self._written(parts)
                kept.append(threads.submit(self._keep, written))
                return written.digest

            yield keep
            for each in kept:
                each.result()

    def _written(self, parts: Iterable[bytes | memoryview]) -> _Written:
        """Under a temporary name, and not durable: to be given to `_keep`."""
        hasher = hashlib.sha256()
        temporary = self._root / f".{secrets.token_hex(8)}.tmp"
        try:
            with telling_storage_trouble(self._root), contextlib.ExitStack() as opened:
                file = opened.enter_context(temporary.open("xb", buffering=0))
                for part in parts:
                    hasher.update(part)
                    _write_whole(file, part)
                opened.pop_all()
        except BaseException:
            _unlink(temporary)
            raise
        return _Written(Digest(hasher.hexdigest()), temporary, file)

    def _keep(self, written: _Written) -> None:
        try:
            with telling_storage_trouble(self._root):
                with written.file:
                    os.fsync(written.file.fileno())
                self._adopt(written.temporary, self._path(written.digest))
        finally:
            _unlink(written.temporary)

    def view(self, digest: Digest) -> memoryview:
        """See `BlobStore`: mapped, so that it lies in the page cache and not in this process's own memory."""
        with self.open(digest) as file:
            if not os.fstat(file.fileno()).st_size:  # nothing cannot be mapped
                return memoryview(bytearray())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def adopt(self, file: Path, digest: Digest) -> None:
        """Move a synced file, whose digest the caller has checked, under its name."""
        self._adopt(file, self._path(digest))

    def drop(self, digest: Digest, later: Later = _now) -> None:
        """Forget the content; fine when it is not here. Giving back its room, which takes a disk long, is left to
        `later`: what was not done by a crash, the next start does."""
        dropped = self._root / f".{secrets.token_hex(8)}.tmp"
        with contextlib.suppress(OSError):  # what a read-only disk keeps, the next start clears away
            self._path(digest).rename(dropped)
            later(partial(_unlink, dropped))

    @contextlib.contextmanager
    def pin(self, digests: Iterable[Digest]) -> Iterator[Callable[[Digest], BinaryIO]]:
        """By hard links beside the files, which keep the content when somebody else deletes its name."""
        pins = self._root / f"{_PINS}{secrets.token_hex(4)}"
        pins.mkdir(mode=0o700)
        try:
            for digest in digests:
                self._link(digest, pins / digest)
            yield lambda digest: (pins / digest).open("rb")
        finally:
            shutil.rmtree(pins, ignore_errors=True)

    def digests(self) -> Iterator[Digest]:
        """Everything that is kept."""
        for path in self._root.glob(f"??/{'[0-9a-f]' * 64}"):
            yield Digest(path.name)

    def remove_temporaries(self) -> None:
        """Clear what an interrupted `put` or `pin` left behind. Only while nothing writes."""
        for path in self._root.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        for path in self._root.glob(f"{_PINS}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _path(self, digest: Digest) -> Path:
        return self._root / blob_name(digest)

    def _link(self, digest: Digest, pin: Path) -> None:
        path = self._path(digest)
        try:
            os.link(path, pin)
        except FileNotFoundError:
            raise LocalError(f"artifact {digest} is not in {self._root}") from None
        except OSError:  # a file system without links: a copy made at once does as well
            shutil.copyfile(path, pin)

    def _adopt(self, file: Path, target: Path) -> None:
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._root)
        file.replace(target)
        sync_folder(target.parent)


class PartialUpload:
    """One upload's bytes so far. Holds an open file; `close` it."""

    def __init__(self, path: Path, file_descriptor: int, received_bytes: int) -> None:
        self._path = path
        self._file_descriptor = file_descriptor
        self._lock = threading.Lock()  # a cancelled call closes while its last write may still be on its way
        self.received_bytes = received_bytes

    def prefix(self) -> Iterator[bytes]:
        """See `Upload`. LocalError where somebody else cut the file meanwhile."""
        offset = 0
        while offset < self.received_bytes:
            piece = os.pread(self._file_descriptor, min(_COPY_BYTES, self.received_bytes - offset), offset)
            if not piece:
                raise LocalError(f"{self._path} shrank while it was read")
            offset += len(piece)
            yield piece

    def write(self, piece: bytes | memoryview) -> None:
        """See `Upload`. Unavailable while the disk takes nothing."""
        view = memoryview(piece)
        with self._lock:
            if self._file_descriptor < 0:
                raise LocalError(f"{self._path} was closed")
            while view:
                with _later_again():
                    written = os.pwrite(self._file_descriptor, view, self.received_bytes)
                self.received_bytes += written
                view = view[written:]

    def sync(self) -> None:
        """See `Upload`."""
        with _later_again():
            os.fsync(self._file_descriptor)

    def close(self) -> None:
        """See `Upload`. Closing twice is fine."""
        with self._lock:
            if self._file_descriptor >= 0:
                os.close(self._file_descriptor)
                self._file_descriptor = -1


class ArtifactStore:
    """The artifacts folder of one run, an `Artifacts`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.blocks = ContentStore(root / "blocks")
        self.payloads = ContentStore(root / "payloads")
        self._uploads = root / "uploads"
        self._uploads.mkdir(mode=0o700, exist_ok=True)

    def upload_offset(self, lease_id: LeaseId, digest: Digest) -> int:
        """See `Artifacts`: the size of the file."""
        with contextlib.suppress(FileNotFoundError):
            return self._upload_path(lease_id, digest).stat().st_size
        return 0

    def open_upload(self, lease_id: LeaseId, digest: Digest, offset: int) -> PartialUpload:
        """See `Artifacts`."""
        path = self._upload_path(lease_id, digest)
        with _later_again():
            file_descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        have = os.fstat(file_descriptor).st_size
        if offset > have:
            os.close(file_descriptor)
            # no fault of the worker: an older stream that came late, or a power loss, took bytes away again
            raise Unavailable(
                f"upload for lease {lease_id} begins at byte {offset}, but only {have} are here; "
                "commit again to learn the offset"
            )
        os.ftruncate(file_descriptor, offset)
        return PartialUpload(path, file_descriptor, offset)

    def finish_upload(self, lease_id: LeaseId, upload: Upload, digest: Digest) -> None:
        """See `Artifacts`."""
        upload.sync()
        upload.close()
        with _later_again():
            self.payloads.adopt(self._upload_path(lease_id, digest), digest)

    def drop_upload(self, lease_id: LeaseId, digest: Digest) -> None:
        """See `Artifacts`."""
        self._upload_path(lease_id, digest).unlink(missing_ok=True)

    def drop_payload(self, digest: Digest, later: Later = _now) -> None:
        """Forget a submission, whole or in part; `later` as for `ContentStore.drop`."""
        self.payloads.drop(digest, later)
        for path in self._uploads.glob(f"*.{digest[:_DIGEST_PREFIX]}.part"):
            path.unlink(missing_ok=True)

    def keep_submissions(self, wanted: Iterable[tuple[LeaseId, Digest]]) -> int:
        """Delete every other submission, whole or partial; returns how many. Only while nothing uploads."""
        pairs = list(wanted)
        digests = {digest for _, digest in pairs}
        uploads = {self._upload_path(lease_id, digest) for lease_id, digest in pairs}
        stale = [digest for digest in self.payloads.digests() if digest not in digests]
        for digest in stale:
            self.payloads.drop(digest)
        parts = [path for path in self._uploads.glob("*.part") if path not in uploads]
        for path in parts:
            path.unlink(missing_ok=True)
        return len(stale) + len(parts)

    def _upload_path(self, lease_id: LeaseId, digest: Digest) -> Path:
        # The digest is part of the name: bytes of two different submissions for one lease never mix.
        if _LEASE_FILE.match(lease_id) is None:
            raise MalformedMessage(f"not a lease id: {lease_id[:80]!r}")
        return self._uploads / f"{lease_id}.{digest[:_DIGEST_PREFIX]}.part"


@contextlib.contextmanager
def _later_again() -> Iterator[None]:
    """Inside, a disk that refuses becomes something that the worker is told to try again: its bytes are not lost."""
    try:
        yield
    except OSError as error:
        if not is_storage_trouble(error):
            raise
        _log.error("upload_stalled", error=str(error))
        raise Unavailable(
            f"the coordinator cannot store uploads now ({error.strerror}); keep the submission and send it later"
        ) from error
