"""Each kind of damage is found, by `verify` and at the next start, and told in a sentence that says what to do."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.needed import needed_by
from coordinator.run.pump import load_engine
from coordinator.run.verify import verify_run
from coordinator.store.journal import Journal
from protocol.errors import ConfigError, Unavailable


def problems(run: RunFolder) -> dict[str, tuple[str, ...]]:
    return {check.name: check.problems for check in verify_run(run) if check.problems}


def test_a_sound_run_has_no_problems(run: RunFolder) -> None:
    assert problems(run) == {}
    checked = {check.name: check.checked for check in verify_run(run)}
    frozen = run.layout().columns
    assert checked["versions"] == 1 + len(run.layout().blocks) + frozen


async def test_a_run_may_be_verified_while_it_is_served(run: RunFolder, server: CoordinatorServer) -> None:
    assert problems(run) == {}


@pytest.mark.parametrize("how", ["missing", "changed"])
async def test_a_damaged_block_is_found(run: RunFolder, how: str) -> None:
    blob = max((run.root / "artifacts" / "blocks").glob("??/*"), key=lambda path: path.stat().st_size)
    if how == "missing":
        blob.unlink()
    else:
        blob.write_bytes(blob.read_bytes()[:-1] + b"\x00")
    assert "barnraise coordinator restore" in problems(run)["versions"][0]
    if how == "missing":
        with pytest.raises(
            ConfigError, match=r"missing from artifacts/blocks, the first is [0-9a-f]{64}: put back a backup"
        ):
            await CoordinatorServer(run).start()


async def test_the_index_of_versions_is_put_right_from_the_journal(run: RunFolder) -> None:
    entry = run.root / "versions" / "00000000.json"
    was = json.loads(entry.read_text())["manifest"]
    entry.unlink()
    assert "versions" in problems(run)
    server = CoordinatorServer(run)
    await server.start()
    await server.stop(0.0)
    assert json.loads(entry.read_text())["manifest"] == was
    assert problems(run) == {}
    entry.write_text("{")
    server = CoordinatorServer(run)
    await server.start()
    await server.stop(0.0)
    assert problems(run) == {}


def test_a_journal_without_its_tail_is_found(run: RunFolder) -> None:
    connection = sqlite3.connect(run.journal_path)
    connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
    connection.commit()
    connection.close()
    assert "tail was cut off" in problems(run)["journal"][0]


def test_keys_that_do_not_belong_together_are_found(run: RunFolder) -> None:
    secret = run.root / "secret"
    (secret / "leaf.pem").write_bytes((secret / "ca.pem").read_bytes().replace(b"A", b"B", 1))
    assert "keys and signatures" in problems(run)


async def test_two_coordinators_never_serve_one_folder(run: RunFolder, server: CoordinatorServer) -> None:
    with pytest.raises(ConfigError, match=r"another coordinator \(process \d+\) serves"):
        await CoordinatorServer(run).start()
    assert (await server.status()).run_id == run.run_id, "the first one goes on undisturbed"


async def test_a_start_that_fails_lets_go_of_the_folder(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_: CoordinatorServer, __: Any) -> int:
        raise ConfigError("cannot listen")

    with monkeypatch.context() as patch:
        patch.setattr(CoordinatorServer, "_listen", taken)
        with pytest.raises(ConfigError, match="cannot listen"):
            await CoordinatorServer(run).start()
    server = CoordinatorServer(run)
    await server.start()
    await server.stop(0.0)


@pytest.fixture
async def uploaded(
    run: RunFolder, server: CoordinatorServer, join: Callable[[], Any], submission: Callable[..., bytes]
) -> tuple[Any, Any, bytes]:
    client = await join()
    lease = (await client.acquire()).lease
    payload = submission(run, lease)
    await client.commit(lease, payload)
    return client, lease, payload


async def test_a_full_disk_keeps_the_submission_with_its_worker(
    run: RunFolder, server: CoordinatorServer, uploaded: tuple[Any, Any, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import grpc

    client, lease, payload = uploaded

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.store.artifacts.os.pwrite", full)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.upload(lease, payload)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "No space left" in str(refused.value.details())
    assert (await client.upload(lease, payload)).complete


async def test_a_submission_whose_bytes_are_gone_is_told(
    run: RunFolder, submission: Callable[..., bytes], uploaded: tuple[Any, Any, bytes], server: CoordinatorServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client, lease, payload = uploaded

    def later(_: Any) -> Any:
        raise Unavailable("not now")

    assert server._parts is not None
    monkeypatch.setattr(server._parts.executor, "execute", later)
    assert (await client.upload(lease, payload)).complete
    await server.stop(0.0)
    journal = Journal.open(run.journal_path)
    engine, _ = load_engine(journal, run.draw_secret())
    journal.close()
    (digest,) = needed_by(engine.state).payloads.values()
    run.artifacts().payloads.drop(digest)
    (problem,) = problems(run)["submissions"]
    assert problem.startswith(f"the submission for lease {lease.lease_id} was received, but ")
    assert "put that file back from a backup" in problem
