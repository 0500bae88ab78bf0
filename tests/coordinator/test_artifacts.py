"""Content by its digest: whole or not there; uploads that resume; garbage that goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.store.artifacts import ArtifactStore
from protocol.errors import LocalError, MalformedMessage, StorageTrouble, Unavailable
from protocol.ids import Digest, LeaseId, digest_of

LEASE = LeaseId("r1.1")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_put_is_durable_under_its_digest_and_idempotent(store: ArtifactStore) -> None:
    digest = store.blocks.put(b"content")
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert store.blocks.put(b"content") == digest
    assert store.blocks.read(digest) == b"content"
    assert store.blocks.stat(digest) == 7
    assert list(store.blocks.digests()) == [digest]
    assert not store.payloads.has(digest)


def test_a_failed_write_leaves_nothing(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageTrouble, match="disk is full: make room"):
            store.blocks.put(b"content")
    assert not store.blocks.has(digest_of(b"content"))
    assert list(store.blocks.digests()) == []


def test_content_that_the_disk_changed_is_not_served(store: ArtifactStore) -> None:
    digest = store.blocks.put(b"content")
    Path(store.blocks.place(digest)).write_bytes(b"c0ntent")
    with pytest.raises(LocalError, match="no longer has the digest"):
        store.blocks.read(digest)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_names_that_are_no_digest_reach_no_file(store: ArtifactStore, name: str) -> None:
    with pytest.raises(MalformedMessage):
        store.blocks.has(Digest(name))


@pytest.mark.parametrize("lease", ["", "../x", "a/b", ".hidden", "a" * 200, "r1.1\n"])
def test_names_that_are_no_lease_reach_no_file(store: ArtifactStore, lease: str) -> None:
    with pytest.raises(MalformedMessage):
        store.open_upload(LeaseId(lease), digest_of(b""), 0)


def test_an_upload_resumes_from_what_is_there_or_from_less_never_from_more(store: ArtifactStore) -> None:
    digest = digest_of(b"0123456789")
    assert store.upload_offset(LEASE, digest) == 0
    upload = store.open_upload(LEASE, digest, 0)
    upload.write(b"01234")
    upload.close()
    with pytest.raises(LocalError, match="closed"):
        upload.write(b"late")  # a cancelled call's last write
    assert store.upload_offset(LEASE, digest) == 5
    with pytest.raises(Unavailable, match="only 5 are here"):
        store.open_upload(LEASE, digest, 6)
    upload = store.open_upload(LEASE, digest, 3)
    assert b"".join(upload.prefix()) == b"012"
    upload.write(b"3456789")
    store.finish_upload(LEASE, upload, digest)
    assert store.payloads.read(digest) == b"0123456789"
    assert store.upload_offset(LEASE, digest) == 0


def test_two_submissions_for_one_lease_never_mix(store: ArtifactStore) -> None:
    first, second = digest_of(b"first"), digest_of(b"second")
    upload = store.open_upload(LEASE, first, 0)
    upload.write(b"fir")
    upload.close()
    assert store.upload_offset(LEASE, second) == 0


def test_dropping_and_sweeping(store: ArtifactStore) -> None:
    kept, stale = store.payloads.put(b"kept"), store.payloads.put(b"stale")
    for digest in (kept, stale):
        store.open_upload(LEASE, digest, 0).close()
    assert store.keep_submissions([(LEASE, kept)]) == 2
    assert list(store.payloads.digests()) == [kept]
    store.drop_payload(kept)
    assert list(store.payloads.digests()) == []
    assert store.upload_offset(LEASE, kept) == 0


def test_what_is_dropped_is_gone_at_once_and_its_room_comes_back_later(store: ArtifactStore, tmp_path: Path) -> None:
    digest, later = store.payloads.put(b"large"), list[Callable[[], None]]()
    store.drop_payload(digest, later.append)
    assert not store.payloads.has(digest)
    left = [path for path in tmp_path.rglob("*.tmp") if path.read_bytes() == b"large"]
    assert len(left) == 1
    assert store.payloads.put(b"large") == digest
    (give_back,) = later
    give_back()
    assert not left[0].exists()
    assert store.payloads.read(digest) == b"large", "the same content came again meanwhile"
    give_back()  # a start between the two has cleared it away
    store.drop_payload(digest, later.append)
    store.payloads.remove_temporaries()
    assert list(tmp_path.rglob("*.tmp")) == []
