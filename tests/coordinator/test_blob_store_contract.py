"""What every `BlobStore` must do, over files, over the simulation's memory, and over one that is made up here.

An implementation is one `Kind` below: how a process opens it, and what a power loss leaves to the next. Adding one
takes its own file and a line in `KINDS`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from coordinator.store.artifacts import ContentStore, blob_name
from coordinator.store.ports import BlobStore, require_digest
from protocol.errors import LocalError, MalformedMessage, StorageTrouble
from protocol.ids import Digest, digest_of
from simulator.deterministic.disk import Disk, MemoryPayloads

NOT_HERE = digest_of(b"nobody ever put this")


class Packed(BlobStore):
    """Made up: all contents in one list, deflated; what is dropped becomes a hole."""

    def __init__(self, shelf: list[bytes | None], index: dict[Digest, tuple[int, int]]) -> None:
        self._shelf, self._index = shelf, index

    def put(self, content: bytes) -> Digest:
        digest = digest_of(content)
        if digest not in self._index:
            self._shelf.append(zlib.compress(content))
            self._index[digest] = (len(self._shelf) - 1, len(content))
        return digest

    def open(self, digest: Digest) -> BinaryIO:
        if not self.has(digest):
            raise LocalError(f"{self.place(digest)} is not here")
        packed = self._shelf[self._index[digest][0]]
        assert packed is not None
        return io.BytesIO(zlib.decompress(packed))

    def stat(self, digest: Digest) -> int | None:
        return self._index[digest][1] if require_digest(digest) in self._index else None

    def drop(self, digest: Digest) -> None:
        if self.has(digest):
            self._shelf[self._index.pop(digest)[0]] = None

    def digests(self) -> Iterator[Digest]:
        return iter(list(self._index))

    @contextlib.contextmanager
    def pin(self, digests: Iterable[Digest]) -> Iterator[Callable[[Digest], BinaryIO]]:
        pinned = {digest: self.open(digest) for digest in digests}
        yield pinned.__getitem__

    def place(self, digest: Digest) -> str:
        return f"parcel {require_digest(digest)}"


@dataclass(frozen=True)
class Kind:
    """One implementation, over one disk."""

    open: Callable[[], BlobStore]
    lose_power: Callable[[], None]
    damage: Callable[[Digest], None]
    """The disk gives back other bytes from now on."""


def nothing_lost() -> None:
    """All of it lives elsewhere."""


def packed(_: Path, __: pytest.MonkeyPatch) -> Kind:
    shelf: list[bytes | None] = []
    index: dict[Digest, tuple[int, int]] = {}

    def damage(digest: Digest) -> None:
        shelf[index[digest][0]] = zlib.compress(b"c0ntent")

    return Kind(lambda: Packed(shelf, index), nothing_lost, damage)


def memory(_: Path, __: pytest.MonkeyPatch) -> Kind:
    disk = Disk()

    def damage(digest: Digest) -> None:
        disk.payloads[digest] = b"c0ntent"

    return Kind(lambda: MemoryPayloads(disk), lambda: disk.lose_power(0.0), damage)


def files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """On a disk that keeps, through a power loss, only what was synced: bytes of files, and names of folders."""
    root, synced = folder / "blobs", Synced()
    monkeypatch.setattr(os, "fsync", synced.fsync)
    ContentStore(root)
    synced.note(folder)
    synced.note(root)

    def damage(digest: Digest) -> None:
        (root / blob_name(digest)).write_bytes(b"c0ntent")

    return Kind(lambda: ContentStore(root), lambda: synced.lose_power(root), damage)


class Synced:
    """What `fsync` was called for: content by inode, names by folder."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}

    def fsync(self, descriptor: int) -> None:
        self.note(Path(f"/proc/self/fd/{descriptor}").resolve())

    def note(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            names = self._names[inode] = {}
            for child in path.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another thread renames meanwhile
                    names[child.name] = child.stat().st_ino
        else:
            self._contents[inode] = path.read_bytes()

    def lose_power(self, folder: Path) -> None:
        kept = self._names.get(folder.stat().st_ino, {})
        for path in list(folder.iterdir()):
            if path.is_dir() and path.name in kept:
                self.lose_power(path)
            elif path.is_dir():
                shutil.rmtree(path)
            elif path.name in kept:
                path.write_bytes(self._contents.get(path.stat().st_ino, b""))
            else:
                path.unlink()


KINDS = (files, memory, packed)


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    made: Kind = request.param(tmp_path, monkeypatch)
    return made


def test_what_was_put_is_there_under_its_digest(kind: Kind) -> None:
    store = kind.open()
    digest = store.put(b"content")
    assert digest == digest_of(b"content")
    assert store.put(b"content") == digest
    assert (store.has(digest), store.stat(digest), store.read(digest)) == (True, 7, b"content")
    assert list(store.digests()) == [digest]
    empty = store.put(b"")
    assert (store.has(empty), store.stat(empty), store.read(empty)) == (True, 0, b"")
    assert set(kind.open().digests()) == {digest, empty}


def test_an_open_blob_is_read_from_anywhere(kind: Kind) -> None:
    store = kind.open()
    with store.open(store.put(b"0123456789")) as file:
        assert file.seek(0, os.SEEK_END) == 10
        file.seek(4)
        assert file.read(3) == b"456"
        target = bytearray(2)
        file.seek(1)
        assert file.readinto(target) == 2  # type: ignore[attr-defined]
        assert target == b"12"


def test_parts_are_kept_as_what_they_make_together(kind: Kind) -> None:
    store = kind.open()
    digest = store.put_parts(part for part in (b"con", memoryview(b"te"), b"", b"nt"))
    assert (digest, store.read(digest)) == (digest_of(b"content"), b"content")
    kind.lose_power()
    assert kind.open().read(digest) == b"content"
    empty = store.put_parts(())
    assert store.read(empty) == b""


def test_parts_that_break_off_leave_nothing(kind: Kind, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"con"
        raise ZeroDivisionError

    store = kind.open()
    with pytest.raises(ZeroDivisionError):
        store.put_parts(parts())
    assert list(store.digests()) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_kept_together_is_all_here_when_that_has_ended(kind: Kind, tmp_path: Path) -> None:
    contents = [bytes([number]) * 1000 for number in range(40)]
    store = kind.open()
    already = store.put(contents[3])
    with store.keeping() as keep:
        digests = [keep((content[:7], memoryview(content)[7:])) for content in (*contents, contents[5])]
    assert digests == [digest_of(content) for content in (*contents, contents[5])]
    assert digests[3] == already
    kind.lose_power()
    again = kind.open()
    assert [again.read(digest) for digest in digests] == [*contents, contents[5]]
    assert set(again.digests()) == set(digests)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_that_takes_nothing_is_told_when_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = ContentStore(tmp_path), os.fsync

    def full_at_the_second(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(StorageTrouble), store.keeping() as keep:
        first, second = keep((b"1",)), keep((b"22",))
    assert (store.has(first), store.has(second)) == (True, False)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_view_outlives_its_blob_and_never_changes_it(kind: Kind) -> None:
    store = kind.open()
    digest, empty = store.put(b"content"), store.put(b"")
    view, other = store.view(digest), store.view(digest)
    view[:3] = b"CON"
    assert (bytes(view), bytes(other), store.read(digest)) == (b"CONtent", b"content", b"content")
    store.drop(digest)
    assert bytes(other) == b"content"
    assert bytes(store.view(empty)) == b""


def test_a_check_finds_what_the_disk_changed(kind: Kind) -> None:
    store = kind.open()
    digest = store.put(b"content")
    store.check(digest)
    kind.damage(digest)
    with pytest.raises(LocalError, match="no longer has the digest"):
        store.check(digest)


def test_what_is_not_here_is_told(kind: Kind) -> None:
    store = kind.open()
    assert (store.has(NOT_HERE), store.stat(NOT_HERE)) == (False, None)
    store.drop(NOT_HERE)
    assert NOT_HERE in store.place(NOT_HERE)
    for ask in (store.open, store.read, store.view, store.check):
        with pytest.raises(LocalError):
            ask(NOT_HERE)
    with pytest.raises(LocalError), store.pin([store.put(b"here"), NOT_HERE]):
        pass


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 64 + "/../x"])
def test_a_name_that_is_no_digest_reaches_nothing(kind: Kind, name: str) -> None:
    store, digest = kind.open(), Digest(name)
    for ask in (store.has, store.stat, store.open, store.read, store.view, store.check, store.drop, store.place):
        with pytest.raises(MalformedMessage, match="digest"):
            ask(digest)
    with pytest.raises(MalformedMessage, match="digest"), store.pin([digest]):
        pass


def test_what_was_dropped_is_gone_and_may_come_again(kind: Kind) -> None:
    store = kind.open()
    one, other = store.put(b"one"), store.put(b"other")
    store.drop(one)
    assert (store.has(one), list(store.digests())) == (False, [other])
    assert store.put(b"one") == one
    assert store.read(one) == b"one"


def test_what_is_pinned_can_be_read_though_somebody_drops_it(kind: Kind) -> None:
    store, other_process = kind.open(), kind.open()
    digests = [store.put(b"one"), store.put(b"two")]
    with store.pin(digests) as opened:
        for digest in digests:
            other_process.drop(digest)
        assert not store.has(digests[0])
        for digest, content in zip(digests, (b"one", b"two"), strict=True):
            with opened(digest) as file:
                assert file.read() == content
        assert list(store.digests()) == []
    assert not store.has(digests[0])


def test_a_blob_that_is_open_can_be_read_to_its_end_though_somebody_drops_it(kind: Kind) -> None:
    store = kind.open()
    digest = store.put(b"0123456789")
    with store.open(digest) as file:
        kind.open().drop(digest)
        assert file.read() == b"0123456789"


def test_content_that_the_disk_changed_is_not_taken_for_what_was_put(kind: Kind) -> None:
    store = kind.open()
    digest = store.put(b"content")
    kind.damage(digest)
    with pytest.raises(LocalError, match="no longer has the digest"):
        store.read(digest)


def test_what_was_acknowledged_is_there_after_a_power_loss(kind: Kind) -> None:
    kept = [kind.open().put(f"content {number}".encode()) for number in range(20)]
    kind.lose_power()
    store = kind.open()
    assert set(store.digests()) == set(kept)
    assert [store.read(digest) for digest in kept] == [f"content {number}".encode() for number in range(20)]


def test_a_put_that_is_interrupted_leaves_nothing_and_may_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files: wherever the power goes, a name stands for its whole content or is not there."""
    for step in range(4):
        with monkeypatch.context() as patch:
            folder = tmp_path / str(step)
            folder.mkdir()
            kind = files(folder, patch)
            store, calls, fsync = kind.open(), iter(range(100)), os.fsync

            def dies(descriptor: int, *, step: int = step, calls: Iterator[int] = calls, fsync: object = fsync) -> None:
                if next(calls) == step:
                    raise KeyboardInterrupt
                fsync(descriptor)  # type: ignore[operator]

            patch.setattr(os, "fsync", dies)
            with contextlib.suppress(KeyboardInterrupt):
                store.put(b"content")
            patch.setattr(os, "fsync", fsync)
            kind.lose_power()
            again = kind.open()
            assert [again.read(digest) for digest in again.digests()] in ([], [b"content"])
            assert again.read(again.put(b"content")) == b"content"
