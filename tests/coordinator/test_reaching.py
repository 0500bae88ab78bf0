"""The operator's commands on the coordinator's own machine: what they dial, and what they say when nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run as barnraise
from barnraise.cli.status import print_status
from coordinator.edge.operator_client import create_invites, fetch_status, stop_run
from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder
from coordinator.run.inviting import InviteTerms
from coordinator.run.lock import LOCK_FILE, folder_lock, lock_holder
from coordinator.run.migrations import MIGRATIONS
from coordinator.run.reaching import CoordinatorStopped, control_path, last_port, write_endpoint
from coordinator.store.journal import Journal
from protocol.bootstrap import fetch_ca
from protocol.errors import ConfigError, Unavailable
from protocol.file_lock import lock_file
from protocol.joinlink import JoinLink
from protocol.private_files import write_private
from tests.served import clients_of, copy_run


def settle(run: RunFolder, **changes: Any) -> None:
    """Change a run's settings on disk."""
    settings = run.settings().model_copy(update=changes)
    write_private(run.root / "settings.toml", settings.to_toml().encode())


def ways_to_listen() -> list[str]:
    ways = ["127.0.0.1", "0.0.0.0", "localhost"]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        ways += ["::1", "::"]
    return ways


@pytest.mark.parametrize("host", ways_to_listen())
async def test_commands_reach_the_coordinator_whatever_it_advertises(
    run: RunFolder, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(run, host=host, advertised_hosts=("coordinator.example.org:7600",))  # which leads nowhere
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    server = CoordinatorServer(run)
    await server.start()
    try:
        assert (await asyncio.to_thread(fetch_status, run)).answering
        (link,), _ = await asyncio.to_thread(create_invites, run, InviteTerms())
        assert JoinLink.parse(link).address == "coordinator.example.org:7600"
    finally:
        await server.stop(0.0)


@pytest.mark.skipif("::1" not in ways_to_listen(), reason="this machine has no IPv6")
async def test_a_join_link_over_ipv6_works_from_its_making_to_a_session(run: RunFolder) -> None:
    settle(run, host="[0:0:0:0:0:0:0:1]")  # an old file may hold any form
    server = CoordinatorServer(run)
    port = await server.start()
    try:
        (link,), _ = await asyncio.to_thread(create_invites, run, InviteTerms())
        assert link.startswith(f"barnraise://[::1]:{port}/#")
        parts = JoinLink.parse(link)
        pem = await asyncio.to_thread(fetch_ca, parts.host, parts.port, parts.fingerprint, 10.0)
        assert pem == run.authority().cert_pem
        async with clients_of(run, server) as make:
            await make(link=link)
            assert (await server.status()).workers[0].connected
    finally:
        await server.stop(0.0)


def test_a_run_that_was_never_served_is_not_running(run: RunFolder) -> None:
    with pytest.raises(CoordinatorStopped, match=r"is not running; start it with `barnraise coordinator run /"):
        stop_run(run)


def test_what_a_killed_coordinator_leaves_behind_is_no_sign_of_life(run: RunFolder) -> None:
    control_path(run).parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(control_path(run)))
    write_endpoint(run, "127.0.0.1", 1)
    with pytest.raises(CoordinatorStopped, match="is not running; start it"):
        stop_run(run)


def test_a_process_that_holds_the_run_and_does_not_answer_is_told_from_a_stopped_one(run: RunFolder) -> None:
    lock = folder_lock(run.root)
    lock.acquire()
    try:
        with pytest.raises(Unavailable, match=f"process {os.getpid()} serves .* but takes no orders") as caught:
            create_invites(run, InviteTerms())
        assert not isinstance(caught.value, CoordinatorStopped)
    finally:
        lock.release()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"host": "h"}', '{"host": "h", "port": "x"}'])
def test_an_endpoint_that_says_nothing_is_none(run: RunFolder, text: str) -> None:
    run.endpoint_path.write_text(text)
    assert last_port(run) == 0


# ---- the lock ----------------------------------------------------------------------------------------------------


def test_who_holds_a_run_is_seen_without_writing(run: RunFolder) -> None:
    assert lock_holder(run.root) is None
    assert not (run.root / LOCK_FILE).exists()
    lock = folder_lock(run.root)
    lock.acquire()
    assert lock_holder(run.root) == str(os.getpid())
    lock.release()
    assert lock_holder(run.root) is None


def test_a_coordinator_starts_while_somebody_looks_who_holds_the_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folder_lock(run.root)
    lock.acquire()
    lock.release()
    looking = os.open(run.root / LOCK_FILE, os.O_RDONLY)
    lock_file(looking, shared=True)
    monkeypatch.setattr("protocol.file_lock.time.sleep", lambda _: os.close(looking))
    lock.acquire()
    lock.release()


# ---- a stopped run's status --------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `folder`, with its time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


async def served_once(run: RunFolder) -> None:
    server = CoordinatorServer(run)
    await server.start()
    async with clients_of(run, server) as make:
        await make()
    await server.stop(0.0)


async def test_a_stopped_runs_status_comes_from_its_journal_and_writes_nothing(run: RunFolder) -> None:
    began_s = time.time()
    await served_once(run)
    before = contents(run.root)
    for path in (run.root, run.root / "secret"):
        path.chmod(0o500)
    try:
        status = await asyncio.to_thread(fetch_status, run)
    finally:
        for path in (run.root, run.root / "secret"):
            path.chmod(0o700)
    assert contents(run.root) == before
    assert not status.answering
    assert "is not running" in (status.trouble or "")
    assert status.last_record_s is not None
    assert began_s - 1 <= status.last_record_s <= time.time() + 1
    (worker,) = status.workers
    assert (worker.name, worker.connected) == ("raw", False)
    assert status.calls > 0, "traffic is in the journal too"


async def test_what_a_killed_coordinator_wrote_last_is_in_its_status(
    run: RunFolder, server: CoordinatorServer, join: Callable[..., Any], tmp_path: Path
) -> None:
    await join()
    killed = copy_run(run.root, tmp_path / "killed")  # its last records stand in SQLite's log alone
    assert (killed.root / "journal.sqlite-wal").stat().st_size
    before = contents(killed.root)
    status = await asyncio.to_thread(fetch_status, killed)
    assert [worker.name for worker in status.workers] == ["raw"]
    assert contents(killed.root) == before


def test_an_older_engines_journal_is_brought_up_to_date_in_the_copy_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(run.journal_path)
    older = journal.engine_version - 1
    with journal._connection as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'engine_version'", (str(older),))
    journal.close()
    before = contents(run.root)
    with pytest.raises(ConfigError, match="this program has" if older not in MIGRATIONS else "stopped cleanly"):
        fetch_status(run)
    assert contents(run.root) == before


def test_a_journal_that_changes_under_the_copy_is_copied_anew(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, copies = shutil.copyfile, []

    def copied(source: Path, target: Path) -> None:
        genuine(source, target)
        copies.append(source)
        if len(copies) == 1:
            os.utime(source, ns=(1, 1))
        if len(copies) == 2:
            raise FileNotFoundError(errno.ENOENT, "gone", str(source))

    monkeypatch.setattr(shutil, "copyfile", copied)
    assert not fetch_status(run).answering
    assert len(copies) >= 3


def test_a_journal_that_never_holds_still_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, times = shutil.copyfile, iter(range(1, 1000))

    def copied(source: Path, target: Path) -> None:
        genuine(source, target)
        os.utime(source, ns=(0, next(times) * 10**9))

    monkeypatch.setattr(shutil, "copyfile", copied)
    with pytest.raises(Unavailable, match="is being written to"):
        fetch_status(run)


def test_status_of_a_stopped_run_says_so_and_ends_with_1(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert barnraise(["status", str(run.root)]) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"The coordinator of {run.root} is not running; start it with ")
    assert "Nothing has been recorded since 20" in told
    assert "round" in told
    assert barnraise(["status", str(run.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["answering"] is False


def test_nobody_is_told_to_start_what_is_over(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    over = {"over": True, "end_reason": "all 3 rounds are done"}
    print_status(fetch_status(run).model_copy(update=over))
    told = capsys.readouterr().out
    assert "The run is over: all 3 rounds are done" in told
    assert "start it" not in told


def test_watching_goes_on_across_a_stop_and_a_restart(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(run)
    actions = iter([served.start, served.stop, served.start, served.stop])

    def instead_of_sleeping(_: float) -> None:
        action = next(actions, None)
        if action is None:
            raise KeyboardInterrupt
        action()

    with monkeypatch.context() as patch:
        patch.setattr("barnraise.cli.status.sleep", instead_of_sleeping)
        code = barnraise(["status", str(run.root), "--json", "--watch", "1"])
    assert code == 130
    decoder, text, seen = json.JSONDecoder(), capsys.readouterr().out, []
    while text.strip():
        one, end = decoder.raw_decode(text.strip())
        seen.append(one["answering"])
        text = text.strip()[end:]
    assert seen == [False, True, False, True, False]


class Served:
    """A coordinator in a thread of its own."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = CoordinatorServer(self._run)
        self._wait(self._server.start())

    def stop(self) -> None:
        self._wait(self._server.stop(0.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, what: Any) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(60.0)
