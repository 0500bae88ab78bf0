import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, Unauthenticated
from protocol.identity import PrivateIdentity, verify
from protocol.ids import RunId, worker_id_of
from protocol.private_files import write_private
from protocol.tls import CertificateAuthority

_IDENTITY = PrivateIdentity.from_seed(bytes(range(32)))


def test_known_answer_of_rfc_8032() -> None:
    identity = PrivateIdentity.from_seed(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


@given(message=st.binary(max_size=64), bit=st.integers(0, 511))
def test_a_signature_holds_for_its_message_and_key_only(message: bytes, bit: int) -> None:
    signature = _IDENTITY.sign(message)
    verify(_IDENTITY.public_key, signature, message)
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    other = PrivateIdentity.generate().public_key
    for key, sig, text in (
        (_IDENTITY.public_key, bytes(flipped), message),
        (_IDENTITY.public_key, signature, message + b"x"),
        (other, signature, message),
    ):
        with pytest.raises(Unauthenticated):
            verify(key, sig, text)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_invalid_keys_are_refused(key: bytes) -> None:
    with pytest.raises(Unauthenticated):
        verify(key, bytes(64), b"")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_signatures_of_another_size_are_refused(length: int) -> None:
    with pytest.raises(Unauthenticated):
        verify(_IDENTITY.public_key, bytes(length), b"")


def test_save_and_load_keep_the_key_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    previous = os.umask(0)
    try:
        _IDENTITY.save(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = PrivateIdentity.load(path)
    assert loaded.public_key == _IDENTITY.public_key
    assert loaded.worker_id == worker_id_of(_IDENTITY.public_key)
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]


def test_repr_shows_the_worker_id_and_no_key() -> None:
    assert repr(_IDENTITY) == f"PrivateIdentity({_IDENTITY.worker_id})"


def test_loading_says_which_file_and_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent"):
        PrivateIdentity.load(tmp_path / "absent")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(ConfigError, match="text does not hold a private key"):
        PrivateIdentity.load(tmp_path / "text")
    CertificateAuthority.create(RunId("run")).save(tmp_path)
    with pytest.raises(ConfigError, match="expected Ed25519"):
        PrivateIdentity.load(tmp_path / "ca.key")


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    write_private(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot write .*secret: the disk is full"):
        write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*nowhere"):
        write_private(tmp_path / "nowhere" / "secret", b"")
