"""What must outlive a worker's process, and what must not be believed when it is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from protocol.ids import LeaseId, RunId, WorkerId, digest_of
from protocol.tls import CertificateAuthority, manifest_key_message
from worker import home
from worker.blocks import BlockCache
from worker.disk import worker_lock
from worker.home import Enrolment, open_home
from worker.outbox import RECORD, Outbox, Submission


def submission(payload: bytes, lease: str = "r1.1") -> Submission:
    return Submission(
        lease_id=LeaseId(lease),
        digest=digest_of(payload),
        payload_bytes=len(payload),
        codec="bf16",
        inner_steps_done=5,
        tokens=100,
        train_loss_first=5.5,
        train_loss_last=4.5,
        train_s=1.0,
        micro_batch=4,
    )


def test_the_outbox_gives_back_what_was_stored(tmp_path: Path) -> None:
    stored = submission(b"gradient")
    Outbox(tmp_path).save(stored, b"gradient")
    outbox = Outbox(tmp_path)
    assert outbox.load() == stored
    assert outbox.payload_path(stored).read_bytes() == b"gradient"
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_the_outbox_holds_a_submission_for_each_lease_in_their_order(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.save(submission(b"once"), b"once")
    outbox.save(submission(b"first"), b"first")
    outbox.save(submission(b"second", "r2.1"), b"second")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert [one.lease_id for one in Outbox(tmp_path).all()] == ["r1.1", "r2.1"]
    assert outbox.load(LeaseId("r2.1")) == submission(b"second", "r2.1")
    outbox.drop(LeaseId("r1.1"))
    assert outbox.load() == submission(b"second", "r2.1"), "another lease's submission is not dropped"
    outbox.save(submission(b"third", "r3.1"), b"third")
    assert [one.lease_id for one in outbox.all()] == ["r2.1", "r3.1"]
    for lease_id in ("r2.1", "r3.1"):
        outbox.drop(LeaseId(lease_id))
    assert outbox.load() is None
    assert list(tmp_path.iterdir()) == []


def test_two_submissions_of_the_same_bytes_are_dropped_one_by_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.save(submission(b"zeros"), b"zeros")
    outbox.save(submission(b"zeros", "r2.1"), b"zeros")
    outbox.drop(LeaseId("r1.1"))
    assert outbox.load(LeaseId("r2.1")) == submission(b"zeros", "r2.1")


def test_what_is_dropped_beside_a_save_leaves_the_bytes_that_it_has_written(tmp_path: Path) -> None:
    outbox, coming = Outbox(tmp_path), submission(b"coming", "r2.1")
    outbox.save(submission(b"sent"), b"sent")
    outbox.payload_path(coming).write_bytes(b"coming")  # the training thread has come so far
    outbox.drop(LeaseId("r1.1"))
    assert outbox.payload_path(coming).exists()


@pytest.mark.parametrize(
    "damage", ["truncated payload", "other payload", "no payload", "record", "record of another make"]
)
def test_the_outbox_drops_what_is_not_whole(tmp_path: Path, damage: str) -> None:
    outbox, stored = Outbox(tmp_path), submission(b"gradient")
    outbox.save(stored, b"gradient")
    path = outbox.payload_path(stored)
    match damage:
        case "truncated payload":
            path.write_bytes(b"grad")
        case "other payload":
            path.write_bytes(b"Gradient")
        case "no payload":
            path.unlink()
        case "record":
            (tmp_path / RECORD).write_bytes(b'{"lease_id": ')
        case _:
            (tmp_path / RECORD).write_bytes(b'{"lease_id": "r1.1"}')
    assert Outbox(tmp_path).load() is None
    assert list(tmp_path.iterdir()) == []


def test_a_crash_between_payload_and_record_leaves_nothing(tmp_path: Path) -> None:
    outbox, stored = Outbox(tmp_path), submission(b"gradient")
    outbox.payload_path(stored).write_bytes(b"gradient")
    assert outbox.load() is None
    assert list(tmp_path.iterdir()) == []


def put(cache: BlockCache, content: bytes) -> str:
    digest = digest_of(content)
    cache.partial(digest).write_bytes(content)
    cache.adopt(digest)
    return digest


def test_a_block_that_rotted_on_disk_is_not_used(tmp_path: Path) -> None:
    digest = digest_of(b"block")
    put(BlockCache(tmp_path), b"block")
    assert BlockCache(tmp_path).has(digest, 5)
    BlockCache(tmp_path).path(digest).write_bytes(b"blocc")
    assert not BlockCache(tmp_path).has(digest, 5)
    assert list(tmp_path.iterdir()) == []


def test_one_worker_a_folder(tmp_path: Path) -> None:
    first, second = worker_lock(tmp_path / "lock"), worker_lock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(ConfigError, match="--home"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_each_run_has_a_key_of_its_own(tmp_path: Path) -> None:
    one, other = open_home(tmp_path, "a" * 64), open_home(tmp_path, "b" * 64)
    assert one.identity().public_key != other.identity().public_key
    assert one.identity().public_key == open_home(tmp_path, "a" * 64).identity().public_key


def test_an_enrolment_counts_only_if_the_links_authority_vouches_for_it(tmp_path: Path) -> None:
    authority, stranger = CertificateAuthority.create(RunId("run")), CertificateAuthority.create(RunId("run"))

    def enrolment(signer: CertificateAuthority, run: str = "run") -> Enrolment:
        vouch = signer.sign(manifest_key_message(RunId("run"), b"k" * 32))
        return Enrolment(
            worker_id=WorkerId("w"),
            run_id=RunId(run),
            ca_pem=authority.cert_pem.decode(),
            manifest_public_key_hex=(b"k" * 32).hex(),
            manifest_key_vouch_hex=vouch.hex(),
            trusted=False,
        )

    home = open_home(tmp_path, authority.fingerprint)
    assert home.enrolment() is None
    home.save_enrolment(enrolment(authority))
    assert home.enrolment() is not None
    home.save_enrolment(enrolment(stranger))
    assert home.enrolment() is None
    home.save_enrolment(enrolment(authority, run="another"))
    assert home.enrolment() is None
    other = open_home(tmp_path, stranger.fingerprint)
    other.save_enrolment(enrolment(authority))
    assert other.enrolment() is None


def test_a_user_without_a_home_folder_is_told_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("worker.rejoin.platformdirs.user_data_path", unknown)
    with pytest.raises(ConfigError, match="no home folder: say with --home FOLDER"):
        home.open_home(None, "0" * 64)
