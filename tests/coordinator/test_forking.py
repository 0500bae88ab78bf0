"""A run goes on from an archive under other keys; what the old run did not sign is refused, and no secret leaves it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.run.archiving import write_archive
from coordinator.run.folder import RunFolder
from coordinator.run.forking import Forked, fork_run, read_archive
from coordinator.run.verify import verify_run
from coordinator.store.versions import Versions
from protocol.archives import ArchiveIndex
from protocol.errors import ConfigError
from protocol.joinlink import JoinLink
from tests.coordinator.conftest import ENGINE
from tests.served import make_run


def versions_of(run: RunFolder) -> Versions:
    return Versions(run.root / "versions", run.artifacts().blocks, run.layout())


def manifest_of(run: RunFolder) -> Any:
    digest = versions_of(run).manifest_digest(run.published_version())
    assert digest is not None
    return versions_of(run).manifest(digest)


@pytest.fixture
def archive(run: RunFolder, tmp_path: Path) -> Path:
    write_archive(run, tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def forked(archive: Path, tmp_path: Path, text_folder: Path) -> Callable[..., Forked]:
    return lambda **more: fork_run(archive, tmp_path / "forked", data=str(text_folder), **more)


async def train(folder: RunFolder, client_type: type[Any], submission: Callable[..., bytes], rounds: int) -> None:
    """All that is left, by one worker."""
    server = CoordinatorServer(folder)
    await server.start()
    try:
        (link,) = await server.create_invites()
        client = client_type(JoinLink.parse(link), folder)
        await client.enrol()
        await client.open()
        for _ in range(rounds):
            reply = await client.acquire()
            payload = submission(folder, reply.lease)
            await client.commit(reply.lease, payload)
            assert (await client.upload(reply.lease, payload)).complete
        assert (await client.acquire()).WhichOneof("outcome") == "over"
        await asyncio.wait_for(server.finished(), 60.0)
        await client.close()
    finally:
        await server.stop(0.0)


async def test_a_run_that_was_left_trains_on(
    tmp_path: Path, text_folder: Path, client_type: type[Any], submission: Callable[..., bytes]
) -> None:
    run = RunFolder.open(make_run(tmp_path / "run", text_folder, {**ENGINE, "outer_momentum": 0.9}))
    await train(run, client_type, submission, 2)
    assert write_archive(run, tmp_path / "archive").manifest.momenta
    with pytest.raises(ConfigError, match="--rounds"):
        fork_run(tmp_path / "archive", tmp_path / "forked", data=str(text_folder))
    done = fork_run(tmp_path / "archive", tmp_path / "forked", data=str(text_folder), rounds=3)
    assert (done.version, done.round) == (2, 2)
    new = RunFolder.open(tmp_path / "forked")
    before = manifest_of(new)
    await train(new, client_type, submission, 1)
    after = manifest_of(new)
    assert (after.version, after.parent_version, after.round) == (3, 2, 3)
    assert after.momenta.keys() >= before.momenta.keys()
    assert after.blocks != before.blocks


def test_a_fork_goes_on_where_the_archive_ends(
    run: RunFolder, archive: Path, forked: Callable[..., Forked], tmp_path: Path
) -> None:
    done, new = forked(fingerprint=run.authority().fingerprint), RunFolder.open(tmp_path / "forked")
    assert (done.from_run, done.version) == (run.run_id, run.published_version())
    assert new.run_id != run.run_id
    assert new.authority().fingerprint != run.authority().fingerprint
    assert [problem for check in verify_run(new) for problem in check.problems] == []
    old, now = manifest_of(run), manifest_of(new)
    assert (now.blocks, now.masters, now.momenta, now.round) == (old.blocks, old.masters, old.momenta, old.round)
    assert new.settings().engine == run.settings().engine
    assert not new.registry().members()


def test_an_archive_holds_no_secret_and_no_place(run: RunFolder, archive: Path, text_folder: Path) -> None:
    index = (archive / "archive.json").read_bytes()
    for path in (run.root / "secret").iterdir():
        content = path.read_bytes()
        assert path.name == "ca.pem" or (content not in index and content.hex().encode() not in index)
    for place in (run.root, text_folder):
        assert str(place).encode() not in index
    assert {path.name for path in archive.iterdir()} == {"archive.json", "blobs"}


@pytest.mark.parametrize("field", ["manifest", "record", "vouch", "ca_pem", "manifest_key"])
def test_an_index_that_the_run_did_not_sign_is_refused(
    archive: Path, field: str, forked: Callable[..., Forked], tmp_path: Path
) -> None:
    path = archive / "archive.json"
    found = json.loads(path.read_bytes())
    text = found[field]
    at = text.index("tokens_trained") if field == "manifest" else len(text) // 2
    found[field] = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="not what a run has signed"):
        forked()
    assert not (tmp_path / "forked").exists()


def test_a_file_that_is_another_is_refused(archive: Path, forked: Callable[..., Forked], tmp_path: Path) -> None:
    path = max((archive / "blobs").iterdir(), key=lambda one: one.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not what its name promises"):
        forked()
    path.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match="expected"):
        forked()
    path.unlink()
    with pytest.raises(ConfigError, match="the archive lacks"):
        forked()
    assert not (tmp_path / "forked").exists()


def test_what_does_not_go_together_is_said(archive: Path, forked: Callable[..., Forked], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fingerprint"):
        forked(fingerprint="00" * 32)
    with pytest.raises(ConfigError, match="--data"):
        fork_run(archive, tmp_path / "forked")
    (tmp_path / "other").mkdir()
    for number in range(40):
        (tmp_path / "other" / f"{number}.txt").write_text(f"{number} was never trained on. " * 100)
    with pytest.raises(ConfigError, match="other text"):
        fork_run(archive, tmp_path / "forked", data=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"no archive\.json"):
        read_archive(tmp_path)
    shutil.rmtree(archive / "blobs")
    assert ArchiveIndex.from_json((archive / "archive.json").read_bytes()).named()
