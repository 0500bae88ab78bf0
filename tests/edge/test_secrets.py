"""Secrets of a real run, made, served and joined by command: private on disk, and nowhere else."""

from __future__ import annotations

import base64
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from barnraise.cli.app import run as barnraise
from barnraise.cli.links import claim_link, read_link, write_links
from coordinator.run.folder import RunFolder
from protocol.errors import ConfigError
from protocol.joinlink import JoinLink
from worker.home import open_home

ROOT = Path(__file__).parents[2]
LINK = "barnraise://127.0.0.1:7465/#" + "a" * 64 + "." + "B" * 22

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands as processes of their own; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str | Path, given: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "barnraise", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
        process.stdin = None
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def spellings(secret: bytes) -> set[bytes]:
    """How a secret might be written."""
    coded = base64.b64encode(secret)
    return {secret, secret.hex().encode(), coded, coded.rstrip(b"="), base64.urlsafe_b64encode(secret).rstrip(b"=")}


def secrets_under(run: RunFolder, home: Path, links: list[str]) -> set[bytes]:
    """Invites, private keys and the run's secret, in every spelling."""
    found = set[bytes]()
    for link in links:
        invite = JoinLink.parse(link).invite
        assert invite is not None
        found |= {invite.encode()}
    found |= spellings(run.draw_secret())
    keys = [path for root in (run.root, home) for path in root.rglob("*") if path.suffix in {".key", ".pem"}]
    for path in keys:
        if b"PRIVATE KEY" in path.read_bytes():
            found |= {line for line in path.read_bytes().splitlines() if b"-" not in line}
    assert len(found) > 8
    return found


def test_a_real_run_tells_no_secret(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str], pristine_run: Path
) -> None:
    run, home, links = tmp_path / "run", tmp_path / "home", tmp_path / "links"
    text = RunFolder.open(pristine_run).dataset_path
    port, life_s = free_port(), 600.0
    lease = ["--inner-steps", "2", "--batch", "2", "--replicas", "1", "--quorum", "1", "--rounds", "100000"]
    options = ["--data", str(text), "--sequence-length", "32", "--port", str(port)]
    assert barnraise(["coordinator", "init", str(run), *options, *lease]) == 0
    coordinator = start("coordinator", "run", run, "--invites", "1", "--invites-to", links)
    # Made beside it rather than by it, so that the worker need not wait for it to be up before it starts.
    registry = RunFolder.open(run).registry()
    invite = registry.create_invite(trusted=False, expires_at_s=time.time() + life_s)
    registry.close()
    fingerprint = RunFolder.open(run).authority().fingerprint
    texts = [str(JoinLink(host="127.0.0.1", port=port, fingerprint=fingerprint, invite=invite))]
    common = ("--home", home, "--output", "json", "--threads", "1", "--device", "cpu")
    worker = start("worker", "join", "-", *common, given=texts[0] + "\n")
    told = []
    assert worker.stdout is not None
    for line in iter(worker.stdout.readline, ""):
        told.append(line)
        if "submission_accepted" in line:
            break
    texts += [path.read_text().strip() for path in links.glob("*.link")]
    assert len(texts) == 2
    arguments = [psutil.Process(process.pid).cmdline() for process in (coordinator, worker)]
    capsys.readouterr()
    assert barnraise(["status", str(run), "--json"]) == 0
    status = capsys.readouterr().out
    assert barnraise(["coordinator", "stop", str(run)]) == 0
    told.append(worker.communicate(timeout=60)[0])
    logged = coordinator.communicate(timeout=60)[0]
    assert "submission_accepted" in "".join(told)

    folder = RunFolder.open(run)
    secret = secrets_under(folder, home, texts)
    public = {
        "the coordinator's log": logged.encode(),
        "the worker's log": "".join(told).encode(),
        "status": status.encode(),
        "arguments": repr(arguments).encode(),
        "events.jsonl": folder.events_path.read_bytes(),
        "endpoint.json": folder.endpoint_path.read_bytes(),
    }
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            public[str(path)] = path.read_bytes()
    leaks = [(where, one[:6]) for where, content in public.items() for one in secret if one in content]
    assert leaks == []
    shared = [path for root in (run, home) for path in root.rglob("*") if path.is_file() and readable_by_others(path)]
    assert [path for path in shared if any(one in path.read_bytes() for one in secret)] == []


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def readable_by_others(path: Path) -> bool:
    """Whether its mode, and those of the folders above it that are ours, let others in."""
    return bool(path.stat().st_mode & 0o077)


def test_every_private_file_is_its_owners_alone(pristine_run: Path) -> None:
    assert stat.S_IMODE(pristine_run.stat().st_mode) == 0o700
    private = [path for path in pristine_run.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    run = RunFolder.open(pristine_run)
    private += [path for path in pristine_run.rglob("*") if path.is_file() and run.draw_secret() in path.read_bytes()]
    assert len(private) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in private} == {0o700}


def test_a_volunteers_key_is_theirs_alone(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home", "a" * 64)
    home.identity()
    assert stat.S_IMODE((home.folder / "identity.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_a_link_is_read_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_links(tmp_path, [LINK])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_link(path) == LINK
    with path.open() as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        assert read_link(Path("-")) == LINK
    (tmp_path / "empty").write_text("\n")
    for wrong in (tmp_path / "empty", tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError):
            read_link(wrong)


def test_one_source_of_a_link_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert barnraise(["worker", "join", LINK, "--link-file", "-"]) == 2
    assert "only one" in capsys.readouterr().err
    assert barnraise(["worker", "join"]) == 2


def test_a_workers_name_claims_no_file_outside_of_the_folder(tmp_path: Path) -> None:
    write_links(tmp_path / "links", [LINK])
    assert claim_link(tmp_path / "links", claimant="../../evil/../name", wait_s=0.0) == LINK
    assert [path.parent for path in tmp_path.rglob("taken-by-*")] == [tmp_path / "links"]


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from barnraise.cli.output import say_error

    say_error("refused: \x1b]0;owned\x07\x9b2J\u202e\nand more")
    shown = capsys.readouterr().err
    assert "owned" in shown
    assert all(character.isprintable() for character in shown.rstrip("\n"))
