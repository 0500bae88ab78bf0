"""A backup taken while the run is served goes on elsewhere; damage is found and told; nothing is half done."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run as run_command
from coordinator.edge.server import CoordinatorServer
from coordinator.run.backup import back_up, restore
from coordinator.run.base import take_base
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder
from coordinator.run.opened import OpenedRun
from coordinator.run.password import PASSWORD_FILE
from coordinator.run.verify import verify_run
from coordinator.store.artifacts import ContentStore
from protocol.errors import ConfigError, LocalError
from protocol.ids import Digest
from protocol.joinlink import JoinLink
from tests.killing import every_kill


def problems(run: RunFolder) -> list[str]:
    return [problem for check in verify_run(run) for problem in check.problems]


async def train_one(client: Any, submission: Callable[..., bytes], run: RunFolder) -> str:
    reply = await client.acquire()
    payload = submission(run, reply.lease)
    await client.commit(reply.lease, payload)
    assert (await client.upload(reply.lease, payload)).complete
    return str(reply.lease.lease_id)


async def test_a_backup_of_a_served_run_goes_on_elsewhere(
    run: RunFolder, tmp_path: Path, client_type: type[Any], submission: Callable[..., bytes]
) -> None:
    server = CoordinatorServer(run)
    await server.start()
    (link,) = await server.create_invites()
    client = client_type(JoinLink.parse(link), run)
    await client.enrol()
    await client.open()
    lease_id = await train_one(client, submission, run)
    facts = back_up(run, tmp_path / "backup")
    assert facts.run_id == run.run_id
    await client.close()
    await server.stop(0.0)

    restored_facts = restore(tmp_path / "backup", tmp_path / "elsewhere")
    assert restored_facts == facts
    elsewhere = RunFolder.open(tmp_path / "elsewhere")
    assert problems(elsewhere) == []
    again = CoordinatorServer(elsewhere)
    await again.start()
    again_client = client_type(JoinLink.parse(link), elsewhere, client.identity)
    again_client.link = JoinLink.parse(link)
    # The same key is still enrolled, and what was acknowledged before the backup is known.
    (record,) = [r for r in again._opened().pump.engine.state.leases.values() if r.lease.lease_id == lease_id]
    assert record.digest is not None
    assert again._opened().registry.find(client.identity.public_key) is not None
    await again_client.close()
    await again.stop(0.0)


def test_a_backup_is_private_and_leaves_nothing_in_the_run(run: RunFolder, tmp_path: Path) -> None:
    before = sorted(path.name for path in run.root.iterdir())
    back_up(run, tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    for path in (tmp_path / "backup").rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert list(run.root.rglob(".*")) == []
    assert set(before) <= {path.name for path in run.root.iterdir()}


def test_neither_a_backup_nor_a_follower_gets_the_pages_password(run: RunFolder, tmp_path: Path) -> None:
    """It would still open the page where it was changed since, or dropped."""
    (run.root / PASSWORD_FILE).write_text("salt and key")
    back_up(run, tmp_path / "backup")
    base = take_base(run)
    base.pins.close()
    copied = {path.relative_to(tmp_path / "backup").as_posix() for path in (tmp_path / "backup").rglob("*")}
    for names in (copied, {file.name for file in base.files}):
        assert "secret/draws.secret" in names
        assert PASSWORD_FILE not in names


def test_a_file_that_vanishes_while_the_backup_is_taken_makes_it_start_anew(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = ContentStore._link, 2

    def vanishing(store: ContentStore, digest: Digest, pin: Path) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise LocalError(f"artifact {digest} is gone")
        real(store, digest, pin)

    monkeypatch.setattr(ContentStore, "_link", vanishing)
    back_up(run, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again")
    assert problems(RunFolder.open(tmp_path / "again")) == []


def test_a_file_that_stays_away_is_told_and_nothing_is_left(run: RunFolder, tmp_path: Path) -> None:
    blob = next((run.root / "artifacts" / "blocks").glob("??/*"))
    blob.unlink()
    with pytest.raises(ConfigError, match="barnraise coordinator verify"):
        back_up(run, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list(run.root.rglob(".pins-*")) == []


@pytest.mark.parametrize("damage", ["block", "journal", "record", "signature", "missing"])
def test_a_backup_that_was_changed_is_not_restored(run: RunFolder, tmp_path: Path, damage: str) -> None:
    back_up(run, tmp_path / "backup")
    match damage:
        case "block":
            _flip(next((tmp_path / "backup" / "artifacts" / "blocks").glob("??/*")))
        case "journal":
            _flip(tmp_path / "backup" / "journal.sqlite")
        case "record":
            path = tmp_path / "backup" / "backup.json"
            record = json.loads(path.read_bytes())
            record["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 1}
            path.write_text(json.dumps(record))
        case "signature":
            _flip(tmp_path / "backup" / "backup.sig")
        case _:
            next((tmp_path / "backup" / "artifacts" / "blocks").glob("??/*")).unlink()
    with pytest.raises(ConfigError):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("stride", [19, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("place", ["new", "empty"])
def test_killed_anywhere_a_backup_is_no_backup_and_what_it_restores_to_no_run(
    run: RunFolder, tmp_path: Path, place: str, stride: int
) -> None:
    ready = back_up(run, tmp_path / "whole").run_id
    at = tmp_path / place

    def new() -> Path:
        shutil.rmtree(at, ignore_errors=True)
        if place == "empty":
            at.mkdir()
        return at

    def after_backup(_step: int) -> None:
        if (at / "backup.sig").exists():
            assert restore(at, tmp_path / "again").run_id == ready
            shutil.rmtree(tmp_path / "again")
        else:
            with pytest.raises(ConfigError):
                restore(at, tmp_path / "again")
            with pytest.raises(ConfigError):
                RunFolder.open(at)
            back_up(run, at)
        new()

    def after_restore(_step: int) -> None:
        if not (at / "run.json").exists():
            with pytest.raises(ConfigError):
                RunFolder.open(at)
            restore(tmp_path / "whole", at)
        assert problems(RunFolder.open(at)) == []
        new()

    new()
    assert every_kill(lambda: back_up(run, at), after_backup, stride=stride) > 40
    new()
    assert every_kill(lambda: restore(tmp_path / "whole", at), after_restore, stride=stride) > 30


def test_nothing_is_ever_overwritten(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    back_up(run, tmp_path / "backup")
    with pytest.raises(ConfigError, match="not empty"):
        back_up(run, tmp_path / "mine")
    with pytest.raises(ConfigError, match="not empty"):
        restore(tmp_path / "backup", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_an_interrupted_backup_left_is_cleared_at_the_next_start(run: RunFolder) -> None:
    pins = run.root / "artifacts" / "blocks" / ".pins-1234"
    pins.mkdir()
    (pins / "a").write_bytes(b"a")
    OpenedRun.open(run, Clocks()).close()
    assert not pins.exists()


def test_the_commands(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backup, again = str(tmp_path / "backup"), str(tmp_path / "again")
    assert run_command(["coordinator", "backup", str(run.root), backup]) == 0
    assert "is in" in capsys.readouterr().out
    assert run_command(["coordinator", "restore", backup, again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == run.run_id
    assert run_command(["coordinator", "verify", again]) == 0
    next((tmp_path / "again" / "artifacts" / "blocks").glob("??/*")).unlink()
    assert run_command(["coordinator", "verify", again]) == 1
    assert "DAMAGED" in capsys.readouterr().out
    assert run_command(["coordinator", "restore", str(tmp_path), str(tmp_path / "no")]) == 2
    assert "is missing" in capsys.readouterr().err
