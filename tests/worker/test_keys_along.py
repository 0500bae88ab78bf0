"""A volunteer's keys: sealed in a file, taken along, replaced, given up, against a real coordinator."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from barnraise.cli.app import run as run_command
from coordinator.store.people import said_in
from protocol import sealed as sealing
from protocol.errors import ConfigError, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.pseudonyms import pseudonym
from protocol.sealed import opened, sealed
from worker import identity
from worker.client import CoordinatorClient
from worker.disk import worker_lock
from worker.home import open_home
from worker.identity import KeyOfRun, KeyOutcome, exported, imported, keys, left, rotated
from worker.joining import Joining
from worker.options import WorkerOptions
from worker.rejoin import home_root, link_of

PHRASE = "correct horse battery"
GOOD: dict[str, Any] = {
    "fingerprint": "a" * 64,
    "files": {"identity.pem": PrivateIdentity.generate().to_pem().decode(), "enrolment.json": "{}"},
}


def done(outcomes: list[KeyOutcome]) -> KeyOfRun:
    """The one key, with which what was asked is done."""
    (outcome,) = outcomes
    if outcome.error is not None:
        raise outcome.error
    return outcome.key


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that cost nothing; one test below has the real price."""
    monkeypatch.setattr(sealing, "_N", 2**4)


def test_what_is_sealed_opens_for_its_passphrase_alone_and_as_it_was_written(monkeypatch):
    monkeypatch.setattr(sealing, "_N", 2**17)
    file = sealed(b"a key", PHRASE)
    assert b"a key" not in file
    assert opened(file, PHRASE) == b"a key"
    monkeypatch.setattr(sealing, "_N", 2**4)
    with pytest.raises(ConfigError, match="passphrase is not the one"):
        opened(file, PHRASE)


def test_nothing_else_opens():
    file = sealed(b"a key", PHRASE)
    assert sealed(b"a key", PHRASE) != file, "another salt each time"
    with pytest.raises(ConfigError, match="at least 8"):
        sealed(b"a key", "short")
    with pytest.raises(ConfigError, match="passphrase"):
        opened(file, "another passphrase")
    fields = json.loads(file)
    for name in ("salt", "nonce", "content"):
        flipped = fields[name][:-1] + ("0" if fields[name][-1] != "0" else "1")
        with pytest.raises(ConfigError, match="changed"):
            opened(json.dumps({**fields, name: flipped}).encode(), PHRASE)
    for wrong in (b"", b"[]", b"{}", json.dumps({**fields, "nonce": "ab"}).encode(), b"x" * (2 << 20)):
        with pytest.raises(ConfigError, match="not a file"):
            opened(wrong, PHRASE)


@pytest.mark.parametrize(
    "content",
    [b"{}",
     json.dumps({"runs": [{**GOOD, "fingerprint": "../../up"}]}).encode(),
     json.dumps({"runs": [{**GOOD, "fingerprint": ("/../" + 60 * "a")}]}).encode(),
     json.dumps({"runs": [{**GOOD, "files": {**GOOD["files"], "../rules.toml": "x"}}]}).encode(),
     b'{"runs": [{"fingerprint": "' + b"a" * 64 + b'", "files": {"identity.pem": "x", "enrolment.json": "{}"}}]}',
     *(json.dumps({"runs": [], "gpus": {place: [GOOD]}}).encode()
       for place in ("", "..", "../..", "/tmp", "cuda:1/..", "cuda:1/../../up", "cuda-1", "cuda:1\n", "cuda:1024"))],
)  # fmt: skip
def test_a_file_that_somebody_made_writes_nothing(tmp_path, content):
    with pytest.raises(ConfigError):
        imported(sealed(content, PHRASE), PHRASE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def client_of(home: Path) -> CoordinatorClient:
    link = link_of("", home_root(home))
    place = open_home(home, link.fingerprint)
    enrolment = place.enrolment()
    assert enrolment is not None
    made = CoordinatorClient(link, place.identity(), first_backoff_s=0.01)
    made.connect(enrolment.ca_pem.encode())
    return made


async def opens(home: Path, capability: Any) -> None:
    made = client_of(home)
    try:
        await made.open_session(capability)
    finally:
        await made.close()


async def enrolled(swarm: Any, home: Path) -> Any:
    """A home whose key the coordinator knows; what it offered."""
    options = WorkerOptions(link=swarm.link, home=home, name="Ann", team="bees", measure_speed=False)
    link = link_of(swarm.link, home_root(home))
    from tests.worker.conftest import MACHINE, Recorder

    joining = Joining(options, link, open_home(home, link.fingerprint), Recorder())
    await joining.enrol(MACHINE)
    await joining.open(MACHINE)
    await joining.close()
    return joining._capability(MACHINE)


async def test_a_key_goes_along_is_replaced_and_is_given_up(swarm: Any, tmp_path: Path) -> None:
    old_home, new_home = tmp_path / "old", tmp_path / "new"
    capability = await enrolled(swarm, old_home)
    (before,) = keys(old_home)
    file, found = exported(old_home, PHRASE)
    assert found == [before]
    assert imported(file, PHRASE, new_home) == [before]
    assert imported(file, PHRASE, new_home) == [before], "again is fine"
    await opens(new_home, capability)

    lock = worker_lock(open_home(new_home, before.fingerprint).folder / "lock")
    lock.acquire()
    with pytest.raises(ConfigError, match="another worker"):
        done(await rotated(new_home))
    lock.release()
    after = done(await rotated(new_home))
    assert after.worker == before.worker
    assert after.public_key != before.public_key
    await opens(new_home, capability)
    with pytest.raises(Unauthenticated):
        await opens(old_home, capability)
    with pytest.raises(ConfigError, match="another key"):
        imported(file, PHRASE, new_home)

    people = swarm.server._run.registry.people
    assert (people.names[before.worker], people.teams[before.worker]) == ("Ann", "bees")
    done(await left(new_home, forget=True))
    said = said_in(swarm.folder.registry_path)
    assert before.worker not in said.names
    assert before.worker not in said.teams
    state = swarm.server._run.pump.engine.state
    assert state.called(before.worker) == pseudonym(before.worker)
    assert keys(new_home) == []
    (swarm.link,) = await swarm.server.create_invites()
    await enrolled(swarm, new_home)
    assert keys(new_home) == [after], "another invite lets it in again, as who it was"
    await opens(new_home, capability)


async def test_a_replacement_whose_answer_was_lost_is_finished_by_asking_again(
    swarm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capability = await enrolled(swarm, tmp_path)
    asked = identity._asked

    async def lost(place: Any, ask: Any) -> None:
        await asked(place, ask)
        raise ConnectionError("the line broke")

    monkeypatch.setattr(identity, "_asked", lost)
    with pytest.raises(ConnectionError):
        done(await rotated(tmp_path))
    monkeypatch.setattr(identity, "_asked", asked)
    done(await rotated(tmp_path))
    await opens(tmp_path, capability)
    (before,) = keys(tmp_path)
    done(await left(tmp_path, revoke=True))
    assert keys(tmp_path) == []
    (swarm.link,) = await swarm.server.create_invites()
    await enrolled(swarm, tmp_path)
    (new,) = keys(tmp_path)
    assert new.worker not in (before.worker, ""), "a new key is somebody new"


def test_a_passphrase_comes_over_a_descriptor_and_in_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, file = tmp_path / "home", tmp_path / "keys"
    found = identity.KeyOfRun(
        gpu="",
        run_id="run-1",
        run_name="barn",
        fingerprint="f" * 64,
        worker="w",
        public_key=PrivateIdentity.generate().worker_id,
    )
    monkeypatch.setattr(
        identity, "exported", lambda *given: (json.dumps([str(one) for one in given]).encode(), [found])
    )
    reading, writing = os.pipe()
    os.write(writing, b"pass over fd\nrest")
    os.close(writing)
    command = [
        "worker",
        "identity",
        "export",
        str(file),
        "--home",
        str(home),
        "--passphrase-fd",
        str(reading),
        "--json",
    ]
    assert run_command(command) == 0
    os.close(reading)
    assert json.loads(file.read_bytes()) == [str(home), "pass over fd", ""]
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(capsys.readouterr().out)[0]["run_name"] == "barn"
    assert run_command(command) == 2, "the file is there: it may be the only copy"
    assert run_command(["worker", "identity", "show", "--home", str(home)]) == 0
    assert run_command(["worker", "identity", "revoke", "--home", str(home)]) == 2
    assert "--yes" in capsys.readouterr().err


def test_nobody_is_enrolled_and_nothing_is_taken_along(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run"):
        exported(tmp_path, PHRASE)
    with pytest.raises(ConfigError):
        asyncio.run(rotated(tmp_path))
